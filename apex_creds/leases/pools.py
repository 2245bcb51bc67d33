"""The connection pools that all clients of a broker share.

Guarantee: a pool that was given is never closed here; one that was made here is, by
``close``. Making one costs milliseconds (certificates are loaded), so it is made once.

Requests wait for a connection here, in a fair queue, and not in the pool of httpx, which
looks through everything that waits whenever a connection becomes free: with thousands of
waiting requests that costs more than the requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import anyio
import httpx

_CONNECTIONS: Final = 64
_LIMITS: Final = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=20)


class Turn:
    """A request's turn; ``done`` gives it to the next, once."""

    __slots__ = ("_release",)

    def __init__(self, release: Callable[[], object] | None = None) -> None:
        self._release = release

    def done(self) -> None:
        """Lets the next request go; idempotent."""
        release, self._release = self._release, None
        if release is not None:
            release()


class Pools:
    """One asynchronous and one synchronous pool, each made when first needed.

    Args:
        transport: To be used instead of an asynchronous pool of httpx.
        sync_transport: To be used instead of a synchronous one.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None,
        sync_transport: httpx.BaseTransport | None,
    ) -> None:
        self._given = transport
        self._sync_given = sync_transport
        self._lock = threading.Lock()  # worker threads come here at once
        self._turns = anyio.Semaphore(_CONNECTIONS)
        self._sync_turns = threading.BoundedSemaphore(_CONNECTIONS)
        self._made: httpx.AsyncHTTPTransport | None = None
        self._sync_made: httpx.HTTPTransport | None = None

    async def turn(self, request: httpx.Request) -> Turn:
        """Waits for a free connection.

        Raises:
            httpx.PoolTimeout: The request's own time-out for that has passed.
        """
        if self._given is not None:
            return Turn()
        try:
            self._turns.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.move_on_after(_patience(request)) as waiting:
                await self._turns.acquire()
            if waiting.cancelled_caught:
                raise httpx.PoolTimeout(_TIMED_OUT, request=request) from None
        return Turn(self._turns.release)

    def turn_blocking(self, request: httpx.Request) -> Turn:
        """As ``turn``, in a worker thread."""
        if self._sync_given is not None:
            return Turn()
        if not self._sync_turns.acquire(timeout=_patience(request)):
            raise httpx.PoolTimeout(_TIMED_OUT, request=request)
        return Turn(self._sync_turns.release)

    def transport(self) -> httpx.AsyncBaseTransport:
        """For ``handle.client()``."""
        if self._given is not None:
            return self._given
        if self._made is None:
            self._made = httpx.AsyncHTTPTransport(limits=_LIMITS)
        return self._made

    def sync_transport(self) -> httpx.BaseTransport:
        """For ``handle.sync_client()``."""
        if self._sync_given is not None:
            return self._sync_given
        with self._lock:
            if self._sync_made is None:
                self._sync_made = httpx.HTTPTransport(limits=_LIMITS)
            return self._sync_made

    async def close(self) -> None:
        """Closes what was made here; idempotent."""
        made, self._made = self._made, None
        sync_made, self._sync_made = self._sync_made, None
        if made is not None:
            await made.aclose()
        if sync_made is not None:
            sync_made.close()


_TIMED_OUT: Final = "No connection became free in time: too many requests at once."


def _patience(request: httpx.Request) -> float | None:
    seconds: float | None = request.extensions.get("timeout", {}).get("pool")
    return seconds
