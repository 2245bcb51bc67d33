"""Times of day and of the week in a time zone, for rules that hold at some hours only.

Guarantee: pure. A window is about what the clocks on the wall there show, to the minute:
an hour that they skip in spring is never, and one that they repeat in autumn is twice.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from apex_creds.errors import InvalidInputError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_DAY: Final = 24 * 60


@dataclass(frozen=True, slots=True)
class Window:
    """From one minute of the day to before another, on some days.

    Where ``start`` is not before ``end`` it goes over midnight, and belongs to the day on
    which it begins.

    Attributes:
        days: 0 for Monday to 6 for Sunday.
        start: Minutes from midnight, 0 to 1439.
        end: The same; 1440 is the end of the day.
    """

    days: frozenset[int]
    start: int
    end: int
    zone: ZoneInfo

    def holds(self, now: float) -> bool:
        """Whether ``now`` (Unix seconds) is in it.

        Raises:
            ValueError, OverflowError, OSError: It is no time that a calendar knows.
        """
        local = datetime.fromtimestamp(now, self.zone)
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        if minute >= self.start:
            return day in self.days
        return minute < self.end and (day - 1) % 7 in self.days


def window(
    *, days: list[str] | None = None, start: str = "", end: str = "", zone: str
) -> Window:
    """Reads a window; without days it is every day, without times the whole day.

    Raises:
        InvalidInputError: A day, a time or the zone is none, or the times are the same.
    """
    for name in days or ():
        if name not in DAYS:
            hint = f"Use {', '.join(DAYS)}."
            raise InvalidInputError(f"{name[:20]!r} is not a day.", hint=hint)
    chosen = frozenset(map(DAYS.index, DAYS if days is None else days))
    if not chosen:
        raise InvalidInputError("There is no day in the list.", hint="Leave it out for all.")
    first, last = _minute(start, 0), _minute(end, _DAY)
    if first in (last, _DAY):
        raise InvalidInputError("It begins when it ends.", hint="Leave both out for all day.")
    try:
        return Window(chosen, first, last, ZoneInfo(zone))
    except (ValueError, OSError, KeyError):
        raise InvalidInputError(
            f"{zone[:40]!r} is not a time zone that this machine knows.",
            hint='Write it like "Europe/Berlin" or "UTC".',
        ) from None


def _minute(text: str, default: int) -> int:
    if not text:
        return default
    if text == "24:00":
        return _DAY
    found = _TIME.fullmatch(text)
    if found is None:
        raise InvalidInputError(
            f"{text[:20]!r} is not a time of day.", hint='Write it like "08:30".'
        )
    return int(found[1]) * 60 + int(found[2])
