"""Bodies of responses: passed on without the references that lead to what was sent.

Guarantee: a body lets go of its connection, and gives its turn to the next request, when
it is closed, when its client is, or when its lease ends, whichever is first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Final, Generic, NamedTuple, TypeVar

import httpx

from apex_creds.leases.lease import Lease, let_go
from apex_creds.leases.pools import Turn

T = TypeVar("T")

_closing: Final[set[asyncio.Task[None]]] = set()


class Failure(NamedTuple):
    """What went wrong while sending, without the frames that held the secret."""

    cause: BaseException
    text: str

    def error(self, request: httpx.Request) -> BaseException:
        """The error to raise: of the same class, without traceback, cause or context."""
        if not isinstance(self.cause, httpx.HTTPError):
            return self.cause
        if isinstance(self.cause, httpx.RequestError):
            return type(self.cause)(self.text, request=request)
        return httpx.RequestError(self.text, request=request)


def failure(error: BaseException) -> Failure:
    """What may be told of an error of the pool."""
    # The frames of the pool hold the headers as they were sent.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    # A connection's failure comes before anything was sent, so its words are safe.
    before = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    words = str(error) if before else "while a request with a credential was sent"
    return Failure(error, f"{type(error).__name__}: {words}")


class _Body(Generic[T]):
    """What both kinds of body do; ``T`` is the stream within."""

    def __init__(
        self,
        inner: T,
        request: httpx.Request,
        turn: Turn,
        lease: Lease,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._inner: T | None = inner
        self._request = request
        self._turn = turn
        self._lease_id = lease.id  # not the lease: a plugin holds this body
        lease.keep(self, loop)

    @property
    def is_open(self) -> bool:
        """Whether it still has its connection."""
        return self._inner is not None

    def abandon(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Closes it from code that can't wait: its lease has ended."""
        raise NotImplementedError

    def _stream(self) -> T:
        if self._inner is None:
            raise httpx.StreamClosed
        return self._inner

    def _let_go(self) -> T | None:
        inner, self._inner = self._inner, None
        let_go(self._lease_id, self)
        return inner


class AsyncBody(_Body[httpx.AsyncByteStream], httpx.AsyncByteStream):
    """The body of an asynchronous response."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        failed: Failure | None = None
        inner = self._stream()
        try:
            async for chunk in inner:
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - whole, to be shown without its frames
            failed = failure(error)
        if failed is not None:
            raise failed.error(self._request)

    async def aclose(self) -> None:
        """Gives connection and turn back; idempotent."""
        inner = self._let_go()
        try:
            if inner is not None:
                await inner.aclose()
        finally:
            self._turn.done()

    def abandon(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """See ``_Body``."""
        inner = self._let_go()
        if inner is None or loop is None or loop.is_closed():
            self._turn.done()
        else:
            loop.call_soon_threadsafe(_close_soon, inner, self._turn)


class SyncBody(_Body[httpx.SyncByteStream], httpx.SyncByteStream):
    """As ``AsyncBody``, for worker threads."""

    def __iter__(self) -> Iterator[bytes]:
        failed: Failure | None = None
        inner = self._stream()
        try:
            yield from inner
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - whole, to be shown without its frames
            failed = failure(error)
        if failed is not None:
            raise failed.error(self._request)

    def close(self) -> None:
        """Gives connection and turn back; idempotent."""
        inner = self._let_go()
        try:
            if inner is not None:
                inner.close()
        finally:
            self._turn.done()

    def abandon(self, loop: asyncio.AbstractEventLoop | None) -> None:  # noqa: ARG002
        """See ``_Body``."""
        self.close()


def _close_soon(inner: httpx.AsyncByteStream, turn: Turn) -> None:
    task = asyncio.get_running_loop().create_task(_close(inner, turn))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _close(inner: httpx.AsyncByteStream, turn: Turn) -> None:
    try:
        await inner.aclose()
    except httpx.HTTPError:
        return
    finally:
        turn.done()
