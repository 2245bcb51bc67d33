"""Hands events to callbacks, each from a task that holds no lock.

Guarantee: whoever says something never waits for a callback, so a callback may say something
itself, take a lock that its caller holds, or hang: nothing but its own queue waits. One
callback hears events in order, in the event loop in which it subscribed; where that loop has
ended, in a thread that is there for it. What a callback raises is logged and goes no further.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from apex_creds.concurrency import LoopThread, Place
from apex_creds.scheduler.events import Event, kind_of

Callback = Callable[[Event], Awaitable[object]]

MAX_WAITING: Final = 1_000
_log: Final = logging.getLogger(__name__)
_elsewhere: Final = LoopThread("apex-creds events")


class Subscription:
    """A callback and its queue.

    Args:
        callback: Called with each event.
        kinds: Which it wants; None: all.
    """

    def __init__(self, callback: Callback, kinds: Collection[str] | None = None) -> None:
        self._callback = callback
        self._kinds = None if kinds is None else frozenset(kinds)
        self._queue: deque[Event] = deque()
        self._lock = threading.RLock()
        self._home = _here()
        self._at: Place | None = None
        self._task: asyncio.Task[None] | None = None
        self.active = True

    def cancel(self) -> None:
        """No further event is delivered; idempotent."""
        self.active = False
        self._queue.clear()

    def put(self, event: Event) -> None:
        """Has the event delivered, soon."""
        if not self.active or (self._kinds is not None and kind_of(event) not in self._kinds):
            return
        if len(self._queue) >= MAX_WAITING:
            _log.error("a callback is too slow for its events: %s was dropped", kind_of(event))
            return
        self._queue.append(event)
        here = Place()
        with self._lock:
            if self._at is not None and self._at.goes_on(here):
                return
            self._home = self._home or here
            if self._home.goes_on(here):
                self._at = self._home
                _in(self._home, here, self._begin)
            else:
                _elsewhere.start(self._deliver)

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._deliver())

    async def _deliver(self) -> None:
        with self._lock:
            at = self._at = Place()
        try:
            while self._next_is_mine(at):
                event = self._queue.popleft()
                try:
                    await self._callback(event)
                except asyncio.CancelledError:  # its loop ends: the next one has it again
                    self._queue.appendleft(event)
                    raise
                except Exception as error:  # noqa: BLE001 - a callback's own business
                    kind = type(error).__name__
                    _log.warning("a callback for %s failed: %s", kind_of(event), kind)
        finally:
            with self._lock:
                if self._at is at:
                    self._at = None

    def _next_is_mine(self, at: Place) -> bool:
        """Whether there is an event, and nobody has taken over; else this is the end."""
        with self._lock:
            if self._at is at and self._queue:
                return True
            if self._at is at:
                self._at = None
            return False


def _here() -> Place | None:
    """Where the caller runs; None: in no event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return None
    return Place()


def _in(place: Place, here: Place, call: Callable[[], object]) -> None:
    if place.loop is here.loop:
        call()
    else:
        place.loop.call_soon_threadsafe(call)
