"""Sliding windows of events.

Guarantee: exact. In any stretch of a window's length there are never more entries than its
limit; time comes from outside. Not thread-safe: callers hold a lock of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

MAX_WINDOWS: Final = 50_000
"""More kinds of events than that at once: those that were quiet longest are forgotten, and
of them the counts of denials first: names that don't exist make as many as one likes."""


class Windows:
    """Times of events by key.

    Args:
        clock: Seconds; of one kind for all of the object's life.
        times: What to begin with.
        most: How many keys are kept.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        times: Mapping[str, tuple[float, tuple[float, ...]]] | None = None,
        *,
        most: int = MAX_WINDOWS,
    ) -> None:
        self._most = most
        self._clock = clock
        self._times: dict[str, tuple[float, list[float]]] = {
            key: (ends, list(found)) for key, (ends, found) in (times or {}).items()
        }

    def export(self) -> dict[str, tuple[float, tuple[float, ...]]]:
        """For each key the time when its last entry is out, and its entries."""
        self._forget_old()
        return {key: (ends, tuple(found)) for key, (ends, found) in self._times.items()}

    def wait(self, key: str, amount: int, seconds: int) -> float | None:
        """Seconds until there is room for one more entry; None if there is."""
        now = self._clock()
        inside = self._inside(key, seconds, now)
        return max(inside[-amount] + seconds - now, 0.0) if len(inside) >= amount else None

    def add(self, key: str, amount: int, seconds: int) -> bool:
        """Adds an entry if there is room for it."""
        now = self._clock()
        inside = self._inside(key, seconds, now)
        if len(inside) >= amount:
            return False
        self._times.pop(key, None)  # to the end: what was touched last
        if len(self._times) >= self._most:
            self._make_room()
        self._times[key] = (now + seconds, [*inside, now])
        return True

    def _inside(self, key: str, seconds: int, now: float) -> list[float]:
        _, times = self._times.get(key, (0.0, []))
        if times and times[-1] > now:
            # The clock was set back: what is from the future counts from now on, not for years.
            times = [min(time, now) for time in times]
            self._times[key] = (now + seconds, times)
        if times and times[0] <= now - seconds:
            times = [time for time in times if time > now - seconds]
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


def _is_use(key: str) -> bool:
    return key.split("/", 3)[2:3] != ["denials"]
