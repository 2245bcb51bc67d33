"""Ends leases at their deadlines, with one timer for all of them.

Guarantee: a lease that is watched is ended at its deadline as long as an event loop runs;
one that ends in time costs no timer of its own.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from apex_creds.errors import HandleExpiredError
from apex_creds.model import Clock

if TYPE_CHECKING:
    from apex_creds.leases.lease import Lease


LONGEST_SLEEP: Final = 5.0
"""The loop's own timers stand still while the machine sleeps: look again after it."""


class Deadlines:
    """The leases under which something is revealed now."""

    __slots__ = ("_at", "_clock", "_loop", "_timer", "_watched")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._watched: dict[Lease, None] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._at = math.inf

    def watch(self, lease: Lease) -> None:
        """Has the lease ended at its deadline; from any thread."""
        self._watched[lease] = None
        loop = self._loop
        if lease.expires < self._at or loop is None or not loop.is_running():
            self._schedule(lease)

    def use_running_loop(self) -> None:
        """Has the timer in this loop, for worker threads, which have none."""
        if self._loop is None or not self._loop.is_running():
            self._loop, self._timer, self._at = asyncio.get_running_loop(), None, math.inf

    def forget(self, lease: Lease) -> None:
        """Nothing is revealed under it any more."""
        self._watched.pop(lease, None)

    def close(self) -> None:
        """Stops the timer."""
        self._watched.clear()
        self._at = math.inf
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _schedule(self, lease: Lease) -> None:
        running = _running_loop()
        if running is not None:
            self.use_running_loop()
        # Where no loop runs at all, each use checks the time.
        if self._loop is running is not None:
            self._start(lease)
        elif self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._start, lease)

    def _start(self, lease: Lease) -> None:
        if self._timer is not None:
            if self._at <= lease.expires:
                return
            self._timer.cancel()
        self._at = lease.expires
        delay = min(max(lease.expires - self._clock.monotonic(), 0.0), LONGEST_SLEEP)
        self._timer = asyncio.get_running_loop().call_later(delay, self._sweep)

    def _sweep(self) -> None:
        """Ends the leases whose time is up, and sets the timer for the next."""
        self._timer, self._at = None, math.inf
        now = self._clock.monotonic()
        for lease in list(self._watched):
            if now >= lease.expires:
                lease.end(HandleExpiredError)
        if self._watched:
            self._start(min(list(self._watched), key=lambda lease: lease.expires))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
