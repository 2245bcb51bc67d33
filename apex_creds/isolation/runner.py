"""Runs plugins behind the wall: a warm worker for each, called like a plugin in the process.

Guarantee: a plugin's code runs in a worker only; a worker that ends, for whatever reason, is an
error for the calls in it and for nothing else, and leaves no process, descriptor or mount.
Everything that a worker's handles ask for is done in the invocation that they belong to, and
what comes back is plain data or a known error.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import logging
import os
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar
from weakref import finalize

import anyio.to_thread
import msgspec

import apex_creds
from apex_creds.concurrency import LoopThread, Place, run_at
from apex_creds.errors import (
    InvalidInputError,
    IsolationError,
    WorkerEndedError,
)
from apex_creds.isolation import redeeming
from apex_creds.isolation.channel import Ended, Remote
from apex_creds.isolation.code import Code, code_of
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.frames import AWAITABLE, SYNC_STREAM, Calling, failure_of
from apex_creds.isolation.invocations import held_by
from apex_creds.isolation.sandbox import Limits
from apex_creds.isolation.workers import Options, PluginWorkers, Worker
from apex_creds.leases.handle import current_credentials
from apex_creds.leases.lease import Invocation, current_invocation
from apex_creds.plain import plain_count, plain_seconds
from apex_creds.policy.manifest import Manifest

T = TypeVar("T")
MOST_CALLS: Final = 1000
"""After so many a worker is replaced, so that what a plugin leaves behind does not add up."""
START_WITHIN: Final = 60.0
_OUTPUT: Final = "apex_creds.isolation.output"
_MOST_LOGGERS: Final = 64
_HERE: Final = os.path.dirname(os.path.dirname(os.path.abspath(apex_creds.__file__)))
_log: Final = logging.getLogger(__name__)


class Isolation(Enum):
    """How plugins are isolated; what a middleware's ``isolation`` is."""

    BUBBLEWRAP = "bubblewrap"
    """All of them, behind bubblewrap's wall."""
    WHERE_REQUIRED = "where-required"
    """Those whose manifest or policy says ``required``; the others run in this process."""

    def runner(self) -> IsolatedRunner:
        """A runner with the usual limits."""
        return IsolatedRunner(every=self is Isolation.BUBBLEWRAP)


