"""Documents in PostgreSQL, for processes on any number of machines.

Guarantee: a write is one statement in one round trip, committed on return. A look is one
statement on a connection of its own; it misses no commit, in whatever order transactions
that run at the same time commit: it asks for every row whose transaction was not over when
it looked before. After a reconnect, which may be to another server, it asks for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
from typing import TYPE_CHECKING, Final

import anyio
import psycopg
from psycopg.errors import DivisionByZero, UndefinedTable, UniqueViolation
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from apex_creds.storage.base import KEYSTORE, Leadership
from apex_creds.storage.sqldb import upgrade
from apex_creds.storage.sqldb.common import STREAMS, Common, as_bytes, as_int, told
from apex_creds.storage.sqldb.connecting import Server
from apex_creds.storage.sqldb.dberrors import DATABASE_ERRORS, FailedError
from apex_creds.storage.sqldb.listening import Listener, watch_over
from apex_creds.storage.sqldb.pool import Pool
from apex_creds.storage.sqldb.rows import Change, Row, Seen
from apex_creds.storage.sqldb.schema import VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from typing import LiteralString

    from sqlalchemy.ext.asyncio import AsyncEngine

    from apex_creds.storage.sqldb.target import Target

LOOK_SECONDS: Final = 1.0
"""After that a server that does not answer a look counts as out of reach."""
_POOL_SECONDS: Final = 5.0
_LET_GO_SECONDS: Final = 5.0
_XID: Final = "CAST(CAST(pg_current_xact_id() AS text) AS bigint)"

# The key store in any case: no number that a row claims keeps a revocation from being seen.
_LOOK: Final = f"""
SELECT s.oldest, d.name, d.version, d.data IS NULL
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest) s
LEFT JOIN apex_documents d ON d.space = %s
 AND (d.changed >= %s OR d.name = '{KEYSTORE}')
"""
_REPLACE: Final = (
    f"UPDATE apex_documents SET version = %(new)s, data = %(data)s, changed = {_XID},"
    " written = now()"
    " WHERE space = %(space)s AND name = %(name)s AND version = %(old)s AND data IS NOT NULL"
)
_CREATE: Final = (
    "INSERT INTO apex_documents AS d (space, name, version, changed, data)"
    f" VALUES (%(space)s, %(name)s, %(new)s, {_XID}, %(data)s)"
    " ON CONFLICT (space, name) DO UPDATE SET version = excluded.version,"
    " changed = excluded.changed, data = excluded.data, written = now() WHERE d.data IS NULL"
)
# Undoes itself by a division by zero unless every change could be made.
_APPLY: Final = f"""
WITH wanted AS (
  SELECT * FROM unnest(CAST(%(names)s AS text[]), CAST(%(olds)s AS bigint[]),
    CAST(%(news)s AS bigint[]), CAST(%(datas)s AS bytea[])) AS w (name, old, new, data)
), held AS (
  SELECT d.name FROM apex_documents d JOIN wanted w USING (name)
  WHERE d.space = %(space)s AND d.version = w.old AND d.data IS NOT NULL AND w.new IS NULL
  ORDER BY d.name FOR SHARE OF d
), locked AS MATERIALIZED (
  SELECT d.name, w.new, w.data FROM apex_documents d JOIN wanted w USING (name)
  WHERE d.space = %(space)s AND d.version = w.old AND d.data IS NOT NULL AND w.new IS NOT NULL
  ORDER BY d.name FOR UPDATE OF d
), replaced AS (
  UPDATE apex_documents d
  SET version = l.new, data = l.data, changed = {_XID}, written = now()
  FROM locked l WHERE d.space = %(space)s AND d.name = l.name RETURNING 1
), made AS (
  INSERT INTO apex_documents AS d (space, name, version, changed, data)
  SELECT %(space)s, w.name, w.new, {_XID}, w.data FROM wanted w WHERE w.old IS NULL
  ORDER BY w.name
  ON CONFLICT (space, name) DO UPDATE SET version = excluded.version,
    changed = excluded.changed, data = excluded.data, written = now() WHERE d.data IS NULL
  RETURNING 1
)
SELECT 1 / CAST((SELECT count(*) FROM held) + (SELECT count(*) FROM replaced)
  + (SELECT count(*) FROM made) = %(count)s AS integer)
