"""One end of the socket between the host and a worker: asks, answers, streams.

Guarantee: a stream's step is run when it is asked for and not before, so its consumer sets
the pace; a request is cancelled when its caller is; the end of the other side is an
error for all that waits for it, at once. The other side can make this one do no more than
``MOST_OPEN`` things at a time, hold no more than one frame of each, and of what it asks for no
more than ``MOST_HELD``.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Final, Protocol

from apex_creds.errors import InvalidInputError, WorkerEndedError
from apex_creds.isolation.frames import (
    LARGEST,
    Cancel,
    Codec,
    Failed,
    Failure,
    Frame,
    Item,
    Notification,
    Opened,
    ProtocolError,
    Request,
    Response,
    Step,
    error_of,
    failure_of,
)

MOST_OPEN: Final = 128
MOST_HELD: Final = 4 * LARGEST
"""Bytes."""
CANCEL_WITHIN: Final = 5.0
"""Seconds that what was cancelled may take to end, before its side is given up."""
_LENGTH: Final = struct.Struct(">I")
STREAM: Final = "stream"


class Serving(Protocol):
    """Does what the other side asks for."""

    def serve(self, what: str, value: object) -> Awaitable[object]:
        """Its value, or an ``Open``."""

    def on_notification(self, what: str, value: object) -> None:
        """What the other side said."""

    def context(self, value: object) -> contextvars.Context | None:
        """What it is done in, by the value that comes with it."""


class Open:
    """A result that goes on: its kind, and its steps.

    Args:
        kind: As the other side is to know it.
        step: Runs one step; ``StopAsyncIteration`` with a value ends it.
        close: Ends it before its end.
    """

    __slots__ = ("close", "kind", "step")

    def __init__(
        self,
        kind: str,
        step: Callable[[str, object], Awaitable[object]],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        self.kind = kind
        self.step = step
        self.close = close


class Ended(Exception):  # noqa: N818 - no error: a stream has come to its end
    """The end of what is open; its argument is the value."""


class Channel:
    """One end; made by ``over``, in the event loop that it lives in.

    Attributes:
        ended: Done when the other side has ended, or this one was closed.
        why: What is known about that.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        serving: Serving,
        codec: Codec,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._serving = serving
        self._codec = codec
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._served: dict[int, _Served] = {}
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.why = ""
        self._reading = asyncio.ensure_future(self._run())

    @classmethod
    async def over(cls, connection: socket.socket, serving: Serving, codec: Codec) -> Channel:
        """One end.

        Args:
            connection: Belongs to it from here on.
            serving: Does what the other side asks for.
            codec: Writes and reads frames.
        """
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        return cls(reader, writer, serving, codec)

    # -- asking ----------------------------------------------------------------------

    async def ask(self, what: str, value: object = None) -> object:
        """Has the other side do something.

        Returns:
            Its value, or what goes on there.

        Raises:
            WorkerEndedError: The other side has ended.
            Exception: What it raised there.
        """
        number = next(self._ids)
        frame = await self._asked(number, Request(number, what, self._codec.plain(value)))
        if isinstance(frame, Opened):
            return Remote(self, number, frame.kind)
        return _value_of(frame)

    def notify(self, what: str, value: object = None) -> None:
        """Has the other side know something; nothing where it has ended."""
        with suppress(WorkerEndedError, InvalidInputError):
            self.send(Notification(what, self._codec.plain(value)))

    async def step(self, number: int, how: str, value: object) -> object:
        """One step of what is open there."""
        frame = await self._asked(number, Step(number, how, self._codec.plain(value)))
        if isinstance(frame, Item):
            return frame.value
        if isinstance(frame, Opened):  # what was awaited is a stream
            raise Ended(Remote(self, number, frame.kind))
        raise Ended(_value_of(frame))

    async def _asked(self, number: int, frame: Frame) -> Frame:
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._check_alive()
        self._waiting[number] = future
        try:
            self.send(frame)
            await self.drain()
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not future.done():
                with suppress(WorkerEndedError):
                    self.send(Cancel(number))
                done, _ = await asyncio.wait({future}, timeout=CANCEL_WITHIN)
                if not done:
                    self.close("it did not end when it was cancelled")
            raise
        finally:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()

    # -- the socket --------------------------------------------------------------------

    def _check_alive(self) -> None:
        if self.ended.done():
            raise self._gone()

    def _gone(self) -> WorkerEndedError:
        return WorkerEndedError(
            f"The plugin's process has ended{f': {self.why}' if self.why else ''}.",
            hint="Call it again: a new one is started.",
        )

    def send(self, frame: Frame) -> None:
        """Sends a frame.

        Raises:
            WorkerEndedError: The other side has ended.
            InvalidInputError: It is too large.
        """
        self._check_alive()
        data = self._codec.encode(frame)
        self._writer.write(_LENGTH.pack(len(data)) + data)

    async def drain(self) -> None:
        """Waits until the other side has read what it was sent, or has ended."""
        with suppress(ConnectionError):
            await self._writer.drain()

    async def _run(self) -> None:
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if length > LARGEST:
                    self.close("it sent a frame that is too large")
                    return
                data = await self._reader.readexactly(length)
                self._received(self._codec.decode(data), length)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.close()
        except ProtocolError as error:
            self.close(error.message)
        except Exception as error:  # noqa: BLE001 - or those that wait would wait for ever
            self.close(f"its frames could not be handled: {type(error).__name__}")

    def close(self, why: str = "") -> None:
        """Ends it: all that waits fails, all that is served is cancelled. Idempotent."""
        if self.ended.done():
            return
        self.why = self.why or why
        self.ended.set_result(None)
        self._writer.transport.abort()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._gone())
        for served in list(self._served.values()):
            served.cancel()
        if self._reading is not asyncio.current_task():
            self._reading.cancel()

    # -- serving -----------------------------------------------------------------------

    def _received(self, frame: Frame, length: int) -> None:
        match frame:
            case Request():
                held = length + sum(each.length for each in self._served.values())
                many = len(self._served) >= MOST_OPEN or held > MOST_HELD
                if frame.id in self._served or many:
                    raise ProtocolError("The other side asks for too much at once.")
                served = self._served[frame.id] = _Served(self, frame.id, length)
                served.context = self._serving.context(frame.value)
                served.start(partial(self._serving.serve, frame.what, frame.value))
            case Step():
                stepped = self._served.get(frame.id)
                if stepped is None or not stepped.run_step(frame):
                    raise ProtocolError("The other side stepped what is not open.")
            case Cancel():
                if frame.id in self._served:
                    self._served[frame.id].cancel_step()
            case Notification():
                self._serving.on_notification(frame.what, frame.value)
            case _:
                future = self._waiting.get(frame.id)
                if future is not None and not future.done():
                    future.set_result(frame)

    def reply(self, make: Callable[[Codec], Frame], number: int) -> None:
        """Sends what ended or went on; in its place why that can't be sent."""
        try:
            frame = make(self._codec)
            self.send(frame)
        except InvalidInputError as error:
            served = self._served.pop(number, None)
            self.send(Failed(number, failure_of(error)))
            if served is not None:
                served.cancel()

    def forget(self, number: int) -> None:
        """It is not open any more."""
        self._served.pop(number, None)


