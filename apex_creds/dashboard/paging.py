"""One page of a list: what a browser asks for, searched and cut.

Guarantee: an answer is bounded, however long a list is; a search matches what is shown of an
entry, in any case, and nothing that is not shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from apex_creds.errors import InvalidInputError

T = TypeVar("T")

MAX_TEXT: Final = 200
"""Characters of a search."""
MAX_SIZE: Final = 100
"""Entries of a page."""


@dataclass(frozen=True, slots=True)
class PageQuery:
    """Which part of a list a page asks for.

    Attributes:
        text: In what is shown of an entry, lower case; empty: anything.
        at: How many entries are before it.
        size: How many there are in it.
    """

    text: str = ""
    at: int = 0
    size: int = MAX_SIZE

    @classmethod
    def parse(cls, query: Mapping[str, str], axis: str = "") -> PageQuery:
        """From what a page sends.

        Args:
            query: Of its request.
            axis: Before the names of the fields, where a list has two directions.

        Raises:
            InvalidInputError: It is too long, or no number.
        """
        wanted = query.get(f"{axis}text", "").strip().lower()
        if len(wanted) > MAX_TEXT:
            raise InvalidInputError(f"A search has at most {MAX_TEXT} characters.")
        numbers = [query.get(f"{axis}{name}", "0") for name in ("at", "size")]
        if not all(n.isascii() and n.isdecimal() and len(n) <= 9 for n in numbers):
            raise InvalidInputError("That is not a place in a list.")
        at, size = map(int, numbers)
        return cls(wanted, at, min(size or MAX_SIZE, MAX_SIZE))


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list.

    Attributes:
        items: Its entries.
        at: How many that match are before them.
        of: How many match.
    """

    items: tuple[T, ...]
    at: int
    of: int


def page(items: Sequence[T], asked: PageQuery, words: Callable[[T], str]) -> Page[T]:
    """The page that is asked for; one beyond the end is the last.

    Args:
        items: All entries.
        asked: Which.
        words: What is shown of one.
    """
    found = [i for i in items if asked.text in words(i).lower()] if asked.text else items
    last = (len(found) - 1) // asked.size * asked.size if found else 0
    at = min(asked.at, last)
    return Page(tuple(found[at : at + asked.size]), at, len(found))