"""
_APPEND: Final = """
INSERT INTO apex_lines (space, stream, seq, line)
SELECT CAST(%(space)s AS text), CAST(%(stream)s AS text), CAST(%(first)s AS bigint) + n - 1,
  line
FROM unnest(CAST(%(lines)s AS bytea[])) WITH ORDINALITY AS l (line, n)
WHERE (SELECT coalesce(max(seq) + 1, 0) FROM apex_lines
       WHERE space = CAST(%(space)s AS text) AND stream = CAST(%(stream)s AS text))
  = CAST(%(first)s AS bigint)
"""
_NOTIFY: Final = "SELECT pg_notify(%(channel)s, %(sender)s)"
_READ: Final = """
SELECT name, version, data FROM apex_documents
WHERE space = %(space)s AND name = ANY(%(names)s) AND data IS NOT NULL
"""
_VERSIONS: Final = """
SELECT name, version, data IS NOT NULL FROM apex_documents
WHERE space = %(space)s AND name = ANY(%(names)s)
"""
_LINES: Final = """
SELECT line FROM apex_lines
WHERE space = %(space)s AND stream = %(stream)s AND seq >= %(first)s
ORDER BY seq LIMIT %(limit)s
"""
_STREAMS: Final = STREAMS.format(of="%(of)s")
_SCHEMA: Final = f"SELECT version_num FROM {VERSION_TABLE}"
# After a dump of another server was put back: its numbers mean nothing here.
_MEND: Final = f"""
UPDATE apex_documents SET changed = {_XID}
WHERE changed > CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS text) AS bigint)
"""
_ADD_CLAIMS: Final = """
INSERT INTO apex_claims (space, name) SELECT %(space)s::text, n FROM unnest(%(names)s::text[]) n
WHERE NOT EXISTS (SELECT 1 FROM apex_claims c WHERE c.space = %(space)s::text AND c.name = n)
ON CONFLICT DO NOTHING
"""
_CLAIM: Final = """
SELECT name FROM apex_claims WHERE space = %(space)s AND name = ANY(%(names)s)
ORDER BY name LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""


