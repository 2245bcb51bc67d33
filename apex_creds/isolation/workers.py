"""The host's end of workers: what there is for each plugin, its sandbox, its process.

Guarantee: a worker that ends leaves no process, descriptor or mount. What a worker's handles
ask for is done in the invocation that they belong to, and what it says is plain data.
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
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import anyio.to_thread
import msgspec

import apex_creds
from apex_creds.concurrency import Semaphore
from apex_creds.errors import (
    HandleRevokedError,
    InvalidInputError,
    IsolationError,
    WorkerEndedError,
)
from apex_creds.isolation import fork_server, redeeming
from apex_creds.isolation.channel import Channel, Ended, Remote
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.environment import Surroundings
from apex_creds.isolation.frames import Codec
from apex_creds.isolation.gateway import Gateway
from apex_creds.isolation.invocations import Held
from apex_creds.isolation.placeholders import Placeholders
from apex_creds.isolation.programs import serve, sockets_of, way_out
from apex_creds.isolation.sandbox import Limits, Wall, Walled, packages
from apex_creds.isolation.worker_calls import USED_UP
from apex_creds.leases.handle import CredentialHandle
from apex_creds.leases.lease import Invocation

START_WITHIN: Final = 60.0
_OUTPUT: Final = "apex_creds.isolation.output"
_MOST_LOGGERS: Final = 64
_HERE: Final = os.path.dirname(os.path.dirname(os.path.abspath(apex_creds.__file__)))
_VARIABLES: Final = {"MALLOC_ARENA_MAX": "2", "PYTHONDONTWRITEBYTECODE": "1"}
_DEVNULL: Final = subprocess.DEVNULL


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What workers are started with; see ``IsolatedRunner``."""

    limits: Limits
    max_calls: int
    processes: bool
    reentrant: frozenset[str]
    folders: tuple[Path, ...]
    dialer: Dialer | None


class RunningCall(Protocol):
    """A call in a worker, as far as the worker's requests are concerned.

    Attributes:
        invocation: That it belongs to; None: it has none.
        context: What is done for it is done in.
        callbacks: The functions among its arguments, by the number that stands for each.
    """

    invocation: Invocation | None
    context: contextvars.Context
    callbacks: dict[int, Callable[..., object]]

    async def called_back(self, number: int, args: list[Any], kwargs: dict[str, Any]) -> object:
        """Calls one of these functions, where its caller is."""


class PluginWorkers:
    """What there is for one plugin; lives in the runner's thread."""

    def __init__(self, options: Options, plugin: str, folder: Path) -> None:
        self.options = options
        self.id = plugin
        self.turns = Semaphore(2**31 if plugin in options.reentrant else 1)
        self._folder = folder
        self._stamp: tuple[object, ...] = ()
        self._starting = Semaphore()
        self._sandbox: _Sandbox | None = None
        self._worker: Worker | None = None

    async def ready(self, stamp: tuple[object, ...], held: list[Held]) -> Worker:
        """The worker, replaced where its code has changed, it has ended, or did enough.

        Args:
            stamp: Another one where its code is, or what it holds.
            held: The credentials that it may send.
        """
        async with self._starting.held():
            worker = self._worker
            enough = worker is not None and worker.count >= self.options.max_calls
            if enough and worker is not None and not worker.calls:
                worker.kill("it has done enough calls")
            # What a worker that has ended began may go on in its sandbox.
            left = worker is not None and worker.channel.ended.done()
            stale = stamp != self._stamp or (self.options.processes and left)
            if self._sandbox is None or self._sandbox.ended or stale:
                await self.end("its code has changed, or what it may send")
                self._sandbox = await self._started(held)
                self._stamp = stamp
            worker = self._worker
            if worker is None or worker.channel.ended.done():
                worker = self._worker = await self._sandbox.fork(self.id)
            worker.count += 1
            return worker

    async def _started(self, held: list[Held]) -> _Sandbox:
        gateway, found = None, Surroundings({}, {}, Placeholders({}))
        if held:
            gateway, found = way_out(held, self._running, dialer=self.options.dialer)
        return await _Sandbox.start(self.options, self._folder, gateway, found)

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
        self._workers: dict[int, Worker] = {}
        self.ended = False
        asyncio.get_running_loop().add_reader(control, self._readable)

    @classmethod
    async def start(
        cls, options: Options, folder: Path, gateway: Gateway | None, found: Surroundings
    ) -> _Sandbox:
        """Starts it.

        Args:
            options: What it is started with.
            folder: The plugin's.
            gateway: Answers what its SDKs send; None: nobody does.
            found: What it finds there.
        """
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        places = [*packages(), _HERE, *map(str, options.folders)]
        script = (
            f"import sys; sys.path += [each for each in {places!r} if each not in sys.path]; "
            "from apex_creds.isolation.fork_server import main; "
            f"main({theirs.fileno()}, processes={options.processes})"
        )
        try:
            with theirs:
                walled = await Wall(
                    command=[sys.executable, "-I", "-c", script],
                    folders=[folder, *options.folders],
                    descriptors=[theirs.fileno()],
                    limits=options.limits,
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

    async def fork(self, plugin: str) -> Worker:
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
        worker = self._workers[pid] = Worker(plugin, process)
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


class Worker:
    """The host's end of a worker; does what its handles ask for."""

    channel: Channel

    def __init__(self, plugin: str, process: int) -> None:
        self.plugin = plugin
        self.count = 0
        self.calls: dict[str, RunningCall] = {}
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._process = process
        self._packing: RunningCall | None = None
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
                if status == USED_UP:
                    why = "earlier calls in it have used up its threads"
                else:
                    why = f"exit status {status}" if status >= 0 else _signal(-status)
        raise WorkerEndedError(
            f"The process of plugin {self.plugin} has ended{f': {why}' if why else ''}.",
            hint="Call it again: a new one is started. Its limits are the runner's.",
        ) from None

    # -- values --------------------------------------------------------------------------

    def plain(self, call: RunningCall, value: object) -> object:
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
            return ["handle", redeeming.described(value)]
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

    def _call_of(self, value: object) -> RunningCall | None:
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

    def on_notification(self, what: str, value: object) -> None:
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