class _Served:
    """Something that the other side has asked for, until its end.

    It has not ended, and takes no further step, before there is room for its answer: who reads
    none can't have more of them held than there may be open.
    """

    __slots__ = ("_channel", "_number", "_open", "_task", "_works", "context", "length")

    def __init__(self, channel: Channel, number: int, length: int) -> None:
        self._channel = channel
        self._number = number
        self.length = length
        self._open: Open | None = None
        self._task: asyncio.Task[None] | None = None
        self._works = False
        self.context: contextvars.Context | None = None

    def start(self, work: Callable[[], Awaitable[object]]) -> None:
        self._run(self._first(work))

    def run_step(self, step: Step) -> bool:
        if self._open is None or self._task is not None:
            return False
        self._run(self._next(self._open, step))
        return True

    def _run(self, steps: Coroutine[object, object, None]) -> None:
        """In a task that answers, also when it is cancelled before it has begun."""
        task = asyncio.get_running_loop().create_task(steps, context=self.context)
        self._task, self._works = task, True
        task.add_done_callback(self._not_begun)

    def _not_begun(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.exception()
        elif self._channel.ended.done():
            self._channel.forget(self._number)
        else:
            self._run(self._failed(asyncio.CancelledError()))

    def cancel_step(self) -> None:
        if self._task is not None and self._works:
            self._task.cancel()

    def cancel(self) -> None:
        """Its asker is gone."""
        opened, self._open = self._open, None
        self.cancel_step()
        if opened is not None:
            closing = asyncio.get_running_loop().create_task(
                _quietly(opened.close()), context=self.context
            )
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)

    async def _first(self, work: Callable[[], Awaitable[object]]) -> None:
        value: object = None
        try:
            value = await work()
        except BaseException as error:  # noqa: BLE001 - it is for the other side
            await self._failed(error)
            return
        await self._finished(value)

    async def _finished(self, value: object) -> None:
        """Answers; what goes on stays open."""
        await self._room()
        number = self._number
        if isinstance(value, Open):
            self._open, self._task = value, None
            kind = value.kind
            if self._channel.ended.done():
                self.cancel()
            self._reply(lambda _: Opened(number, kind))
            return
        self._channel.forget(number)
        self._reply(lambda codec: Response(number, codec.plain(value)))

    async def _next(self, opened: Open, step: Step) -> None:
        number, value, ends = self._number, None, False
        try:
            value = await opened.step(step.how, step.value)
        except Ended as end:
            value, ends = end.args[0], True
        except BaseException as error:  # noqa: BLE001 - it is for the other side
            await self._failed(error)
            return
        if ends:
            await self._finished(value)
            return
        await self._room()
        self._task = None
        self._reply(lambda codec: Item(number, codec.plain(value)))

    async def _failed(self, error: BaseException) -> None:
        failure: Failure = failure_of(error)
        del error
        self._open = None
        await self._room()
        self._channel.forget(self._number)
        self._reply(lambda _: Failed(self._number, failure))

    async def _room(self) -> None:
        """Waits for room for the answer, which comes whatever is cancelled from here on."""
        self._works = False
        await self._channel.drain()

    def _reply(self, make: Callable[[Codec], Frame]) -> None:
        with suppress(WorkerEndedError):
            self._channel.reply(make, self._number)


