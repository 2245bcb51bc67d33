"""The plugin's own process: imports its code, runs its actions, has no secret.

Guarantee: the plugin's code is imported here and nowhere else. The main thread has its event
loop; another thread has the socket, so that a plugin which blocks its loop can still ask the
host, and be asked to stop. What a plugin prints and logs goes to the host's log.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, TypeVar, cast

import msgspec

from apex_creds.errors import InvalidInputError
from apex_creds.isolation import remote_handles
from apex_creds.isolation.channel import Channel, opened
from apex_creds.isolation.frames import Calling, Codec, Target
from apex_creds.isolation.remote_handles import Call, CurrentMap, RemoteMap, Upload
from apex_creds.isolation.worker_calls import Running, in_thread, invoked

T = TypeVar("T")


def warm_up() -> None:
    """Imports what workers need, once for all of them."""
    import httpx  # noqa: F401

    remote_handles.stand_in()
    from apex_creds.leases import http_client  # noqa: F401


def main(connection: int) -> None:
    """Serves the host until it hangs up."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = Worker(loop)
    sockets = threading.Thread(
        target=worker.serve_socket, args=(socket.socket(fileno=connection),), daemon=True
    )
    sockets.start()
    loop.run_forever()


class Worker:
    """Does what the host asks for.

    Args:
        loop: The plugin's.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._plugins = loop
        self._sockets: asyncio.AbstractEventLoop | None = None
        self._channel: Channel | None = None
        self._uploads: dict[int, Upload] = {}
        self._modules: dict[tuple[str, str], ModuleType] = {}
        self._instances: dict[bytes, object] = {}
        self._loading = threading.Lock()

    # -- the socket's thread -----------------------------------------------------------

    def serve_socket(self, connection: socket.socket) -> None:
        """The whole life of that thread, and of the process."""
        try:
            asyncio.run(self._serve(connection))
        finally:
            os._exit(0)

    async def _serve(self, connection: socket.socket) -> None:
        self._sockets = asyncio.get_running_loop()
        codec = Codec(self._leaves, self._arrives)
        self._channel = await Channel.over(connection, self, codec)
        sys.stdout = _Lines(self, "stdout")
        sys.stderr = _Lines(self, "stderr")
        logging.getLogger().addHandler(_Records(self))
        await self._channel.ended

    def _leaves(self, value: object) -> object | None:
        if isinstance(value, Upload):
            self._uploads[id(value)] = value
            return ["upload", id(value)]
        return None

    def _arrives(self, value: object) -> object:
        match value:
            case ["callback", int(number), bool(waits)]:
                return Callback(self, number, waits=waits)
            case ["handle", list(fields)]:
                return remote_handles.known(remote_handles.RemoteHandle(fields))
        raise InvalidInputError("This can't be used here.")

    def context(self, _: object) -> None:
        """Any: each call has its own, in the plugin's loop."""

    def on_notification(self, what: str, value: object) -> None:
        """The host says nothing yet."""

    def serve(self, what: str, value: object) -> Awaitable[object]:
        """What the host asks for."""
        if what == "call":
            return self._called(msgspec.convert(value, Calling))
        if what == "upload":
            return self._uploaded(cast("int", value))
        raise InvalidInputError("There is nothing of that name here.")

    async def _uploaded(self, number: int) -> object:
        return opened(self._uploads.pop(number).steps())

    def notify(self, what: str, value: object) -> None:
        """Tells the host, from any thread."""
        sockets, channel = self._sockets, self._channel
        if sockets is not None and channel is not None:
            call = remote_handles.current.get()
            message = [call.id if call is not None else "", value]
            with suppress(RuntimeError):
                sockets.call_soon_threadsafe(channel.notify, what, message)

    # -- asking the host, for handles ----------------------------------------------------

    def _begin(self, work: Callable[[], Awaitable[T]]) -> Future[T]:
        assert self._sockets is not None

        async def does() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(does(), self._sockets)

    async def over(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does something in the socket's loop."""
        return await asyncio.wrap_future(self._begin(work))

    def over_blocking(self, work: Callable[[], Awaitable[T]]) -> T:
        """As ``over``, in any thread but that one."""
        return self._begin(work).result()

    async def ask(self, what: str, value: object) -> object:
        """Has the host do something."""
        assert self._channel is not None
        return await self.over(functools.partial(self._channel.ask, what, value))

    def ask_blocking(self, what: str, value: object) -> object:
        """As ``ask``, in any thread."""
        assert self._channel is not None
        return self.over_blocking(functools.partial(self._channel.ask, what, value))

    # -- calls ---------------------------------------------------------------------------

    async def _called(self, calling: Calling) -> object:
        """Runs a call in the plugin's loop; its streams stay there, too."""
        handles = [
            remote_handles.known(remote_handles.RemoteHandle(each)) for each in calling.handles
        ]
        credentials = RemoteMap({each.name: each for each in handles})
        call = Call(calling.id, calling.plugin, credentials, self)
        context = contextvars.Context()
        context.run(remote_handles.current.set, call)
        running = Running(self._plugins, context, end=lambda: remote_handles.forget(handles))
        return await running.first(functools.partial(self._run, calling))

    async def _run(self, calling: Calling) -> object:
        logging.getLogger().setLevel(calling.log_level)
        function = await in_thread(self._function, calling.target)
        kwargs = calling.kwargs
        dispatcher = getattr(getattr(function, "__self__", None), "execute_action", None)
        if calling.target.dispatched and callable(dispatcher):
            parameters = inspect.signature(dispatcher).parameters
            kinds = {each.kind for each in parameters.values()}
            if inspect.Parameter.VAR_KEYWORD not in kinds and "params" in parameters:
                kwargs = {"params": kwargs}
            function = functools.partial(dispatcher, calling.target.method)
        elif _takes_credentials(function):
            kwargs = {**kwargs, "credentials": _CURRENT}
        return await invoked(function, calling.args, kwargs, calling.in_turn)

    def _function(self, target: Target) -> Callable[..., object]:
        """What is to be called; imports it first."""
        with self._loading:
            found: Any = self._module(target)
            for name in target.name.split("."):
                if target.method or not inspect.isclass(found):
                    found = getattr(found, name)
                else:  # a method that was named by its class
                    found = getattr(self._instance(target, found), name)
            if not target.method:
                return cast("Callable[..., object]", found)
            instance = self._instance(target, found)
        return cast("Callable[..., object]", getattr(instance, target.method))

    def _module(self, target: Target) -> ModuleType:
        key = (target.root, target.module)
        if key in self._modules:
            return self._modules[key]
        if target.root not in sys.path:
            sys.path.insert(0, target.root)
        importlib.invalidate_caches()
        file = os.path.join(target.root, f"{target.module}.py")
        if "." in target.module or not os.path.isfile(file):
            module = importlib.import_module(target.module)
        else:  # whatever else has that name
            name = target.module
            if name in sys.modules and getattr(sys.modules[name], "__file__", "") != file:
                name = f"plugin_{name}"
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return self._modules.setdefault(key, module)

    def _instance(self, target: Target, kind: type) -> object:
        """The plugin's object: one as long as this process lives."""
        key = msgspec.msgpack.encode([target.root, target.module, kind.__qualname__])
        if key not in self._instances:
            made = self._instances[key] = kind(**_taken(kind, target.made_with))
            for name in dir(kind):  # as the hook does it in the host
                if not name.startswith("__") and _takes_credentials(getattr(made, name, None)):
                    bound = _Bound(getattr(made, name), credentials=_CURRENT)
                    setattr(made, name, bound)
                    bound.__self__ = made  # type: ignore[attr-defined]
            if target.initialized:
                cast("Any", made).initialize()
        return self._instances[key]


_CURRENT: Final = CurrentMap()


class _Bound(functools.partial[Any]):
    """A method with its handles."""


def _taken(kind: type, given: Mapping[str, object]) -> dict[str, object]:
    """What its constructor takes of what there is."""
    try:
        parameters = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        return {}
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}


