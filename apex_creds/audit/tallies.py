"""Counts that are kept as plain numbers and read when metrics are collected.

Guarantee: adding one costs a dictionary look-up under a lock, and no count is lost between
threads; nothing is counted while no meter provider is configured. What is expected to
happen is there from the beginning, as 0: who looks at increases sees the first one, too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

__all__ = ["Tally"]


class Tally:
    """How often something happened, by what tells the cases apart.

    Args:
        attributes: The names of the values that ``add`` gets.
        expected: Values that are read, as 0, before they were added.
    """

    __slots__ = ("_attributes", "_counts", "_expected", "_lock")

    def __init__(self, *attributes: str, expected: Iterable[tuple[str, ...]] = ()) -> None:
        self._attributes = attributes
        self._expected = dict.fromkeys(expected, 0)
        self._counts: dict[tuple[str, ...], int] = {}
        self._lock = threading.Lock()

    def add(self, *values: str) -> None:
        """One more; an empty value is left out of the attributes."""
        with self._lock:
            self._counts[values] = self._counts.get(values, 0) + 1

    def read(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Each count with its attributes."""
        with self._lock:
            counts = self._expected | self._counts
        for values, count in counts.items():
            named = zip(self._attributes, values, strict=True)
            yield count, {name: value for name, value in named if value}
