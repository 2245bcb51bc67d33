"""Statements that both kinds of database understand, on a SQLAlchemy engine.

Guarantee: every statement is a transaction of its own unless a method says otherwise, and
what fails is a ``FailedError``, never the driver's exception.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, insert, select, text

from apex_creds.storage.sqldb import upgrade
from apex_creds.storage.sqldb.dberrors import DATABASE_ERRORS, FailedError, failed
from apex_creds.storage.sqldb.rows import Row
from apex_creds.storage.sqldb.schema import documents, lines, spaces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from sqlalchemy import CursorResult, Executable
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_OF_SPACE: Final = documents.c.space == bindparam("of")
_NAMED: Final = documents.c.name.in_(bindparam("names", expanding=True))
_THERE: Final = documents.c.data.is_not(None)
_READ: Final = select(documents.c.name, documents.c.version, documents.c.data).where(
    _OF_SPACE, _NAMED, _THERE
)
_VERSIONS: Final = select(documents.c.name, documents.c.version, _THERE).where(
    _OF_SPACE, _NAMED
)
_LINES: Final = (
    select(lines.c.line)
    .where(
        lines.c.space == bindparam("of"),
        lines.c.stream == bindparam("stream"),
        lines.c.seq >= bindparam("first"),
    )
    .order_by(lines.c.seq)
    .limit(bindparam("most"))
)
# From one stream to the next, whatever number of lines they have.
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
_STREAMS: Final = text(STREAMS.format(of=":of"))


@contextlib.contextmanager
def told(*, sent: bool = True) -> Iterator[None]:
    """Turns the driver's exceptions into ``FailedError``.

    Args:
        sent: Something may have reached the server; if not, no write can have happened.
    """
    try:
        yield
    except DATABASE_ERRORS as error:
        meant = failed(error)
        raise FailedError(meant.error, again=meant.again, lost=meant.lost and sent) from error


class Common:
    """What SQLite and PostgreSQL have in common."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[AsyncConnection]:
        """A connection of the pool, on which every statement commits."""
        with told(sent=False):
            connection = await self.engine.connect()
        try:
            with told():
                yield connection
        finally:
            with contextlib.suppress(*DATABASE_ERRORS):
                await connection.close()

    async def run(
        self, statement: Executable, values: Mapping[str, object]
    ) -> CursorResult[*tuple[object, ...]]:
        """Executes one statement."""
        async with self.connected() as connection:
            return await connection.execute(statement, values)

    async def schema(self) -> str | None:
        """See ``Rows``."""
        async with self.connected() as connection:
            return (await upgrade.status(connection)).current

    async def spaces(self) -> list[str]:
        """See ``Rows``."""
        found = await self.run(select(spaces.c.space).order_by(spaces.c.made), {})
        return [str(space) for (space,) in found]

    async def add_space(self, space: str) -> None:
        """See ``Rows``."""
        if space not in await self.spaces():
            await self.run(insert(spaces), {"space": space})

    async def read(self, space: str, names: Sequence[str]) -> dict[str, Row]:
        """See ``Rows``."""
        found = await self.run(_READ, {"of": space, "names": list(names)})
        return {name: Row(version, bytes(data)) for name, version, data in _typed(found)}

    async def versions(self, space: str, names: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """See ``Rows``."""
        found = await self.run(_VERSIONS, {"of": space, "names": list(names)})
        return {str(name): (as_int(version), bool(there)) for name, version, there in found}

    async def lines(self, space: str, stream: str, first: int, limit: int) -> list[bytes]:
        """See ``Rows``."""
        values = {"of": space, "stream": stream, "first": first, "most": limit}
        found = await self.run(_LINES, values)
        return [as_bytes(line) for (line,) in found]

    async def streams(self, space: str) -> dict[str, int]:
        """See ``Rows``."""
        found = await self.run(_STREAMS, {"of": space})
        return {str(stream): as_int(count) for stream, count in found}


def _typed(found: CursorResult[*tuple[object, ...]]) -> Iterator[tuple[str, int, bytes]]:
    for name, version, data in found:
        yield str(name), as_int(version), as_bytes(data)


def as_int(value: object) -> int:
    """For the type checker."""
    assert isinstance(value, int)
    return value


def as_bytes(value: object) -> bytes:
    """For the type checker; copies a view."""
    assert isinstance(value, (bytes, memoryview))
    return bytes(value)
