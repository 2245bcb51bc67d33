"""Points in time as the operator writes and reads them: UTC, ISO 8601 (RFC 3339).

Guarantee: pure; what ``show`` prints, ``parse`` reads.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from apex_creds.errors import InvalidInputError

_SPAN: Final = re.compile(r"([0-9]{1,6})([smhdwy])", re.ASCII)
_SECONDS: Final = {
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86_400,
    "w": 7 * 86_400,
    "y": 365 * 86_400,
}
_HINT: Final = "Write 2030-12-31, 2030-12-31T18:00Z, or a time from now: 12h, 30d, 1y."


def parse(text: str, *, now: float) -> float:
    """Unix seconds of a date, a date and time (UTC where no offset is given), or a span.

    Raises:
        InvalidInputError: It is none of these, or not in the future.
    """
    span = _SPAN.fullmatch(text.strip())
    when = now + int(span[1]) * _SECONDS[span[2]] if span else _timestamp(text.strip())
    if when <= now:
        raise InvalidInputError("That time is in the past.", hint=_HINT)
    return when


def parse_past(text: str, *, now: float) -> float:
    """As ``parse``, looking back: a date and time that has been, or a span before now.

    Raises:
        InvalidInputError: It is none of these.
    """
    span = _SPAN.fullmatch(text.strip())
    return now - int(span[1]) * _SECONDS[span[2]] if span else _timestamp(text.strip())


def _timestamp(text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        raise InvalidInputError(f"{text[:40]!r} is not a time.", hint=_HINT) from None


def show(when: float | None) -> str:
    """``2030-12-31T18:00:00Z``; nothing for None."""
    if when is None:
        return ""
    try:
        return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"@{when:.0f}"
