"""An event of the log in the words that the page shows, and what a search finds by them.

Guarantee: a search matches what a reader sees in the event's line, and nothing else: hidden
names, identifiers and field names match nothing. The page and the search on the server use
the same words, since both get them from here. A sieve finds lines in their bytes: of lines
that are as the log writes them, it leaves out none that the filter takes when it is shown. It
may give more: the filter has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from apex_creds.dashboard.paging import MAX_TEXT
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
FOR: Final = "for"
"""Between a credential and the principal whose it is."""
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
    """The event and how it is shown: ``word``, ``says``, ``tone``, ``groups``, the ``line``."""
    kind, fault = event.get("kind"), "fault" in event
    word = "altered" if fault else WORDS.get(str(kind), kind)
    groups = [Group.USE.value if kind in USE else Group.CHANGES.value]
    if fault or kind in REFUSED or event.get("decision") == "deny":
        groups.insert(0, Group.REFUSED.value)
    says = _says(event)
    made = {**event, "word": word, "says": says, "tone": _tone(event, groups), "groups": groups}
    return {**made, "line": _line(made)}


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
        return not self.text or self.text in str(event["line"]).lower()


def _line(event: Shown) -> str:
    """What is read in the event's line, but for the time, which is the browser's."""
    who = () if "fault" in event else (event.get("plugin") or OPERATOR, event.get("action"))
    whose = f"{FOR} {event['principal']}" if event.get("principal") else ""
    parts = (event["seq"], event["word"], *who, event.get("credential"), whose, event["says"])
    return " ".join(str(part) for part in parts if part)


# -- which lines may show it ----------------------------------------------------------------


# What is shown of an event differs from what is stored: kinds have other words, durations and
# key versions are written out, some characters are escapes, an origin and a path are one. So a
# search is cut into pieces that are stored as they are shown; the sieve searches for the
# longest, and for what can show it otherwise.
_PIECE: Final = re.compile(r"[!#-.0-\[\]-~]+")
"""What neither JSON nor the page escapes, and no part of a line ends or begins within."""
_ODD: Final = re.compile(rb'[^\x20-\x7e\n]|\\|  |"path":"[^/]')
"""Where what is stored may be shown as something else, or run into what stands before it."""
_USUAL_PATH: Final = b'"path":"/'

Named = Callable[[str], "list[str] | None"]
"""Which other texts the log may have for names that have a text in them; None: too many."""


@dataclass(frozen=True, slots=True)
class Sieve:
    """Finds lines.

    Attributes:
        patterns: A line that is wanted, in lower case, has one of them or is odd.
    """

    patterns: tuple[re.Pattern[bytes], ...]

    def lines(self, body: bytes) -> list[bytes]:
        """The lines of ``body`` that may be wanted, in their order; each ends in a newline."""
        low, places = body.lower(), set[int]()
        # Whether any line is odd, or almost: quicker than to search for the pattern.
        odd = not low.isascii() or b"\\" in low or b"\x7f" in low or b"  " in low
        odd = odd or low.count(b'"path":"') != low.count(_USUAL_PATH)
        for pattern in (*self.patterns, *([_ODD] if odd else [])):
            at = 0
            while match := pattern.search(low, at):  # once in each line
                places.add(low.rfind(b"\n", 0, match.start()) + 1)
                at = low.index(b"\n", match.start())
        return [body[at : body.index(b"\n", at) + 1] for at in sorted(places)]


def sieve_of(wanted: Filter, *, named: Named = lambda _: []) -> Sieve | None:
    """The sieve of a search; None: any line may show it.

    Args:
        wanted: What is searched for.
        named: Of names that are shown otherwise than they are stored.
    """
    pieces = sorted(_PIECE.findall(wanted.text), key=len, reverse=True)
    for piece in pieces:
        if (found := _of_piece(piece, named)) is not None:
            return Sieve(found)
    if wanted.group is None:
        return None
    if wanted.group is Group.REFUSED:
        kinds = "|".join(sorted(REFUSED))
        found = re.compile(f'"kind":"(?:{kinds})"'.encode()), re.compile(b'"decision":"deny"')
        return Sieve(found)
    other, kinds = "!" if wanted.group is Group.CHANGES else "=", "|".join(sorted(USE))
    return Sieve((re.compile(f'"kind":"(?{other}(?:{kinds})")'.encode()),))


def _of_piece(piece: str, named: Named) -> tuple[re.Pattern[bytes], ...] | None:
    others = named(piece)
    if piece in OPERATOR or others is None:
        return None
    found = [re.escape(text.lower()) for text in (piece, *others)]
    found += [f'"kind":"{kind}"' for kind, word in WORDS.items() if piece in word]
    if piece in FOR:
        found.append('"principal":')
    if re.fullmatch(r"v[0-9]+", piece):
        found.append(f'"key_version":{piece[1:]}')
    if re.fullmatch(r"[0-9]{4,}", piece):
        found.append('"duration_us":[0-9]{6}')
    elif re.fullmatch(r"[0-9.]+", piece) or piece in "ms":
        found.append('"kind":"invocation"')
    return tuple(re.compile(text.encode()) for text in found)