_closing: Final[set[asyncio.Task[None]]] = set()


async def _quietly(work: Awaitable[None]) -> None:
    with suppress(Exception):
        await work


def _value_of(frame: Frame) -> object:
    if isinstance(frame, Failed):
        raise error_of(frame.failure)
    if isinstance(frame, Response):
        return frame.value
    raise ProtocolError("The other side answered with what is no answer.")


class Remote:
    """What goes on at the other side.

    Attributes:
        kind: As the other side calls it.
    """

    __slots__ = ("_channel", "_number", "done", "kind")

    def __init__(self, channel: Channel, number: int, kind: str) -> None:
        self._channel = channel
        self._number = number
        self.kind = kind
        self.done = False

    async def step(self, how: str = "next", value: object = None) -> object:
        """One step.

        Raises:
            Ended: It has come to its end; with its value.
        """
        if self.done:
            raise Ended(None)
        try:
            return await self._channel.step(self._number, how, value)
        except BaseException:
            self.done = True
            raise

    async def close(self) -> None:
        """Ends it there; idempotent."""
        if self.done:
            return
        self.done = True
        with suppress(Ended, WorkerEndedError):
            await self._channel.step(self._number, "close", None)


def opened(stream: AsyncIterator[object], kind: str = STREAM) -> Open:
    """An async iterator, to be stepped by the other side."""

    async def step(how: str, value: object) -> object:
        try:
            if how == "next":
                return await anext(stream)
            if how == "send":
                return await stream.asend(value)  # type: ignore[attr-defined]
            if how == "throw":
                return await stream.athrow(value)  # type: ignore[attr-defined]
        except StopAsyncIteration:
            raise Ended(None) from None
        await close()
        raise Ended(None)

    async def close() -> None:
        ends = getattr(stream, "aclose", None)
        if ends is not None:
            await ends()

    return Open(kind, step, close)