def _takes_credentials(function: object) -> bool:
    if not callable(function) or isinstance(function, _Bound):
        return False
    from apex_creds.middleware.callables import takes_credentials

    return takes_credentials(function)


class Callback:
    """A function of the host's that was passed to the plugin: called there, in its loop."""

    def __init__(self, worker: Worker, number: int, *, waits: bool) -> None:
        self._worker = worker
        self._number = number
        self._waits = waits

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Has the host call it."""
        call = remote_handles.current.get()
        value = [call.id if call is not None else "", self._number, args, kwargs]
        if self._waits:
            return self._worker.ask("callback", value)
        return self._worker.ask_blocking("callback", value)


class _Lines:
    """Standard output, line by line."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, worker: Worker, name: str) -> None:
        self._worker = worker
        self._name = name
        self._begun = ""

    def write(self, text: str) -> int:
        """Sends what is a whole line."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._worker.notify("print", [self._name, line[:8192]])
        if len(self._begun) > 8192:
            self._worker.notify("print", [self._name, self._begun[:8192]])
            self._begun = ""
        return len(text)

    def flush(self) -> None:
        """Lines are whole."""

    def isatty(self) -> bool:
        """It is none."""
        return False


class _Records(logging.Handler):
    """Log records, as texts."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self._worker = worker

    def emit(self, record: logging.LogRecord) -> None:
        """Sends it."""
        try:
            text = record.getMessage()
            if record.exc_info:
                text += "\n" + "".join(traceback.format_exception(*record.exc_info))
            self._worker.notify("log", [record.name, record.levelno, text[:65536]])
        except Exception:  # noqa: BLE001 - as logging has it
            self.handleError(record)