class IsolatedRunner:
    """Runs plugins in workers; close it, or the middleware that it was given to.

    Args:
        every: Whether it isolates every plugin, or those that require it.
        limits: Of each worker.
        max_calls: After so many a worker is replaced.
        timeout: Seconds that a call may take; None: no limit but its lease's.
        processes: Whether plugins may start processes.
        reentrant: Ids of plugins that run several calls at once in their worker. Whose the
            request of an SDK is can't be known then, so theirs are sent by handles alone.
        folders: What plugins import besides their own code and installed packages, as a
            runtime's base classes; seen by all of them.
        dialer: Connects to servers, for what SDKs send.

    Raises:
        InvalidInputError: An argument is not what it should be.
    """

    def __init__(
        self,
        *,
        every: bool = True,
        limits: Limits | None = None,
        max_calls: int = MOST_CALLS,
        timeout: float | None = None,
        processes: bool = False,
        reentrant: frozenset[str] = frozenset(),
        folders: Sequence[Path] = (),
        dialer: Dialer | None = None,
    ) -> None:
        self.every = every
        self.timeout = None if timeout is None else plain_seconds(timeout, what="timeout")
        self._options = Options(
            limits=limits or Limits(),
            max_calls=plain_count(max_calls, what="max_calls"),
            processes=processes,
            reentrant=reentrant,
            folders=tuple(Path(os.path.realpath(each)) for each in folders),
            dialer=dialer,
        )
        self.thread = LoopThread("apex-creds-isolation")
        self._plugins: dict[tuple[str, Path], PluginWorkers] = {}
        self._closed = False

    def runner(self) -> Self:
        """Itself: what ``Isolation`` makes one from."""
        return self

    async def call(
        self,
        manifest: Manifest,
        function: Callable[..., object] | Code,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """Calls a plugin's function in its worker, in the current invocation.

        Returns:
            Its value, or a generator of either kind.

        Raises:
            WorkerEndedError: The worker has ended meanwhile.
            IsolationError: It can't be called there.
        """
        begun = self._begun(manifest, function, args, kwargs, place=Place())
        result = await self.thread.run(begun.run)
        return self._received(begun, result)

    def call_in_turn(
        self,
        manifest: Manifest,
        function: Callable[..., object] | Code,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """As ``call``, from code that can't wait: what is to be awaited comes back so."""
        begun = self._begun(manifest, function, args, kwargs, place=None)
        result = self.thread.call(begun.run)
        return self._received(begun, result)

    async def close(self) -> None:
        """Ends all workers; idempotent."""
        if self._closed:
            return
        self._closed = True
        plugins, self._plugins = self._plugins, {}

        async def ends() -> None:
            for plugin in plugins.values():
                await plugin.end("the runner was closed")

        if plugins:
            await self.thread.run(ends)
        self.thread.close(wait=False)

    def _begun(
        self,
        manifest: Manifest,
        function: Callable[..., object] | Code,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        *,
        place: Place | None,
    ) -> _Call:
        if self._closed:
            raise IsolationError("The runner was closed.", hint="Make another middleware.")
        code = function if isinstance(function, Code) else code_of(function)
        key = (manifest.plugin, code.folder)
        plugin = self._plugins.get(key)
        if plugin is None:
            plugin = self._plugins.setdefault(
                key, PluginWorkers(self._options, manifest.plugin, code.folder)
            )
        given = {**code.given, **kwargs}
        return _Call(plugin, code, (*code.bound, *args), given, place, self.timeout)

    def _received(self, call: _Call, result: object) -> object:
        """What a call brought, as the caller knows such things."""
        if not isinstance(result, Remote):
            return result
        if result.kind == AWAITABLE:
            return _Awaited(self, call, result)
        kind = _Steps if result.kind == SYNC_STREAM else _AsyncSteps
        return kind(self.thread, call, result)


# -- one call ------------------------------------------------------------------------------

_numbers: Final = itertools.count(1)


class _Call:
    """A call in a worker, until its value is there or its stream has ended."""

    def __init__(
        self,
        plugin: PluginWorkers,
        code: Code,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        place: Place | None,
        timeout: float | None,
    ) -> None:
        self.id = str(next(_numbers))
        self.invocation: Invocation | None = current_invocation()
        self.place = place
        self.context = contextvars.copy_context()
        self.callbacks: dict[int, Callable[..., object]] = {}
        self.worker: Worker | None = None
        self._plugin = plugin
        self._code = code
        self._args = args
        self._kwargs = kwargs
        self._timeout = timeout
        self._turn: Any = None

    async def run(self) -> object:
        """Runs it, in the runner's thread."""
        turn = self._plugin.turns.held()
        await turn.__aenter__()
        self._turn = turn
        result: object = None
        try:
            held = [] if self.invocation is None else await held_by(self.invocation)
            stamp = (
                *self._code.stamp(),
                *((each.info.name, each.info.delivery, each.origins) for each in held),
            )
            # Nothing of this call's invocation is in what outlives it.
            starts = asyncio.get_running_loop().create_task(
                self._plugin.ready(stamp, held), context=contextvars.Context()
            )
            worker = self.worker = await starts
            worker.calls[self.id] = self
            try:
                async with asyncio.timeout(self._timeout):
                    result = await worker.channel.ask("call", worker.plain(self, self._said()))
            except TimeoutError:
                raise IsolationError(
                    f"The plugin did not answer in {self._timeout:g} s.",
                    hint="It was cancelled. A runner's timeout says how long it may take.",
                ) from None
            except WorkerEndedError:
                await worker.raise_why()
            return result
        finally:
            if not isinstance(result, Remote):
                await self.end()

    def _said(self) -> object:
        # Of any kind in the mapping: what is no handle is not the plugin's to have.
        handles = current_credentials() if self.invocation is not None else {}
        level = min(
            (
                each.level
                for each in [logging.root, *logging.root.manager.loggerDict.values()]
                if isinstance(each, logging.Logger) and each.level
            ),
            default=logging.WARNING,
        )
        return msgspec.structs.asdict(
            Calling(
                id=self.id,
                plugin=self._plugin.id,
                target=msgspec.structs.asdict(self._code.target),  # type: ignore[arg-type]
                args=list(self._args),
                kwargs=self._kwargs,
                handles=[redeeming.described(each) for each in handles.values()],
                in_turn=self.place is None,
                log_level=level,
            )
        )

    async def failed(self, error: BaseException) -> None:
        """A later step of it did not go well."""
        worker = self.worker
        await self.end()
        if worker is not None and isinstance(error, WorkerEndedError):
            await worker.raise_why()

    async def end(self) -> None:
        """Nothing of it goes on any more; idempotent."""
        if self.worker is not None:
            self.worker.calls.pop(self.id, None)
        turn, self._turn = self._turn, None
        if turn is not None:
            await turn.__aexit__(None, None, None)

    async def called_back(self, number: int, args: list[Any], kwargs: dict[str, Any]) -> object:
        """Calls a function that the plugin was given, where its caller is."""
        function = self.callbacks.get(number)
        if function is None:
            raise InvalidInputError("There is no such function here.")

        async def work() -> object:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        if self.place is not None:
            return await run_at(self.place, work)
        if inspect.iscoroutinefunction(function):
            return await work()
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))


