"""The tables of a vault in a database, their upgrades, and what is asked of a driver.

Guarantee: what the tables hold is opaque, but for the names ``keystore`` and ``config``,
random numbers, sizes and times. A document that was deleted leaves its row without data, so
that others see that it is gone; the program's role needs no right to delete rows. Of any
number of programs that upgrade at once one does, and the others find it done; a database
that a newer program made is refused and not touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from apex_creds.errors import StorageSchemaError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from apex_creds.storage.base import Leadership

VERSION_TABLE: Final = "apex_schema"
"""Its one row names the newest of ``UPGRADES`` that was made; Alembic's, up to version 0001."""
VERSION: Final = f"SELECT version_num FROM {VERSION_TABLE}"

UPGRADES: Final[dict[str, Sequence[str]]] = {
    # ``version`` is random, chosen by the writer: it names the version, and says whose write
    # it was. ``changed`` grows with the order in which transactions began (PostgreSQL) or
    # ended (SQLite). What is encrypted does not compress (EXTERNAL).
    "0001": (
        """CREATE TABLE apex_spaces (
            space VARCHAR(64) NOT NULL,
            made {moment} NOT NULL,
            PRIMARY KEY (space)
        )""",
        """CREATE TABLE apex_documents (
            space VARCHAR(64) NOT NULL,
            name VARCHAR(64) NOT NULL,
            version BIGINT NOT NULL,
            changed BIGINT NOT NULL,
            data {bytes},
            written {moment} NOT NULL,
            PRIMARY KEY (space, name)
        )""",
        "{postgresql}ALTER TABLE apex_documents ALTER COLUMN data SET STORAGE EXTERNAL",
        "CREATE INDEX apex_documents_changed ON apex_documents (space, changed)",
        """CREATE TABLE apex_claims (
            space VARCHAR(64) NOT NULL,
            name VARCHAR(64) NOT NULL,
            PRIMARY KEY (space, name)
        )""",
        """CREATE TABLE apex_lines (
            space VARCHAR(64) NOT NULL,
            stream VARCHAR(64) NOT NULL,
            seq BIGINT NOT NULL,
            line {bytes} NOT NULL,
            PRIMARY KEY (space, stream, seq)
        )""",
    ),
}
"""The statements that lead to each version of the tables, oldest first.

This program works with the last version. A version that was released never changes. In
braces: types that the databases call differently, and which of them a statement is for.
"""

_FIRST: Final = (
    f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL,"
    f" CONSTRAINT {VERSION_TABLE}_pkc PRIMARY KEY (version_num))"
)


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """The version of the tables; None where there are none."""

    current: str | None

    @property
    def needed(self) -> str:
        """The version that this program works with."""
        return next(reversed(UPGRADES))

    @property
    def is_current(self) -> bool:
        """This program works with them."""
        return self.current == self.needed

    @property
    def is_newer(self) -> bool:
        """A newer program made them."""
        return self.current is not None and self.current not in UPGRADES

    @property
    def state(self) -> str:
        """In a word: ``none``, ``older``, ``current`` or ``newer``."""
        if self.current is None:
            return "none"
        if self.is_current:
            return "current"
        return "newer" if self.is_newer else "older"

    def check(self) -> None:
        """Returns if this program works with these tables.

        Raises:
            StorageSchemaError: It does not.
        """
        if self.is_current:
            return
        if self.current is None:
            raise StorageSchemaError(
                "The database has no tables of apex-creds.",
                hint="Make a vault in it (apex-creds init --storage URL), or check the URL.",
            )
        if self.is_newer:
            raise StorageSchemaError(
                f"The tables in the database are of version {self.current}, which a newer "
                f"apex-creds made; this one knows {self.needed}.",
                hint="Upgrade this program.",
            )
        raise StorageSchemaError(
            f"The tables in the database are of version {self.current}; {self.needed} is "
            "needed.",
            hint="Run: apex-creds db upgrade",
        )

    def upgrade(self, types: Mapping[str, str], *, fresh_only: bool) -> Iterator[str]:
        """The statements that bring these tables to this program's version.

        Args:
            types: What the database calls the types in ``UPGRADES``.
            fresh_only: Only make tables where there are none.

        Raises:
            StorageSchemaError: They are a newer program's.
        """
        if self.is_newer:
            self.check()
        if self.is_current or (fresh_only and self.current is not None):
            return
        versions = list(UPGRADES)
        done = 0 if self.current is None else versions.index(self.current) + 1
        for version in versions[done:]:
            for statement in UPGRADES[version]:
                if not statement.startswith("{postgresql}") or "postgresql" in types:
                    yield statement.format_map(types)
        if self.current is None:
            yield _FIRST
            yield f"INSERT INTO {VERSION_TABLE} VALUES ('{self.needed}')"
        else:
            yield f"UPDATE {VERSION_TABLE} SET version_num = '{self.needed}'"


# From one stream to the next, whatever number of lines they have; ``of`` is the space.
STREAMS: Final = """
WITH RECURSIVE s (stream) AS (
  SELECT min(stream) FROM apex_lines WHERE space = {of}
  UNION ALL
  SELECT (SELECT min(stream) FROM apex_lines WHERE space = {of} AND stream > s.stream)
  FROM s WHERE s.stream IS NOT NULL
)
SELECT stream,
  (SELECT max(seq) + 1 FROM apex_lines l WHERE l.space = {of} AND l.stream = s.stream)
FROM s WHERE stream IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class RowWrite:
    """What is to become of one row.

    Attributes:
        name: Of the row.
        old: The version that must be there; None: there must be no document.
        new: The version that it gets; None: it stays as it is until the others are written.
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


class Changes(NamedTuple):
    """Rows that may have changed since the last refresh, and whether these are all there are.

    A document that is not there any more has the version None.
    """

    rows: list[tuple[str, int | None]]
    whole: bool


class Dialect(Protocol):
    """One kind of database, on its driver; for one event loop.

    Documents are rows under a space. ``apply`` is all or nothing, compares versions, and can
    be repeated when its outcome is not known, because versions are random. Every coroutine
    raises ``StatementError`` where the database fails.
    """

    exact: bool
    """``poll`` knows at once what others committed, without waiting."""

    def poll(self) -> Changes | None:
        """What changed since the last refresh, without a round trip; None: nothing, or unknown.

        Usable from every thread.
        """

    def invalidate(self) -> None:
        """The next refresh (or poll) brings what the last one brought, too."""

    def subscribe(self, space: str, notify: Callable[[], None]) -> None:
        """From now on, calls ``notify`` when others may have changed something."""

    def notify_peers(self) -> None:
        """Lets other processes know, soon, that something was written here."""

    async def schema(self) -> str | None:
        """The version of the tables."""

    async def make_tables(self, *, fresh_only: bool) -> str | None:
        """Brings the tables to this program's version; returns the one of before."""

    async def spaces(self) -> list[str]:
        """The spaces that there are, oldest first."""

    async def add_space(self, space: str) -> None:
        """Makes a space; does nothing where it exists."""

    async def refresh(self, space: str) -> Changes:
        """What may have changed since the last refresh."""

    async def read(self, space: str, names: Sequence[str]) -> dict[str, Row]:
        """The documents that exist, as of one moment."""

    async def versions(self, space: str, names: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """The versions of rows, and whether there are documents in them."""

    async def apply(self, space: str, writes: Sequence[RowWrite]) -> bool:
        """Makes all writes, or none and returns False; durable on return."""

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
        """Closes every connection; idempotent."""
