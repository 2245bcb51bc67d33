"""Sliding windows of events, as the storage that the ``limits`` library counts in.

Guarantee: exact. In any stretch of a window's length there are never more entries than its
limit; time comes from outside. Not thread-safe: callers hold a lock of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from limits.storage import MovingWindowSupport, Storage

MAX_WINDOWS: Final = 50_000
"""More kinds of events than that at once: those that were quiet longest are forgotten, and
of them the counts of denials first: names that don't exist make as many as one likes."""


class Windows(Storage, MovingWindowSupport):
    """Times of events by key.

    Args:
        clock: Seconds; of one kind for all of the object's life.
        times: What to begin with.
        most: How many keys are kept.
    """

    STORAGE_SCHEME: Final = None  # type: ignore[misc]

    def __init__(
        self,
        clock: Callable[[], float],
        times: Mapping[str, tuple[float, tuple[float, ...]]] | None = None,
        *,
        most: int = MAX_WINDOWS,
    ) -> None:
        super().__init__()
        self._most = most
        self._clock = clock
        self._times: dict[str, tuple[float, list[float]]] = {
            key: (ends, list(found)) for key, (ends, found) in (times or {}).items()
        }

    def now(self) -> float:
        """The time that it counts by."""
        return self._clock()

    def export(self) -> dict[str, tuple[float, tuple[float, ...]]]:
        """For each key the time when its last entry is out, and its entries."""
        self._forget_old()
        return {key: (ends, tuple(found)) for key, (ends, found) in self._times.items()}

    def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Adds ``amount`` entries if there is room for all of them."""
        now = self._clock()
        inside = self._inside(key, expiry, now)
        if len(inside) + amount > limit:
            return False
        self._times.pop(key, None)  # to the end: what was touched last
        if len(self._times) >= self._most:
            self._make_room()
        self._times[key] = (now + expiry, [*inside, *[now] * amount])
        return True

    def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """The time of the oldest entry that counts, and how many there are."""
        now = self._clock()
        inside = self._inside(key, expiry, now)
        return (inside[-limit] if len(inside) >= limit else now), len(inside)

    def _inside(self, key: str, expiry: int, now: float) -> list[float]:
        _, times = self._times.get(key, (0.0, []))
        # An entry from the future (the clock was set back) counts until it is in the past.
        if times and times[0] <= now - expiry:
            times = [time for time in times if time > now - expiry]
        return times

    def _make_room(self) -> None:
        self._forget_old()
        if len(self._times) < self._most:
            return
        by_worth = sorted(self._times, key=_is_use)  # stable: the quietest of each first
        for key in by_worth[: max(self._most // 10, 1)]:  # many at once, so that it is rare
            del self._times[key]

    def _forget_old(self) -> None:
        now = self._clock()
        self._times = {k: found for k, found in self._times.items() if found[0] > now}

    # -- what the library's base class asks for, and the moving window does not use ----

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """None are raised."""
        return ()

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Counts without a limit."""
        self.acquire_entry(key, 2**62, expiry, amount)
        return self.get(key)

    def get(self, key: str) -> int:
        """How many entries there are."""
        return len(self._times.get(key, (0.0, []))[1])

    def get_expiry(self, key: str) -> float:
        """When the last entry is out."""
        return self._times.get(key, (-math.inf, []))[0]

    def check(self) -> bool:
        """Always well."""
        return True

    def reset(self) -> int | None:
        """Forgets everything."""
        count = len(self._times)
        self._times.clear()
        return count

    def clear(self, key: str) -> None:
        """Forgets one key."""
        self._times.pop(key, None)


def _is_use(key: str) -> bool:
    return key.split("/", 3)[2:3] != ["denials"]
