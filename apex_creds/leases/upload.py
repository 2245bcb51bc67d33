"""Bodies of requests: what a plugin sends, read where none of its code is near the secret.

Guarantee: a plugin's stream is stepped by a task, or a thread, that has nothing but the
stream: the frames above it, which the plugin can walk, belong to no request. What comes out
of it is plain bytes. It is read only as fast as it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import AsyncIterator, Iterator

import httpx

from apex_creds.errors import InvalidInputError
from apex_creds.plain import plain_bytes

_Chunk = bytes | BaseException | None
"""A part of the body; or what its stream raised; or its end."""


class AsyncUpload(httpx.AsyncByteStream):
    """The body of an asynchronous request; stop it when that was sent."""

    def __init__(self, source: httpx.AsyncByteStream) -> None:
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
        except BaseException as error:  # noqa: BLE001 - raised where the body is sent
            await self._chunks.put(error)
        else:
            await self._chunks.put(None)


class Upload(httpx.SyncByteStream):
    """As ``AsyncUpload``, for threads."""

    def __init__(self, source: httpx.SyncByteStream) -> None:
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
        except BaseException as error:  # noqa: BLE001 - raised where the body is sent
            self._chunks.put(error)
        else:
            self._chunks.put(None)


class Whole(httpx.ByteStream):
    """A body that is there already."""

    def stop(self) -> None:
        """Nothing reads it."""


def async_upload(stream: object) -> AsyncUpload | Whole:
    """How the body of an asynchronous request is sent.

    Raises:
        InvalidInputError: It is none.
    """
    if type(stream) is httpx.ByteStream:
        return _whole(stream)
    if not isinstance(stream, httpx.AsyncByteStream):
        raise InvalidInputError("The request's body can't be read asynchronously.")
    return AsyncUpload(stream)


def upload(stream: object) -> Upload | Whole:
    """As ``async_upload``, for threads."""
    if type(stream) is httpx.ByteStream:
        return _whole(stream)
    if not isinstance(stream, httpx.SyncByteStream):
        raise InvalidInputError("The request's body can only be read asynchronously.")
    return Upload(stream)


def _whole(stream: httpx.ByteStream) -> Whole:
    chunks = [plain_bytes(chunk, what="body") for chunk in stream]
    return Whole(chunks[0] if len(chunks) == 1 else b"".join(chunks))
