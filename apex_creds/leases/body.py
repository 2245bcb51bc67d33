"""Bodies of responses: passed on without the references that lead to what was sent.

Guarantee: a body lets go of its connection, and gives its turn to the next request, when
it is closed, when its client is, or when its lease ends, whichever is first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, Generic, NamedTuple, TypeVar

import httpx

from apex_creds.errors import EventLoopError
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


class _Open(NamedTuple, Generic[T]):
    """What a body holds until it is closed."""

    stream: T
    turn: Turn
    loop: asyncio.AbstractEventLoop | None


_OPEN: Final[dict[object, _Open[Any]]] = {}


class _Body(Generic[T]):
    """What both kinds of body do; ``T`` is the stream within.

    A plugin holds a body, so that it has only its lease's id: what leads to the pool, where
    other requests are being sent, is kept in ``_OPEN`` until the body is closed.
    """

    def __init__(
        self,
        inner: T,
        request: httpx.Request,
        turn: Turn,
        lease: Lease,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._request = request
        self._lease_id = lease.id
        _OPEN[self] = _Open(inner, turn, loop)
        lease.keep(self, loop)

    @property
    def is_open(self) -> bool:
        """Whether it still has its connection."""
        return self in _OPEN

    def abandon(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Closes it from code that can't wait: its lease has ended."""
        raise NotImplementedError

    def _opened(self) -> _Open[T]:
        opened: _Open[T] | None = _OPEN.get(self)
        if opened is None:
            raise httpx.StreamClosed
        return opened

    def _let_go(self) -> _Open[T] | None:
        let_go(self._lease_id, self)
        return _OPEN.pop(self, None)


class AsyncBody(_Body[httpx.AsyncByteStream], httpx.AsyncByteStream):
    """The body of an asynchronous response."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        failed: Failure | None = None
        opened = self._opened()
        if opened.loop is not asyncio.get_running_loop():
            raise EventLoopError(
                "A response is read on the event loop that it was requested on.",
                hint="Read it there, and pass on what it says.",
            )
        try:
            async for chunk in opened.stream:
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - whole, to be shown without its frames
            failed = failure(error)
        if failed is not None:
            raise failed.error(self._request)

    async def aclose(self) -> None:
        """Gives connection and turn back; idempotent."""
        opened = self._let_go()
        if opened is None:
            return
        if opened.loop is asyncio.get_running_loop():
            await _close(opened)
        else:
            _close_on_its_loop(opened)

    def abandon(self, loop: asyncio.AbstractEventLoop | None) -> None:  # noqa: ARG002
        """See ``_Body``."""
        opened = self._let_go()
        if opened is not None:
            _close_on_its_loop(opened)


class SyncBody(_Body[httpx.SyncByteStream], httpx.SyncByteStream):
    """As ``AsyncBody``, for worker threads."""

    def __iter__(self) -> Iterator[bytes]:
        failed: Failure | None = None
        opened = self._opened()
        try:
            yield from opened.stream
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - whole, to be shown without its frames
            failed = failure(error)
        if failed is not None:
            raise failed.error(self._request)

    def close(self) -> None:
        """Gives connection and turn back; idempotent."""
        opened = self._let_go()
        if opened is None:
            return
        try:
            opened.stream.close()
        finally:
            opened.turn.done()

    def abandon(self, loop: asyncio.AbstractEventLoop | None) -> None:  # noqa: ARG002
        """See ``_Body``."""
        self.close()


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
        opened.turn.done()
