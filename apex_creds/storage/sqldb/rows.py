"""What ``SqlStorage`` needs of a kind of database.

Guarantee: documents are rows under a space; ``apply`` is all or nothing, compares versions,
and can be repeated when its outcome is not known, because versions are random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from apex_creds.storage.base import Leadership


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of one row.

    Attributes:
        name: Of the row.
        old: The version that must be there; None: there must be no document.
        new: The version that it gets; None: it stays as it is until the others are changed.
        data: The new bytes; None: it is deleted.
    """

    name: str
    old: int | None
    new: int | None
    data: bytes | None = field(repr=False)


class Row(NamedTuple):
    """A document as it is stored."""

    version: int
    data: bytes


class Seen(NamedTuple):
    """What a look found: rows that may have changed, and whether these are all there are."""

    rows: list[tuple[str, int | None]]
    whole: bool


class Rows(Protocol):
    """One kind of database; every method but the first three raises ``FailedError``."""

    exact: bool
    """``glance`` tells at once what others did, without waiting."""

    def glance(self) -> Seen | None:
        """What changed since the last look, without a round trip; None: nothing, or unknown."""

    def again(self) -> None:
        """The next look (or glance) tells what this one told, too."""

    def follow(self, space: str, heard: Callable[[], None]) -> None:
        """From now on, calls ``heard`` when others may have changed something."""

    async def schema(self) -> str | None:
        """The version of the tables."""

    async def make_tables(self, *, fresh_only: bool) -> str | None:
        """Brings the tables to this program's version; returns the one of before."""

    async def spaces(self) -> list[str]:
        """The spaces that there are."""

    async def add_space(self, space: str) -> None:
        """Makes a space; does nothing where it exists."""

    async def look(self, space: str) -> Seen:
        """What may have changed since the last look."""

    async def read(self, space: str, names: Sequence[str]) -> dict[str, Row]:
        """The documents that exist, as of one moment."""

    async def versions(self, space: str, names: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """The versions of rows, and whether there are documents in them."""

    async def apply(self, space: str, changes: Sequence[Change]) -> bool:
        """Makes all changes, or none and returns False; durable on return."""

    def told(self) -> None:
        """Something was written here: others are to hear of it."""

    def lead(self, space: str, what: str) -> AbstractAsyncContextManager[Leadership]:
        """See ``SharedStorage.leader``."""

    def claim(
        self, space: str, names: Sequence[str], limit: int
    ) -> AbstractAsyncContextManager[list[str]]:
        """See ``SharedStorage.claim``."""

    async def append(self, space: str, stream: str, lines: Sequence[bytes], first: int) -> bool:
        """Adds lines if the stream has ``first`` of them, else returns False."""

    async def lines(self, space: str, stream: str, first: int, limit: int) -> list[bytes]:
        """Lines of a stream."""

    async def streams(self, space: str) -> dict[str, int]:
        """How many lines each stream has."""

    async def close(self) -> None:
        """Lets go of every connection; idempotent."""
