"""Text from outside and points in time, as a person reads them. Pure.

Guarantee: ``escaped`` leaves no character that can't be seen, moves others or hides in the
one before; ``shown`` besides no gap that resembles a new line, and what is ``quoted`` can't
end its quotation. A plugin's id that passes ``check_plugin`` has no invisible characters and
letters of one script only. Times are UTC, ISO 8601 (RFC 3339); what ``show_time`` prints,
``parse_time`` reads.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from datetime import UTC, datetime
from typing import Final

from apex_creds.errors import InvalidInputError, InvalidNameError
from apex_creds.model import check_name

# Default_Ignorable_Code_Point (Unicode 16) where Python calls it printable, and blanks.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U00016fe4\U0001d159\U000e0000-\U000e0fff]"
)
_VERSION: Final = re.compile(r"[0-9A-Za-z.+_~!-]{1,64}", re.ASCII)
_PLAIN: Final = re.compile(r"[^\s\",()\[\]]+")
_TOGETHER: Final = {"BOPOMOFO", "HANGUL", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"}
"""Scripts that are written with Chinese characters, and each other."""


def check_plugin(plugin: str) -> str:
    """Returns ``plugin`` if it can be a plugin's id that no other looks like.

    Raises:
        InvalidNameError: It is no name, or has invisible characters, two spaces together,
            backslashes, look-alike forms (NFKC), or mixed scripts.
    """
    check_name(plugin, what="plugin id")
    hint = "Use letters of one script, digits, dots and dashes."
    if escaped(plugin) != plugin or "  " in plugin or "\\" in plugin:
        raise InvalidNameError("The plugin id has characters that deceive.", hint=hint)
    # A script is the first word of a letter's name; those of one writing count as one.
    words = {unicodedata.name(c, "").partition(" ")[0] for c in plugin if c.isalpha()}
    scripts = {"CJK" if word in _TOGETHER else word for word in words}
    if not unicodedata.is_normalized("NFKC", plugin) or len(scripts) > 1:
        raise InvalidNameError("The plugin id mixes scripts or forms of letters.", hint=hint)
    return plugin


def check_version(version: str) -> str:
    """Returns ``version`` if it is 1 to 64 ASCII letters, digits and ``. + _ ~ ! -``.

    Raises:
        InvalidNameError: It is not.
    """
    if _VERSION.fullmatch(version) is None:
        hint = "Use at most 64 ASCII letters, digits and . + _ ~ ! -"
        raise InvalidNameError("The plugin version is not one.", hint=hint)
    return version


def escaped(text: str) -> str:
    """``text`` with every character that is not plainly seen as a Python escape."""
    if text.isascii() and text.isprintable():
        return text
    found: list[str] = []
    carries = False  # whether a mark would be drawn on a letter
    for c in text:
        mark = unicodedata.category(c)[0] == "M"
        seen = c.isprintable() and _INVISIBLE.match(c) is None and (carries or not mark)
        carries = seen and (mark or c.isalpha())
        found.append(c if seen else ascii(c)[1:-1])
    return "".join(found)


def shown(text: str, *, longest: int = 1000) -> str:
    """``text`` safe on one line or in one field, and no longer."""
    cut = text if len(text) <= longest else text[:longest] + "…"
    return re.sub("(?<= ) ", r"\\x20", escaped(cut))


def quoted(text: str) -> str:
    """``text`` in quotation marks, within a line of ours."""
    inside = shown(text).replace('"', "\\x22")
    return f'"{inside}"'


def named(text: str) -> str:
    """A name within a line of ours: in quotation marks, unless it is one plain word."""
    return shown(text) if _PLAIN.fullmatch(text) else quoted(text)


def operator_command(words: str, name: str, *, principal: str = "", options: str = "") -> str:
    """The command about a credential that a shell takes as it stands, whatever the name is."""
    whose = f" --for {shlex.quote(principal)}" if principal else ""
    more = f"{whose} {options}".rstrip()
    if name.startswith("-"):
        return f"apex-creds {words}{more} -- {shlex.quote(name)}"
    return f"apex-creds {words} {shlex.quote(name)}{more}"


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


def parse_time(text: str, *, now: float) -> float:
    """Unix seconds of a date, a date and time (UTC where no offset is given), or a span.

    Raises:
        InvalidInputError: It is none of these, or not in the future.
    """
    span = _SPAN.fullmatch(text.strip())
    when = now + int(span[1]) * _SECONDS[span[2]] if span else _timestamp(text.strip())
    if when <= now:
        raise InvalidInputError("That time is in the past.", hint=_HINT)
    return when


def parse_span(text: str) -> float:
    """Seconds of a span of time; ``0`` is none.

    Raises:
        InvalidInputError: It is none: a date is no span.
    """
    span = _SPAN.fullmatch(text.strip())
    if span is None and text.strip() != "0":
        raise InvalidInputError(
            f"{text[:40]!r} is not a span of time.", hint="Write 12h, 30d or 1y."
        )
    return 0.0 if span is None else float(int(span[1]) * _SECONDS[span[2]])


def show_span(seconds: float) -> str:
    """``90d``, ``12h``, ``1.5 s``: in the largest unit that makes it a whole number."""
    for unit in ("d", "h", "m"):
        count, rest = divmod(seconds, _SECONDS[unit])
        if count and not rest:
            return f"{count:g}{unit}"
    return f"{seconds:g} s"


def parse_past_time(text: str, *, now: float) -> float:
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


def show_time(when: float | None, *, finely: bool = False) -> str:
    """``2030-12-31T18:00:00Z``, or with milliseconds; nothing for None."""
    if when is None:
        return ""
    spec = "milliseconds" if finely else "seconds"
    try:
        moment = datetime.fromtimestamp(when, UTC).replace(tzinfo=None)
        return f"{moment.isoformat(timespec=spec)}Z"
    except (ValueError, OverflowError, OSError):
        return f"@{when:.0f}"
