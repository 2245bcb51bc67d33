"""The bodies of a request that carries a secret, and of its answer.

The body of an answer goes on without the references that lead to what was sent. It gives its
connection, and its place, back when it is closed, when its client is, or when a lease of it
ends, whichever is first. The body of a request is stepped by a task, or a thread, that has
nothing but the plugin's stream: the frames above it, which the plugin can walk, belong to no
request. What comes out of it is plain bytes, read only as fast as it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar

import httpcore
import httpx
import msgspec

from apex_creds.concurrency import run_at_once
from apex_creds.errors import EventLoopError, InvalidInputError
from apex_creds.leases.broker import keep_open
from apex_creds.leases.connection_pool import Permit
from apex_creds.leases.http_messages import AnswerFilter, Say, SendFailure
from apex_creds.leases.lease import Lease
from apex_creds.plain import plain_bytes

T = TypeVar("T")
_closing: Final[set[asyncio.Task[None]]] = set()


_KINDS: Final = {
    "ConnectError": "connect",
    "ConnectTimeout": "connect_timeout",
    "ReadError": "read",
    "ReadTimeout": "read_timeout",
    "WriteError": "write",
    "WriteTimeout": "write_timeout",
    "PoolTimeout": "pool_timeout",
    "RemoteProtocolError": "protocol",
    "LocalProtocolError": "protocol",
}
_BEFORE: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""They come before anything was sent, so that their words are safe."""
_HTTPCORE: Final = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
"""Errors that have a namesake in httpx."""
_MEANWHILE: Final = "while a request with a credential was sent"
_CLOSED: Final = SendFailure(
    "closed", "StreamClosed", "The answer was closed, or the lease it came under has ended."
)


def bare(error: BaseException) -> BaseException:
    """The error without its frames, which hold what was sent and what came; nor its cause."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def failed(error: BaseException, say: Say) -> BaseException:
    """The error to raise, ``bare``, and as the library that sent says it."""
    if isinstance(error, _HTTPCORE):
        error = getattr(httpx, type(error).__name__)(str(error))
    bare(error)
    if not isinstance(error, httpx.HTTPError):
        return error
    words = str(error) if isinstance(error, _BEFORE) else _MEANWHILE
    text = f"{type(error).__name__}: {words}"
    for kind in type(error).__mro__:
        if issubclass(kind, httpx.RequestError) and kind.__module__ == httpx.__name__:
            return say(SendFailure(_KINDS.get(kind.__name__, "other"), kind.__name__, text))
    return say(SendFailure("other", "RequestError", text))


class _Open(msgspec.Struct, Generic[T], eq=False):
    """What a body holds until it is closed.

    Attributes:
        loop: Where it is read; None: in threads.
        chunks: What comes, as it is read.
        clean: What goes on of the last chunk.
        ended: Whether all has come.
    """

    stream: T
    permit: Permit
    loop: asyncio.AbstractEventLoop | None
    search: AnswerFilter | None = None
    chunks: Any = None
    clean: Iterator[bytes] = iter(())
    ended: bool = False

    def rest(self) -> bytes | None:
        """What the search held back, when all has come."""
        ended, self.ended = self.ended, True
        return None if ended or self.search is None else self.search.finish() or None

    def release(self) -> None:
        """Gives all but the stream back."""
        try:
            if self.search is not None:
                self.search.close()
        finally:
            self.permit.done()


OPEN: Final[dict[object, _Open[Any]]] = {}
"""The bodies that still have their connections."""


class _Body(Generic[T]):
    """What both kinds of body do; ``T`` is the stream within.

    A plugin holds a body, so that it has only the ids of its leases: what leads to the pool,
    where other requests are being sent, is kept in ``OPEN`` until the body is closed.
    """

    def __init__(
        self,
        inner: T,
        say: Say,
        permit: Permit,
        leases: Sequence[Lease],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._say = say
        self._lease_ids: list[str] = []
        OPEN[self] = _Open(inner, permit, loop)
        for lease in leases:
            self._lease_ids.append(lease.id)
            lease.close_at_end(self.abandon)

    def search_with(self, search: AnswerFilter) -> None:
        """Has what comes from here on searched."""
        opened: _Open[T] | None = OPEN.get(self)
        if opened is not None:
            opened.search = search
        if self not in OPEN:  # it was closed meanwhile, by another thread
            search.close()

    def abandon(self) -> None:
        """Closes it from code that can't wait: a lease of it has ended."""
        raise NotImplementedError

    async def _next(self) -> bytes | BaseException | None:
        """What goes on next, or why nothing does; None: the end.

        The generators that a plugin steps have it done here: in their frames, and those of
        what they raise, nothing leads to what came, or to what it is searched for.
        """
        opened: _Open[Any] | None = OPEN.get(self)
        if opened is None:
            return self._say(_CLOSED)
        if opened.loop not in (None, asyncio._get_running_loop()):
            return EventLoopError(
                "A response is read on the event loop that it was requested on.",
                hint="Read it there, and pass on what it says.",
            )
        try:
            if opened.chunks is None:
                stream = opened.stream
                opened.chunks = iter(stream) if opened.loop is None else aiter(stream)
            chunk: bytes | None
            while (clean := next(opened.clean, None)) is None:
                if opened.loop is None:
                    chunk = next(opened.chunks, None)
                else:
                    chunk = await anext(opened.chunks, None)
                if chunk is None:
                    return opened.rest()
                if opened.search is None:
                    return chunk
                opened.clean = iter(opened.search.feed(chunk))
            return clean
        except BaseException as error:
            return failed(error, self._say)

    def _taken(self) -> _Open[T] | None:
        for lease_id in self._lease_ids:
            keep_open(lease_id, self.abandon)
        return OPEN.pop(self, None)


