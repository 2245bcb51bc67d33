"""Which lines of the log may show what somebody searches for, found in their bytes.

Guarantee: of lines that are as the log writes them, none is left out that a ``Filter`` takes
when it is shown. More may be given than it takes: who shows one asks the filter.

What is shown of an event differs from what is stored: kinds have other words, durations and
key versions are written out, some characters are escapes, an origin and a path are one. So a
search is cut into pieces that are stored as they are shown, and the longest is looked for,
beside what can show it otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from apex_creds.dashboard.event_words import OPERATOR, REFUSED, USE, WORDS, Filter, Group

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
        for pattern in (*self.patterns, *([_ODD] if _has_odd(low) else [])):
            places |= {low.rfind(b"\n", 0, at) + 1 for at in _found(pattern, low)}
        return [body[at : body.index(b"\n", at) + 1] for at in sorted(places)]


def _found(pattern: re.Pattern[bytes], low: bytes) -> Iterator[int]:
    """Where a line has it first."""
    at = 0
    while match := pattern.search(low, at):
        yield match.start()
        at = low.index(b"\n", match.start())


def _has_odd(low: bytes) -> bool:
    """Whether any line is odd, or almost: quicker than to look for the pattern."""
    odd = not low.isascii() or b"\\" in low or b"\x7f" in low or b"  " in low
    return odd or low.count(b'"path":"') != low.count(_USUAL_PATH)


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
    return None if wanted.group is None else Sieve(_of_group(wanted.group))


def _of_piece(piece: str, named: Named) -> tuple[re.Pattern[bytes], ...] | None:
    others = named(piece)
    if piece in OPERATOR or others is None:
        return None
    found = [re.escape(text.lower()) for text in (piece, *others)]
    found += [f'"kind":"{kind}"' for kind, word in WORDS.items() if piece in word]
    if re.fullmatch(r"v[0-9]+", piece):
        found.append(f'"key_version":{piece[1:]}')
    if re.fullmatch(r"[0-9]{4,}", piece):
        found.append('"duration_us":[0-9]{6}')
    elif re.fullmatch(r"[0-9.]+", piece) or piece in "ms":
        found.append('"kind":"invocation"')
    return tuple(re.compile(text.encode()) for text in found)


def _of_group(group: Group) -> tuple[re.Pattern[bytes], ...]:
    kinds = "|".join(sorted(REFUSED if group is Group.REFUSED else USE))
    if group is Group.REFUSED:
        return re.compile(f'"kind":"(?:{kinds})"'.encode()), re.compile(b'"decision":"deny"')
    other = "!" if group is Group.CHANGES else "="
    return (re.compile(f'"kind":"(?{other}(?:{kinds})")'.encode()),)
