"""An event of the log in the words that the page shows, and what a filter finds by them.

Guarantee: a search matches what a reader sees in the event's line, and nothing else: hidden
names, identifiers and field names match nothing. The page and the search on the server use
the same words, since both get them from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from apex_creds.dashboard.windows import MAX_TEXT
from apex_creds.errors import InvalidInputError

WORDS: Final = {
    "init": "vault made",
    "unseal": "unsealed",
    "put": "stored",
    "delete": "deleted",
    "revoke": "revoked",
    "invocation": "ended",
    "redeem": "used",
    "expose": "taken out",
    "denial": "denied",
    "factor": "second factor",
}
"""What the page calls a kind, where that is another word."""
OPERATOR: Final = "operator"
_BAD: Final = frozenset({"leak", "rollback"})
REFUSED: Final = frozenset({"denial", "leak", "rollback", "dropped", "recovered"})
USE: Final = frozenset({"invocation", "lease", "redeem", "expose", "denial", "leak"})
_USUAL: Final = frozenset({"lease", "redeem"})


class Group(StrEnum):
    """What a filter by kind shows."""

    REFUSED = "refused"
    CHANGES = "changes"
    USE = "use"


Shown = Mapping[str, object]
"""An event (or a fault: a line that is not what was written) as the page gets it."""


def with_words(event: Shown) -> dict[str, object]:
    """The event and, for its line: ``word``, ``says``, ``tone``, ``groups``."""
    kind = event.get("kind")
    word = "altered" if "fault" in event else WORDS.get(str(kind), kind)
    groups = [group.value for group in _groups(event)]
    says = _says(event)
    return {**event, "word": word, "says": says, "tone": _tone(event, groups), "groups": groups}


def _groups(event: Shown) -> list[Group]:
    kind, fault = event.get("kind"), "fault" in event
    refused = fault or kind in REFUSED or event.get("decision") == "deny"
    return [Group.REFUSED] * refused + [Group.USE if kind in USE else Group.CHANGES]


def _tone(event: Shown, groups: list[str]) -> str:
    kind = event.get("kind")
    if "fault" in event or kind in _BAD or event.get("decision") == "lockdown":
        return "bad"
    failed = kind == "invocation" and event.get("outcome", "ok") != "ok"
    if failed or Group.REFUSED in groups:
        return "warn"
    if kind in ("redeem", "expose"):
        return "use"
    return "quiet" if Group.USE in groups else "change"


def _says(event: Shown) -> str:
    if "fault" in event:
        return f"this line is not what was written: {event['fault']}"
    kind, decision = event.get("kind"), event.get("decision")
    usual = kind in _USUAL
    ended = kind == "invocation"
    parts = (
        event.get("outcome") if ended else "",
        _span(event.get("duration_us")) if ended else "",
        event.get("method"),
        f"{event.get('origin', '')}{event.get('path', '')}",
        "" if usual or kind == "denial" or decision == "allow" else decision,
        "" if usual else str(event.get("reason", "")).replace("_", " "),
        f"rule {event['rule']}" if event.get("rule") else "",
        f"key v{event['key_version']}" if event.get("key_version") else "",
        event.get("detail"),
    )
    return " · ".join(str(part) for part in parts if part)


def _span(microseconds: object) -> str:
    n = microseconds if isinstance(microseconds, int) else 0
    if n < 1000:
        return f"{n} µs"
    if n < 1_000_000:
        return f"{n / 1000:.{1 if n < 10_000 else 0}f} ms"
    return f"{n / 1_000_000:.1f} s"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events somebody asks for.

    Attributes:
        text: In the line, in any case; empty: anything.
        group: Which kind; None: any.
    """

    text: str = ""
    group: Group | None = None

    @classmethod
    def parse(cls, text: str, group: str) -> Filter:
        """From what a page sends.

        Raises:
            InvalidInputError: It is too long, or there is no such group.
        """
        if len(text) > MAX_TEXT:
            raise InvalidInputError(f"A search has at most {MAX_TEXT} characters.")
        try:
            return cls(text.strip().lower(), Group(group) if group else None)
        except ValueError:
            raise InvalidInputError("There is no such filter.") from None

    def __bool__(self) -> bool:
        return bool(self.text or self.group)

    def matches(self, event: Shown) -> bool:
        """Whether it is an event (with its words) that is asked for."""
        groups = event["groups"]
        if self.group and not (isinstance(groups, list) and self.group.value in groups):
            return False
        return not self.text or self.text in _line(event).lower()


def _line(event: Shown) -> str:
    """What is read in the event's line, but for the time, which is the browser's."""
    who = () if "fault" in event else (event.get("plugin") or OPERATOR, event.get("action"))
    parts = (event["seq"], event["word"], *who, event.get("credential"), event["says"])
    return " ".join(str(part) for part in parts if part)