class AsyncBody(_Body[httpx.AsyncByteStream], httpx.AsyncByteStream):
    """The body of an asynchronous answer."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (came := await self._next()) is not None:
            if isinstance(came, BaseException):
                raise came
            yield came

    async def aclose(self) -> None:
        """Gives connection and place back; idempotent."""
        opened = self._taken()
        if opened is None:
            return
        if opened.loop is asyncio.get_running_loop():
            await _close(opened)
        else:
            _close_on_its_loop(opened)

    def abandon(self) -> None:
        """Has it closed by its loop."""
        opened = self._taken()
        if opened is not None:
            _close_on_its_loop(opened)


class SyncBody(_Body[httpx.SyncByteStream], httpx.SyncByteStream):
    """As ``AsyncBody``, for worker threads."""

    def __iter__(self) -> Iterator[bytes]:
        while (came := run_at_once(self._next())) is not None:
            if isinstance(came, BaseException):
                raise came
            yield came

    def close(self) -> None:
        """Gives connection and place back; idempotent."""
        opened = self._taken()
        if opened is None:
            return
        try:
            opened.stream.close()
        finally:
            opened.release()

    abandon = close


def _close_on_its_loop(opened: _Open[httpx.AsyncByteStream]) -> None:
    loop = opened.loop
    with contextlib.suppress(RuntimeError):  # closed meanwhile, and its pools with it
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(_close_soon, opened)


def _close_soon(opened: _Open[httpx.AsyncByteStream]) -> None:
    task = asyncio.get_running_loop().create_task(_close(opened))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _close(opened: _Open[httpx.AsyncByteStream]) -> None:
    try:
        await opened.stream.aclose()
    except httpx.HTTPError:
        return
    finally:
        opened.release()


_Chunk = bytes | BaseException | None
"""A part of the body; or what its stream raised; or its end."""


class AsyncUpload(httpx.AsyncByteStream):
    """The body of an asynchronous request; stop it when that was sent."""

    def __init__(self, source: AsyncIterable[object]) -> None:
        self._source = source
        self._chunks: asyncio.Queue[_Chunk] = asyncio.Queue(1)
        self._wanted = asyncio.Event()
        # Made before the secret is open: a loop may run a task's first step at once.
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._wanted.set()
        while (chunk := await self._chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def stop(self) -> None:
        """Reads no further; idempotent."""
        self._reading.cancel()

    async def _read(self) -> None:
        await self._wanted.wait()
        try:
            async for chunk in self._source:
                await self._chunks.put(plain_bytes(chunk, what="body"))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            await self._chunks.put(error)
        else:
            await self._chunks.put(None)


class Upload(httpx.SyncByteStream):
    """As ``AsyncUpload``, for threads."""

    def __init__(self, source: Iterable[object]) -> None:
        self._source = source
        self._chunks: queue.Queue[_Chunk] = queue.Queue(1)
        self._stopped = False
        self._context = contextvars.copy_context()

    def __iter__(self) -> Iterator[bytes]:
        run = self._context.run
        threading.Thread(target=run, args=(self._read,), daemon=True).start()
        while (chunk := self._chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def stop(self) -> None:
        """Reads no further than the next chunk; idempotent."""
        self._stopped = True
        with contextlib.suppress(queue.Empty):
            self._chunks.get_nowait()

    def _read(self) -> None:
        try:
            for chunk in self._source:
                self._chunks.put(plain_bytes(chunk, what="body"))
                if self._stopped:
                    return
        except BaseException as error:
            self._chunks.put(error)
        else:
            self._chunks.put(None)


class Whole(httpx.ByteStream):
    """A body that is there already."""

    def stop(self) -> None:
        """Nothing reads it."""


NOTHING: Final = Whole(b"")


def upload(body: object, *, blocking: bool = False) -> AsyncUpload | Upload | Whole:
    """How the body of a request is sent; in a thread by one that is ``blocking``.

    Raises:
        InvalidInputError: It is none.
    """
    if body is None:
        return NOTHING
    if type(body) is httpx.ByteStream:
        chunks = [plain_bytes(chunk, what="body") for chunk in body]
        return Whole(chunks[0] if len(chunks) == 1 else b"".join(chunks))
    if isinstance(body, bytes | bytearray | memoryview):
        return Whole(plain_bytes(body, what="body"))
    if blocking and isinstance(body, Iterable) and not isinstance(body, str):
        return Upload(body)
    if not blocking and isinstance(body, AsyncIterable):
        return AsyncUpload(body)
    how = "can only" if blocking else "can't"
    raise InvalidInputError(f"The request's body {how} be read asynchronously.")