class PostgresRows(Common):
    """The rows of a PostgreSQL database; see ``Rows``."""

    exact = False

    def __init__(self, target: Target) -> None:
        self.server = Server(target)
        super().__init__(_engine(self.server))
        self._pool = Pool(self.server, size=target.pool, wait=_POOL_SECONDS)
        self._looking: psycopg.AsyncConnection | None = None
        self._since = self._before = 0
        self._listener: Listener | None = None
        self._telling: asyncio.Task[None] | None = None
        self._to_tell = False
        self._space = ""
        self._sender = secrets.token_hex(8)

    # -- seeing ----------------------------------------------------------------------

    def glance(self) -> Seen | None:
        """See ``Rows``; only a look can tell."""
        return None

    def again(self) -> None:
        """See ``Rows``."""
        self._since = self._before

    def follow(self, space: str, heard: Callable[[], None]) -> None:
        """See ``Rows``."""
        self._space = space
        self._listener = Listener(
            self.server, channel=_channel(space), sender=self._sender, heard=heard
        )

    async def look(self, space: str) -> Seen:
        """See ``Rows``; tries a new connection once, and gives up after a second each."""
        with contextlib.suppress(FailedError):
            if self._looking is not None:
                return await self._look(space)
        return await self._look(space)

    async def _look(self, space: str) -> Seen:
        connection = self._looking
        try:
            with told():
                if connection is None:
                    connection = await self._connect_to_look()
                whole = self._since == 0
                rows = await _in_time(connection, _LOOK, (space, self._since))
        except BaseException:
            self._looking = None
            if connection is not None:
                connection.pgconn.finish()
            raise
        return self._taken(rows, whole=whole)

    async def _connect_to_look(self) -> psycopg.AsyncConnection:
        async with asyncio.timeout(LOOK_SECONDS):
            connection = await self.server.connect()
        self._looking, self._since = connection, 0
        return connection

    def _taken(self, rows: Sequence[Sequence[object]], *, whole: bool) -> Seen:
        oldest = rows[0][0]
        assert isinstance(oldest, int)
        # A server that was put back to an earlier state counts from there again.
        self._before = 0 if oldest < self._since else self._since
        self._since = 0 if oldest < self._since else oldest
        found = [
            (str(name), None if gone or not isinstance(version, int) else version)
            for _, name, version, gone in rows
            if name is not None
        ]
        return Seen(found, whole=whole)

    async def schema(self) -> str | None:
        """See ``Rows``."""
        try:
            found = await self._pool.run(_SCHEMA, {})
        except FailedError as error:
            if isinstance(error.__cause__, UndefinedTable):
                return None
            raise
        row = await found.fetchone()
        return None if row is None else str(row[0])

    # -- writing ---------------------------------------------------------------------

    async def make_tables(self, *, fresh_only: bool) -> str | None:
        """See ``Rows``."""
        async with self.connected() as connection:
            await connection.exec_driver_sql("BEGIN")
            try:
                before = await upgrade.upgrade(connection, fresh_only=fresh_only)
                await connection.exec_driver_sql(_MEND)
            except BaseException:
                await connection.exec_driver_sql("ROLLBACK")
                raise
            await connection.exec_driver_sql("COMMIT")
            return before.current

    async def read(self, space: str, names: Sequence[str]) -> dict[str, Row]:
        """See ``Rows``."""
        found = await self._pool.run(_READ, {"space": space, "names": list(names)})
        return {
            str(name): Row(as_int(version), as_bytes(data))
            for name, version, data in await found.fetchall()
        }

    async def versions(self, space: str, names: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """See ``Rows``."""
        found = await self._pool.run(_VERSIONS, {"space": space, "names": list(names)})
        return {
            str(name): (as_int(version), bool(there))
            for name, version, there in await found.fetchall()
        }

    async def apply(self, space: str, changes: Sequence[Change]) -> bool:
        """See ``Rows``."""
        if len(changes) == 1 and changes[0].new is not None:
            [change] = changes
            statement = _CREATE if change.old is None else _REPLACE
            return (await self._pool.run(statement, _values(space, change))).rowcount == 1
        try:
            await self._pool.run(_APPLY, _all_values(space, changes))
        except FailedError as error:
            if isinstance(error.__cause__, DivisionByZero):
                return False
            raise
        return True

    async def append(self, space: str, stream: str, lines: Sequence[bytes], first: int) -> bool:
        """See ``Rows``."""
        if not lines:
            return (await self.streams(space)).get(stream, 0) == first
        values = {"space": space, "stream": stream, "lines": list(lines), "first": first}
        try:
            return (await self._pool.run(_APPEND, values)).rowcount == len(lines)
        except FailedError as error:
            if isinstance(error.__cause__, UniqueViolation):
                return False
            raise

    async def lines(self, space: str, stream: str, first: int, limit: int) -> list[bytes]:
        """See ``Rows``."""
        values = {"space": space, "stream": stream, "first": first, "limit": limit}
        found = await self._pool.run(_LINES, values)
        return [as_bytes(line) for (line,) in await found.fetchall()]

    async def streams(self, space: str) -> dict[str, int]:
        """See ``Rows``."""
        found = await self._pool.run(_STREAMS, {"of": space})
        return {str(stream): as_int(count) for stream, count in await found.fetchall()}

    def told(self) -> None:
        """See ``Rows``; sent beside the write, since NOTIFY makes commits wait in a row."""
        self._to_tell = True
        if self._telling is None or self._telling.done():
            self._telling = asyncio.ensure_future(self._tell())

    async def _tell(self) -> None:
        while self._to_tell:
            self._to_tell = False
            with contextlib.suppress(FailedError):  # others look every second all the same
                await self._pool.run(
                    _NOTIFY, {"channel": _channel(self._space), "sender": self._sender}
                )

    # -- sharing work ----------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lead(self, space: str, what: str) -> AsyncIterator[Leadership]:
        """See ``Rows``; by an advisory lock on a connection of its own."""
        key = int.from_bytes(
            hashlib.blake2b(f"{space}.{what}".encode(), digest_size=8).digest(), signed=True
        )
        async with self._own_connection("SELECT pg_advisory_unlock_all()") as connection:
            with told():
                cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (key,))
                row = await cursor.fetchone()
            lead = Leadership(held=bool(row and row[0]))
            guard = asyncio.ensure_future(watch_over(connection, lead)) if lead else None
            try:
                yield lead
            finally:
                lead.lose()
                if guard is not None:
                    guard.cancel()
                    await asyncio.gather(guard, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def claim(
        self, space: str, names: Sequence[str], limit: int
    ) -> AsyncIterator[list[str]]:
        """See ``Rows``; by row locks, on a connection of its own."""
        values = {"space": space, "names": list(names), "limit": limit}
        async with self._own_connection("ROLLBACK") as connection:
            with told():
                await connection.execute(_ADD_CLAIMS, values)
                await connection.execute("BEGIN")
                cursor = await connection.execute(_CLAIM, values)
                ours = [str(name) for (name,) in await cursor.fetchall()]
            yield ours

    @contextlib.asynccontextmanager
    async def _own_connection(
        self, let_go: LiteralString
    ) -> AsyncIterator[psycopg.AsyncConnection]:
        """For locks, which ``let_go`` gives up: a server sees later that a line is closed."""
        with told(sent=False):
            connection = await self.server.connect()
        try:
            yield connection
        finally:
            with (
                anyio.CancelScope(shield=True),
                contextlib.suppress(*DATABASE_ERRORS),
                _answering(connection, _LET_GO_SECONDS),
            ):
                await connection.execute(let_go)
            with contextlib.suppress(*DATABASE_ERRORS):
                await connection.close()

    async def close(self) -> None:
        """See ``Rows``."""
        if self._listener is not None:
            await self._listener.close()
        if self._telling is not None:
            await asyncio.gather(self._telling, return_exceptions=True)
        looking, self._looking = self._looking, None
        if looking is not None:
            await looking.close()
        await self._pool.close()
        await self.engine.dispose()


def _channel(space: str) -> str:
    return f"apex_{space[:48]}"


def _values(space: str, change: Change) -> Mapping[str, object]:
    values: dict[str, object] = {"space": space, "name": change.name, "new": change.new}
    values["data"] = change.data
    return values if change.old is None else {**values, "old": change.old}


def _all_values(space: str, changes: Sequence[Change]) -> Mapping[str, object]:
    return {
        "space": space,
        "names": [change.name for change in changes],
        "olds": [change.old for change in changes],
        "news": [change.new for change in changes],
        "datas": [change.data for change in changes],
        "count": len(changes),
    }


async def _in_time(
    connection: psycopg.AsyncConnection, statement: str, values: Sequence[object]
) -> list[tuple[object, ...]]:
    """The rows of a statement, if the server answers in time."""
    with _answering(connection, LOOK_SECONDS):
        cursor = await connection.execute(statement, values, prepare=True, binary=True)
        return await cursor.fetchall()


@contextlib.contextmanager
def _answering(connection: psycopg.AsyncConnection, seconds: float) -> Iterator[None]:
    """Cuts the line where the server does not answer in time.

    Not by cancelling: that would ask the server, and wait for it.
    """
    timer = asyncio.get_running_loop().call_later(seconds, _cut, connection)
    try:
        yield
    finally:
        timer.cancel()


def _cut(connection: psycopg.AsyncConnection) -> None:
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(connection.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def _engine(server: Server) -> AsyncEngine:
    """For what is rare: the tables and the spaces."""
    return create_async_engine(
        "postgresql+psycopg://",
        async_creator=server.connect,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        poolclass=NullPool,
        use_native_hstore=False,
    )