class _Stream:
    """A stream in a worker, until its end; one that is dropped is closed there, too."""

    def __init__(self, thread: LoopThread, call: _Call, remote: Remote) -> None:
        self._thread = thread
        self._call = call
        self._remote = remote
        self._dropped = finalize(self, _close_later, thread, call, remote)
        self._dropped.atexit = False

    async def _step(self, how: str, value: object) -> object:
        try:
            return await self._remote.step(how, value)
        except Ended:
            self._dropped.detach()
            await self._call.end()
            raise
        except BaseException as error:
            self._dropped.detach()
            await self._call.failed(error)
            raise

    async def _close(self) -> None:
        self._dropped.detach()
        try:
            await self._remote.close()
        finally:
            await self._call.end()


def _close_later(thread: LoopThread, call: _Call, remote: Remote) -> None:
    async def close() -> None:
        try:
            await remote.close()
        finally:
            await call.end()

    with suppress(Exception):  # the runner was closed, and all with it
        thread.start(close)


def _thrown(error: object) -> object:
    """An exception to be raised where a stream stands."""
    if isinstance(error, type):
        error = error()
    if not isinstance(error, Exception):
        raise error  # type: ignore[misc]
    return msgspec.to_builtins(failure_of(error))


class _Awaited(_Stream):
    """What is to be awaited; once it is not, it ends there, too."""

    def __init__(self, runner: IsolatedRunner, call: _Call, remote: Remote) -> None:
        super().__init__(runner.thread, call, remote)
        self._runner = runner

    def __await__(self) -> Generator[Any, Any, object]:
        return self._result().__await__()

    def close(self) -> None:
        """It is not awaited."""
        if self._dropped.detach() is not None:
            _close_later(self._thread, self._call, self._remote)

    async def _result(self) -> object:
        self._dropped.detach()
        result = await self._thread.run(self._whole)
        return self._runner._received(self._call, result)

    async def _whole(self) -> object:
        try:
            await self._remote.step()
        except Ended as end:
            result: object = end.args[0]
        except BaseException as error:
            await self._call.failed(error)
            raise
        else:
            await self._call.end()
            raise IsolationError("The worker answered with what is no result.")
        if not isinstance(result, Remote):
            await self._call.end()
        return result


class _AsyncSteps(_Stream, AsyncGenerator[object, object]):
    async def asend(self, value: object) -> object:
        how = "next" if value is None else "send"
        try:
            return await self._thread.run(partial(self._step, how, value))
        except Ended:
            raise StopAsyncIteration from None

    async def athrow(self, *error: Any) -> object:
        try:
            return await self._thread.run(partial(self._step, "throw", _thrown(error[-1])))
        except Ended:
            raise StopAsyncIteration from None

    async def aclose(self) -> None:
        await self._thread.run(self._close)


class _Steps(_Stream, Generator[object, object, object]):
    def send(self, value: object) -> object:
        how = "next" if value is None else "send"
        try:
            return self._thread.call(partial(self._step, how, value))
        except Ended as end:
            raise StopIteration(end.args[0]) from None

    def throw(self, *error: Any) -> object:
        try:
            return self._thread.call(partial(self._step, "throw", _thrown(error[-1])))
        except Ended as end:
            raise StopIteration(end.args[0]) from None

    def close(self) -> None:
        self._thread.call(self._close)
