"""Clocks that a test moves."""

from __future__ import annotations


class FakeClock:
    """It stands still unless ``now`` is set."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


class TwoClocks:
    """As the machine's: setting one does not move the other."""

    def __init__(self) -> None:
        self.wall, self.ticks = 1_700_000_000.0, 50.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks

    def go_on(self, seconds: float) -> None:
        """Time passes."""
        self.wall += seconds
        self.ticks += seconds

    def set_by(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.wall += seconds
