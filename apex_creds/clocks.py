"""Which clock is for what: the wall clock for people, the boot-time clock for deadlines.

Guarantee: ``boot_time`` never jumps when somebody sets the wall clock, and goes on while the
machine sleeps (where the system has such a clock; else it stands still then). A ``Moment``
is compared with another of the same boot by that clock; only with one of another machine,
or of before a restart, by the wall clock. docs/CLOCKS.md lists every use of a clock.
"""

from __future__ import annotations

import functools
import time as _time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, Self
from uuid import uuid4
from weakref import WeakKeyDictionary

import msgspec

__all__ = ["Clock", "Ends", "Moment", "SystemClock", "boot_id", "boot_time"]

_BOOT_ID: Final = "/proc/sys/kernel/random/boot_id"


def _boot_clock() -> Callable[[], float]:
    number = getattr(_time, "CLOCK_BOOTTIME", None)
    if number is None:
        return _time.monotonic
    return functools.partial(_time.clock_gettime, number)


boot_time: Final = _boot_clock()
"""Seconds since the machine started, those that it slept too; never jumps."""


class Clock(Protocol):
    """Where time comes from; tests pass a fake one."""

    def time(self) -> float:
        """Seconds since the Unix epoch, UTC: the wall clock, which anybody may set."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back or jumps; deadlines use this one."""


class SystemClock:
    """The machine's clocks."""

    time: Final = staticmethod(_time.time)
    """See ``Clock``."""
    monotonic: Final = staticmethod(boot_time)
    """See ``Clock``."""


@functools.cache
def boot_id() -> str:
    """Names this run of the machine's kernel; empty where the system has no name for it."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


class Moment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When something was, on both clocks.

    Attributes:
        wall: Unix seconds.
        boot: Which boot-time clock ``ticks`` are of; empty for none.
        ticks: What it showed.
    """

    wall: float
    boot: str = ""
    ticks: float = 0.0

    @classmethod
    def now(cls, clock: Clock) -> Self:
        """This moment; another clock's ticks can be compared with its own only."""
        boot = ""
        if isinstance(clock, SystemClock):
            boot = boot_id()
        else:
            with suppress(TypeError):  # it can't be hashed, or not be referred to weakly
                boot = _others.setdefault(clock, uuid4().hex)
        return cls(wall=clock.time(), boot=boot, ticks=clock.monotonic())

    @classmethod
    def of(cls, now: float | Moment) -> Moment:
        """A moment as it is; or the one of which only the wall clock is known."""
        return now if isinstance(now, Moment) else cls(wall=now)

    def since(self, earlier: Moment) -> float:
        """Seconds from an earlier moment to this one.

        Negative only if the wall clock had to be asked, and was set back.
        """
        if self.boot and self.boot == earlier.boot:
            return self.ticks - earlier.ticks
        return self.wall - earlier.wall

    def wall_by(self, now: Moment) -> float:
        """When this moment was, by the wall clock as it is ``now``."""
        return now.wall - now.since(self)


class Ends:
    """What time it is for what ends at a time of the wall clock, such as a grant.

    That clock, but not set back since this was made: what has ended does not begin again.

    Args:
        clock: The vault's.
    """

    __slots__ = ("_ahead", "_clock")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead = clock.time() - clock.monotonic()

    def now(self) -> float:
        """Unix seconds."""
        return self.at(self._clock.time(), self._clock.monotonic())

    def at(self, wall: float, ticks: float) -> float:
        """The same, for who has read both clocks."""
        return max(wall, self._ahead + ticks)


_others: Final[WeakKeyDictionary[Clock, str]] = WeakKeyDictionary()
