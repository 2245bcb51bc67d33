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

from apex_creds.model import Origin

_AT_ONCE: Final = 32
"""Requests to one origin; a slow server keeps only its own origin's turns."""
_LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=20)


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
        self._turns: dict[Origin, anyio.Semaphore] = {}
        self._sync_turns: dict[Origin, threading.BoundedSemaphore] = {}
        self._made: httpx.AsyncHTTPTransport | None = None
        self._sync_made: httpx.HTTPTransport | None = None

    async def turn(self, origin: Origin, *, patience: float | None) -> Turn:
        """Waits for a free connection to an origin, ``patience`` seconds at most.

        Ask only for origins that are allowed: each is remembered.

        Raises:
            httpx.PoolTimeout: None became free in that time.
        """
        if self._given is not None:
            return Turn()
        turns = self._turns.setdefault(origin, anyio.Semaphore(_AT_ONCE))
        try:
            turns.acquire_nowait()
        except anyio.WouldBlock:
            with anyio.move_on_after(patience) as waiting:
                await turns.acquire()
            if waiting.cancelled_caught:
                raise httpx.PoolTimeout(_TIMED_OUT) from None
        return Turn(turns.release)

    def turn_blocking(self, origin: Origin, *, patience: float | None) -> Turn:
        """As ``turn``, in a worker thread."""
        if self._sync_given is not None:
            return Turn()
        with self._lock:
            turns = self._sync_turns.setdefault(origin, threading.BoundedSemaphore(_AT_ONCE))
        if not turns.acquire(timeout=patience):
            raise httpx.PoolTimeout(_TIMED_OUT)
        return Turn(turns.release)

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
