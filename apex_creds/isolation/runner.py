"""Runs plugins behind the wall: a warm worker for each, whose calls look like any other.

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
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import suppress
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, Self, TypeVar
from weakref import finalize

import anyio.to_thread
import msgspec

import apex_creds
from apex_creds.concurrency import LoopThread, Place, Semaphore, run_at
from apex_creds.errors import (
    HandleRevokedError,
    InvalidInputError,
    IsolationError,
    WorkerEndedError,
)
from apex_creds.isolation import fork_server, redeeming
from apex_creds.isolation.channel import Channel, Ended, Remote
from apex_creds.isolation.code import Code, code_of
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.environment import Held, Surroundings, held_by
from apex_creds.isolation.frames import Codec, failure_of
from apex_creds.isolation.gateway import Gateway
from apex_creds.isolation.placeholders import Placeholders
from apex_creds.isolation.programs import serve, sockets_of, way_out
from apex_creds.isolation.sandbox import Limits, Wall, Walled, packages
from apex_creds.isolation.worker import AWAITABLE, SYNC_STREAM, Calling
from apex_creds.leases.handle import CredentialHandle, current_credentials
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
        self.limits = limits or Limits()
        self.max_calls = plain_count(max_calls, what="max_calls")
        self.timeout = None if timeout is None else plain_seconds(timeout, what="timeout")
        self.processes = processes
        self.reentrant = reentrant
        self.folders = tuple(Path(os.path.realpath(each)) for each in folders)
        self.dialer = dialer
        self.thread = LoopThread("apex-creds-isolation")
        self._plugins: dict[tuple[str, Path], _Plugin] = {}
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
            plugin = self._plugins.setdefault(key, _Plugin(self, manifest.plugin, code.folder))
        given = {**code.given, **kwargs}
        return _Call(plugin, code, (*code.bound, *args), given, place)

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
        plugin: _Plugin,
        code: Code,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        place: Place | None,
    ) -> None:
        self.id = str(next(_numbers))
        self.invocation: Invocation | None = current_invocation()
        self.place = place
        self.context = contextvars.copy_context()
        self.callbacks: dict[int, Callable[..., object]] = {}
        self.worker: _Worker | None = None
        self._plugin = plugin
        self._code = code
        self._args = args
        self._kwargs = kwargs
        self._turn: Any = None

    async def run(self) -> object:
        """Runs it, in the runner's thread."""
        turn = self._plugin.turns.held()
        await turn.__aenter__()
        self._turn = turn
        result: object = None
        try:
            held = [] if self.invocation is None else await held_by(self.invocation)
            stamp = (*self._code.stamp(), *map(_what, held))
            # Nothing of this call's invocation is in what outlives it.
            starts = asyncio.get_running_loop().create_task(
                self._plugin.ready(stamp, held), context=contextvars.Context()
            )
            worker = self.worker = await starts
            worker.calls[self.id] = self
            try:
                async with asyncio.timeout(self._plugin.runner.timeout):
                    result = await worker.channel.ask("call", worker.plain(self, self._said()))
            except TimeoutError:
                raise IsolationError(
                    f"The plugin did not answer in {self._plugin.runner.timeout:g} s.",
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
                handles=[redeeming.told(each) for each in handles.values()],
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


def _what(held: Held) -> tuple[object, ...]:
    """What the surroundings of a worker are made from."""
    return held.info.name, held.info.delivery, held.origins


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


# -- a plugin's sandbox and worker -----------------------------------------------------------


class _Plugin:
    """What there is for one plugin; lives in the runner's thread."""

    def __init__(self, runner: IsolatedRunner, plugin: str, folder: Path) -> None:
        self.runner = runner
        self.id = plugin
        self.turns = Semaphore(2**31 if plugin in runner.reentrant else 1)
        self._folder = folder
        self._stamp: tuple[object, ...] = ()
        self._starting = Semaphore()
        self._sandbox: _Sandbox | None = None
        self._worker: _Worker | None = None

    async def ready(self, stamp: tuple[object, ...], held: list[Held]) -> _Worker:
        """The worker, replaced where its code has changed, it has ended, or did enough.

        Args:
            stamp: Another one where its code is, or what it holds.
            held: The credentials that it may send.
        """
        async with self._starting.held():
            if stamp != self._stamp or self._sandbox is None or self._sandbox.ended:
                await self.end("its code has changed, or what it may send")
                self._sandbox = await self._started(held)
                self._stamp = stamp
            worker = self._worker
            enough = worker is not None and worker.count >= self.runner.max_calls
            if enough and worker is not None and not worker.calls:
                worker.kill("it has done enough calls")
            if worker is None or worker.channel.ended.done():
                worker = self._worker = await self._sandbox.fork(self.id)
            worker.count += 1
            return worker

    async def _started(self, held: list[Held]) -> _Sandbox:
        gateway, found = None, Surroundings({}, {}, Placeholders({}))
        if held:
            gateway, found = way_out(held, self._running, dialer=self.runner.dialer)
        return await _Sandbox.start(self.runner, self._folder, gateway, found)

    def _running(self) -> Invocation | None:
        """The invocation that runs in the worker, if it is one."""
        calls = [] if self._worker is None else [*self._worker.calls.values()]
        return calls[0].invocation if len(calls) == 1 else None

    async def end(self, why: str) -> None:
        """Ends all of it."""
        sandbox, self._sandbox = self._sandbox, None
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill(why)
        if sandbox is not None:
            await sandbox.close()


class _Sandbox:
    """A wall with a fork server behind it."""

    def __init__(self, walled: Walled, control: socket.socket, gateway: Gateway | None) -> None:
        self._walled = walled
        self._control = control
        self._gateway = gateway
        self._forking: asyncio.Future[tuple[int, int]] | None = None
        self._workers: dict[int, _Worker] = {}
        self.ended = False
        asyncio.get_running_loop().add_reader(control, self._readable)

    @classmethod
    async def start(
        cls, runner: IsolatedRunner, folder: Path, gateway: Gateway | None, found: Surroundings
    ) -> _Sandbox:
        """Starts it.

        Args:
            runner: Whose limits it has.
            folder: The plugin's.
            gateway: Answers what its SDKs send; None: nobody does.
            found: What it finds there.
        """
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        places = [*packages(), _HERE, *map(str, runner.folders)]
        script = (
            f"import sys; sys.path += [each for each in {places!r} if each not in sys.path]; "
            "from apex_creds.isolation.fork_server import main; "
            f"main({theirs.fileno()}, processes={runner.processes})"
        )
        try:
            with theirs:
                walled = await Wall(
                    command=[sys.executable, "-I", "-c", script],
                    folders=[folder, *runner.folders],
                    descriptors=[theirs.fileno()],
                    limits=runner.limits,
                    environment={**_VARIABLES, **found.variables},
                    files=found.files,
                    listen=[] if gateway is None else sockets_of(found),
                    unix_sockets=bool(found.logins),
                ).start(stdout=_DEVNULL, stderr=_DEVNULL)
        except BaseException:
            control.close()
            raise
        control.setblocking(False)
        if gateway is not None:
            await serve(gateway, found, walled.listeners)
        return cls(walled, control, gateway)

    async def fork(self, plugin: str) -> _Worker:
        """A new worker."""
        ours, theirs = socket.socketpair()
        forking = self._forking = asyncio.get_running_loop().create_future()
        try:
            with theirs:
                socket.send_fds(self._control, [fork_server.FORK], [theirs.fileno()])
            async with asyncio.timeout(START_WITHIN):
                pid, process = await forking
        except (OSError, TimeoutError):
            ours.close()
            await self.close()
            raise IsolationError(
                "The plugin's worker could not be started.",
                hint="See apex-creds doctor, and the limits of the runner.",
            ) from None
        worker = self._workers[pid] = _Worker(plugin, process)
        await worker.connect(ours)
        return worker

    def _readable(self) -> None:
        try:
            said, descriptors, _, _ = socket.recv_fds(self._control, 128, 1)
        except BlockingIOError:
            return
        except OSError:
            said, descriptors = b"", []
        words = said.decode("ascii", "replace").split()
        if words[:1] == ["forked"] and descriptors and self._forking is not None:
            if not self._forking.done():
                self._forking.set_result((int(words[1]), descriptors[0]))
                return
        elif words[:1] == ["ended"]:
            worker = self._workers.pop(int(words[1]), None)
            if worker is not None:
                worker.reaped(int(words[2]))
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if not said:
            self._hung_up()

    def _hung_up(self) -> None:
        self.ended = True
        if self._control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._control)
        if self._forking is not None and not self._forking.done():
            self._forking.set_exception(ConnectionResetError())
        for worker in self._workers.values():
            worker.reaped(-signal.SIGKILL)

    async def close(self) -> None:
        """Ends everything behind the wall."""
        self._hung_up()
        self._control.close()
        if self._gateway is not None:
            await self._gateway.close()
        await anyio.to_thread.run_sync(self._walled.close)


