"""The masks of credentials that were used lately: to make one takes milliseconds.

Guarantee: one mask for each key, and ``MOST`` of them at most, or as many as are in use; one
that was not used for ``IDLE`` seconds is wiped, within as many more, by a timer. After ``wipe``
nothing is left but what is in use, and that is wiped when it is given back. From any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from apex_creds.redaction.masks import Mask

IDLE: Final = 60.0
MOST: Final = 64


class SharedMask:
    """A mask in use; ``give_back`` what ``RecentMasks.take`` returned."""

    __slots__ = ("kept", "mask", "used", "users")

    def __init__(self, mask: Mask, now: float) -> None:
        self.mask = mask
        self.used = now
        self.users = 0
        self.kept = True


class RecentMasks:
    """Masks by key.

    Args:
        monotonic: Seconds, of a clock that never jumps.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._by_key: dict[bytes, SharedMask] = {}
        self._timer: threading.Timer | None = None

    def take(self, key: bytes, make: Callable[[], Mask]) -> SharedMask:
        """The mask of that key, which stays whole until it is given back."""
        now = self._monotonic()
        with self._lock:
            found = self._by_key.pop(key, None)
            if found is not None:
                self._by_key[key] = found  # the one used last at the end
                found.used = now
                found.users += 1
                return found
        made = SharedMask(make(), now)
        made.users = 1
        with self._lock:
            other = self._by_key.pop(key, None)
            if other is not None:
                self._drop(other)
            self._by_key[key] = made
            self._sweep(now)
            self._sweep_later()
        return made

    def give_back(self, taken: list[SharedMask]) -> None:
        """They are not searched with any more, by one of those who took them; empties it."""
        with self._lock:
            while taken:
                shared = taken.pop()
                shared.users -= 1
                if not shared.users and not shared.kept:
                    shared.mask.close()

    def wipe(self) -> None:
        """Forgets all."""
        with self._lock:
            while self._by_key:
                self._drop(self._by_key.popitem()[1])
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _sweep(self, now: float) -> None:
        surplus = len(self._by_key) - MOST
        for key, shared in list(self._by_key.items()):
            if not shared.users and (surplus > 0 or now - shared.used >= IDLE):
                self._drop(self._by_key.pop(key))
                surplus -= 1

    def _sweep_later(self) -> None:
        """Has what is idle wiped, also if nothing is searched any more."""
        if self._timer is None and self._by_key:
            self._timer = threading.Timer(IDLE, self._on_time)
            self._timer.daemon = True
            with suppress(RuntimeError):  # the interpreter is ending
                self._timer.start()

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None
            self._sweep(self._monotonic())
            self._sweep_later()

    def _drop(self, shared: SharedMask) -> None:
        shared.kept = False
        if not shared.users:
            shared.mask.close()