_VARIABLES: Final = {"MALLOC_ARENA_MAX": "2", "PYTHONDONTWRITEBYTECODE": "1"}
_DEVNULL: Final = subprocess.DEVNULL


class _Worker:
    """The host's end of a worker; does what its handles ask for."""

    channel: Channel

    def __init__(self, plugin: str, process: int) -> None:
        self.plugin = plugin
        self.count = 0
        self.calls: dict[str, _Call] = {}
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._process = process
        self._packing: _Call | None = None
        self._numbers = itertools.count(1)
        self._loggers: set[str] = set()

    async def connect(self, connection: socket.socket) -> None:
        """Begins to serve it."""
        self._codec = Codec(self._leaves, self._arrives)
        self.channel = await Channel.over(connection, self, self._codec)
        self.channel.ended.add_done_callback(lambda _: self.kill(""))

    # -- its life ------------------------------------------------------------------------

    def kill(self, why: str) -> None:
        """Ends the process, if it has not ended; idempotent."""
        process, self._process = self._process, -1
        if process < 0:
            return
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)
        self.channel.close(why)

    def reaped(self, status: int) -> None:
        """It has ended; with this status."""
        if not self.status.done():
            self.status.set_result(status)
        self.kill("")

    async def raise_why(self) -> NoReturn:
        """Says what is known of its end.

        Raises:
            WorkerEndedError: Always.
        """
        why = self.channel.why
        if not why:
            with suppress(TimeoutError):
                status = await asyncio.wait_for(asyncio.shield(self.status), 5.0)
                why = f"exit status {status}" if status >= 0 else _signal(-status)
        raise WorkerEndedError(
            f"The process of plugin {self.plugin} has ended{f': {why}' if why else ''}.",
            hint="Call it again: a new one is started. Its limits are the runner's.",
        ) from None

    # -- values --------------------------------------------------------------------------

    def plain(self, call: _Call, value: object) -> object:
        """What a call is given, with what stands for its callbacks and handles."""
        self._packing = call
        try:
            return self._codec.plain(value)
        finally:
            self._packing = None

    def _leaves(self, value: object) -> object | None:
        if self._packing is None:
            return None
        if isinstance(value, CredentialHandle):
            return ["handle", redeeming.told(value)]
        if callable(value) and not isinstance(value, type):
            number = next(self._numbers)
            self._packing.callbacks[number] = value
            call = getattr(value, "__call__", None)  # noqa: B004 - its own
            waits = inspect.iscoroutinefunction(value) or inspect.iscoroutinefunction(call)
            return ["callback", number, waits]
        return None

    def _arrives(self, value: object) -> object:
        match value:
            case ["upload", int(number)]:
                return redeeming.Pieces(partial(self._uploaded, number))
        raise ValueError

    async def _uploaded(self, number: int) -> AsyncIterator[bytes]:
        remote = await self.channel.ask("upload", number)
        if not isinstance(remote, Remote):
            raise InvalidInputError("A request's body comes in pieces.")
        try:
            while True:
                piece = await remote.step()
                if not isinstance(piece, bytes):
                    raise InvalidInputError("A piece of a request's body is bytes.")
                yield piece
        except Ended:
            return
        finally:
            await remote.close()

    # -- serving -------------------------------------------------------------------------

    def context(self, value: object) -> contextvars.Context | None:
        """That of the call which it is for."""
        call = self._call_of(value)
        return None if call is None else call.context

    def _call_of(self, value: object) -> _Call | None:
        if not isinstance(value, list) or not value or not isinstance(value[0], str):
            return None
        return self.calls.get(value[0])

    async def serve(self, what: str, value: object) -> object:
        """What the plugin asks for, in a call of it that goes on."""
        call = self._call_of(value)
        if call is None or not isinstance(value, list):
            raise HandleRevokedError("The call that this belongs to is over.")
        try:
            if what == "callback":
                kinds = tuple[int, list[Any], dict[str, Any]]
                number, args, kwargs = msgspec.convert(value[1:], kinds)
                return await call.called_back(number, args, kwargs)
            does = redeeming.find(what)
            if does is None:
                raise InvalidInputError("There is nothing of that name here.")
            return await does(value[1:])
        except (msgspec.ValidationError, TypeError) as error:
            raise InvalidInputError(f"An argument is of another type: {error}"[:300]) from None

    def heard(self, what: str, value: object) -> None:
        """A line, or a log record."""
        match value:
            case [str(), [str(name), int(level), str(text)]] if what == "log":
                self._logged(value, name, level, text)
            case [str(), [str(name), str(text)]] if what == "print":
                self._logged(value, f"{_OUTPUT}.{name[:6]}", logging.INFO, text)

    def _logged(self, value: object, name: str, level: int, text: str) -> None:
        own = name.startswith(apex_creds.__name__) and not name.startswith(_OUTPUT)
        known = name in logging.root.manager.loggerDict or name in self._loggers
        if own or len(name) > 200 or (not known and len(self._loggers) >= _MOST_LOGGERS):
            name = _OUTPUT
        self._loggers.add(name)
        logger = logging.getLogger(name)
        level = min(max(level, 1), logging.CRITICAL)
        if not logger.isEnabledFor(level):
            return
        record = logger.makeRecord(name, level, self.plugin, 0, text[:65536], (), None)
        call = self._call_of(value)
        if call is None:
            logger.handle(record)
        else:
            call.context.copy().run(logger.handle, record)


def _signal(number: int) -> str:
    try:
        return f"ended by {signal.Signals(number).name}"
    except ValueError:
        return f"ended by signal {number}"
