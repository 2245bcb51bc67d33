"""Documents in PostgreSQL, for processes on any number of machines.

Guarantee: a write is one statement in one round trip, committed and durable on return, also
where the server's default is otherwise. A refresh is one statement on a separate
connection; it misses no commit, in whatever order transactions that run at the same time
commit: it asks for every row whose transaction was not over at the refresh before. After a
reconnect, which may be to another server, it asks for all. A subscriber is notified soon
after another process said that it wrote, and every second in any case; a leader whose
connection broke learns it at once, and one whose server went silent within seconds.

A password comes from a file that libpq reads or from the OS keyring, at the time of
connecting; it is kept nowhere and is in no URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import psycopg
import psycopg.conninfo
from psycopg import sql
from psycopg.errors import DivisionByZero, UndefinedTable, UniqueViolation
from psycopg.pq import TransactionStatus

from apex_creds.errors import StorageError
from apex_creds.storage.base import KEYSTORE, Leadership
from apex_creds.storage.sql_retry import (
    GONE,
    OTHER,
    StatementError,
    acquire_in_time,
    meaning_of_state,
    meaning_of_text,
)
from apex_creds.storage.sql_schema import (
    STREAMS,
    VERSION,
    VERSION_TABLE,
    Changes,
    Row,
    RowWrite,
    SchemaStatus,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from typing import LiteralString, TypeAlias

    from apex_creds.storage.database_url import Target

    Connection: TypeAlias = psycopg.AsyncConnection[tuple[Any, ...]]

DATABASE_ERRORS: Final = (psycopg.Error, OSError, TimeoutError)
"""What the driver raises for a server that does not do what it is asked."""
REFRESH_SECONDS: Final = 1.0
"""After that a server that does not answer a refresh counts as out of reach."""
_POOL_SECONDS: Final = 5.0
_RELEASE_SECONDS: Final = 5.0
_CANCELLED_SECONDS: Final = 1.0
_NOTIFY_SECONDS: Final = 1.0
_SILENT_SECONDS: Final = 3.0
_HAS_REQUIRE_AUTH: Final = 160_000
_UPGRADE_LOCK: Final = 0x6170_6578_5F64_6231  # "apex_db1"
_TYPES: Final = {
    "bytes": "BYTEA",
    "moment": "TIMESTAMP WITH TIME ZONE DEFAULT now()",
    "postgresql": "",
}
_DURABLE: Final = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)
_HAS_TABLES: Final = f"SELECT to_regclass('{VERSION_TABLE}') IS NOT NULL"
_XID: Final = "CAST(CAST(pg_current_xact_id() AS text) AS bigint)"

# The key store in any case: no number that a row claims keeps a revocation from being seen.
_CHANGED: Final = f"""
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
_STREAMS: Final = STREAMS.format(of="%(space)s")
_SPACES: Final = "SELECT space FROM apex_spaces ORDER BY made"
_ADD_SPACE: Final = "INSERT INTO apex_spaces (space) VALUES (%(space)s) ON CONFLICT DO NOTHING"
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


class PostgresDialect:
    """The rows of a PostgreSQL database; see ``Dialect``."""

    exact = False

    def __init__(self, target: Target) -> None:
        self.target = target
        self._pool = _Pool(target)
        self._refreshing: Connection | None = None
        self._since = self._before = 0
        self._listener: _Listener | None = None
        self._notifying: asyncio.Task[None] | None = None
        self._to_notify = False
        self._channel = ""
        self._sender = secrets.token_hex(8)

    # -- seeing ----------------------------------------------------------------------

    def poll(self) -> Changes | None:
        """See ``Dialect``; only a refresh can know."""
        return None

    def invalidate(self) -> None:
        """See ``Dialect``."""
        self._since = self._before

    def subscribe(self, space: str, notify: Callable[[], None]) -> None:
        """See ``Dialect``."""
        self._channel = f"apex_{space[:48]}"
        self._listener = _Listener(
            self.target, channel=self._channel, sender=self._sender, notify=notify
        )

    def notify_peers(self) -> None:
        """See ``Dialect``; beside the write, since NOTIFY makes commits wait in a row."""
        self._to_notify = True
        if self._notifying is None or self._notifying.done():
            self._notifying = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        while self._to_notify:
            self._to_notify = False
            with contextlib.suppress(StatementError):  # others ask every second all the same
                await self._pool.run(_NOTIFY, channel=self._channel, sender=self._sender)

    async def refresh(self, space: str) -> Changes:
        """See ``Dialect``; tries a new connection once, and gives up after a second each."""
        if self._refreshing is not None:
            with contextlib.suppress(StatementError):
                return await self._refresh(space)
        return await self._refresh(space)

    async def _refresh(self, space: str) -> Changes:
        connection = self._refreshing
        try:
            with postgres_errors():
                if connection is None:
                    async with asyncio.timeout(REFRESH_SECONDS):
                        connection = await connect(self.target)
                    self._refreshing, self._since = connection, 0
                whole, values = self._since == 0, (space, self._since)
                with _answering(connection, REFRESH_SECONDS):
                    cursor = await connection.execute(
                        _CHANGED, values, prepare=True, binary=True
                    )
                    rows = await cursor.fetchall()
        except BaseException:
            self._refreshing = None
            if connection is not None:
                connection.pgconn.finish()
            raise
        oldest: int = rows[0][0]
        # A server that was put back to an earlier state counts from there again.
        self._before, self._since = (self._since, oldest) if oldest >= self._since else (0, 0)
        found = [(name, None if gone else version) for _, name, version, gone in rows if name]
        return Changes(found, whole=whole)

    # -- the tables ------------------------------------------------------------------

    async def schema(self) -> str | None:
        """See ``Dialect``."""
        try:
            found = await self._rows(VERSION)
        except StatementError as error:
            if isinstance(error.__cause__, UndefinedTable):
                return None
            raise
        return str(found[0][0]) if found else None

    async def make_tables(self, *, fresh_only: bool) -> str | None:
        """See ``Dialect``."""
        async with self._pool.connection() as connection:
            with postgres_errors():
                async with connection.transaction():
                    await connection.execute("SET LOCAL lock_timeout = 0")
                    await connection.execute("SET LOCAL statement_timeout = 0")
                    lock = "SELECT pg_advisory_xact_lock(%s)"
                    await connection.execute(lock, (_UPGRADE_LOCK,))
                    [(there,)] = await (await connection.execute(_HAS_TABLES)).fetchall()
                    rows = await (await connection.execute(VERSION)).fetchall() if there else []
                    before = SchemaStatus(str(rows[0][0]) if rows else None)
                    for statement in before.upgrade(_TYPES, fresh_only=fresh_only):
                        await connection.execute(statement)
                    await connection.execute(_MEND)
                return before.current

    async def spaces(self) -> list[str]:
        """See ``Dialect``."""
        return [space for (space,) in await self._rows(_SPACES)]

    async def add_space(self, space: str) -> None:
        """See ``Dialect``."""
        if space not in await self.spaces():
            await self._pool.run(_ADD_SPACE, space=space)

    # -- documents and lines ---------------------------------------------------------

    async def read(self, space: str, names: Sequence[str]) -> dict[str, Row]:
        """See ``Dialect``."""
        found = await self._rows(_READ, space=space, names=list(names))
        return {name: Row(version, bytes(data)) for name, version, data in found}

    async def versions(self, space: str, names: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """See ``Dialect``."""
        found = await self._rows(_VERSIONS, space=space, names=list(names))
        return {name: (version, there) for name, version, there in found}

    async def apply(self, space: str, writes: Sequence[RowWrite]) -> bool:
        """See ``Dialect``."""
        if len(writes) == 1 and (write := writes[0]).new is not None:
            old = {} if write.old is None else {"old": write.old}
            done = await self._pool.run(
                _REPLACE if old else _CREATE,
                space=space,
                name=write.name,
                new=write.new,
                data=write.data,
                **old,
            )
            return done.rowcount == 1
        try:
            await self._pool.run(
                _APPLY,
                space=space,
                names=[write.name for write in writes],
                olds=[write.old for write in writes],
                news=[write.new for write in writes],
                datas=[write.data for write in writes],
                count=len(writes),
            )
        except StatementError as error:
            if isinstance(error.__cause__, DivisionByZero):
                return False
            raise
        return True

    async def append(self, space: str, stream: str, lines: Sequence[bytes], first: int) -> bool:
        """See ``Dialect``."""
        if not lines:
            return (await self.streams(space)).get(stream, 0) == first
        values = {"space": space, "stream": stream, "lines": list(lines), "first": first}
        try:
            return (await self._pool.run(_APPEND, **values)).rowcount == len(lines)
        except StatementError as error:
            if isinstance(error.__cause__, UniqueViolation):
                return False
            raise

    async def lines(self, space: str, stream: str, first: int, limit: int) -> list[bytes]:
        """See ``Dialect``."""
        found = await self._rows(_LINES, space=space, stream=stream, first=first, limit=limit)
        return [bytes(line) for (line,) in found]

    async def streams(self, space: str) -> dict[str, int]:
        """See ``Dialect``."""
        return dict(await self._rows(_STREAMS, space=space))

    async def _rows(self, statement: str, **values: object) -> list[tuple[Any, ...]]:
        return await (await self._pool.run(statement, **values)).fetchall()

    # -- sharing work ----------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lead(self, space: str, what: str) -> AsyncIterator[Leadership]:
        """See ``Dialect``; by an advisory lock on a separate connection."""
        key = int.from_bytes(
            hashlib.blake2b(f"{space}.{what}".encode(), digest_size=8).digest(), signed=True
        )
        async with self._own_connection("SELECT pg_advisory_unlock_all()") as connection:
            with postgres_errors():
                cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (key,))
                row = await cursor.fetchone()
            lead = Leadership(held=bool(row and row[0]))
            guard = asyncio.ensure_future(_watch_over(connection, lead)) if lead else None
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
        """See ``Dialect``; by row locks, on a separate connection."""
        values = {"space": space, "names": list(names), "limit": limit}
        async with self._own_connection("ROLLBACK") as connection:
            with postgres_errors():
                await connection.execute(_ADD_CLAIMS, values)
                await connection.execute("BEGIN")
                cursor = await connection.execute(_CLAIM, values)
                ours = [name for (name,) in await cursor.fetchall()]
            yield ours

    @contextlib.asynccontextmanager
    async def _own_connection(self, release: LiteralString) -> AsyncIterator[Connection]:
        """For locks, which ``release`` gives up: a server sees later that a line is closed."""
        with postgres_errors(sent=False):
            connection = await connect(self.target)
        try:
            yield connection
        finally:
            with (
                anyio.CancelScope(shield=True),
                contextlib.suppress(*DATABASE_ERRORS),
                _answering(connection, _RELEASE_SECONDS),
            ):
                await connection.execute(release)
            with contextlib.suppress(*DATABASE_ERRORS):
                await connection.close()

    async def close(self) -> None:
        """See ``Dialect``."""
        if self._listener is not None:
            await self._listener.close()
        if self._notifying is not None:
            await asyncio.gather(self._notifying, return_exceptions=True)
        refreshing, self._refreshing = self._refreshing, None
        if refreshing is not None:
            await refreshing.close()
        self._pool.close()


# -- connections -------------------------------------------------------------------------


async def connect(target: Target) -> Connection:
    """A new connection, on which every statement commits.

    One that is made for a caller who is cancelled meanwhile is closed again.

    Raises:
        psycopg.Error: It can't be had.
        StorageError: The keyring has no password, or this event loop can't be used.
    """
    task = asyncio.ensure_future(_connect(target))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_drop)
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task}, timeout=_CANCELLED_SECONDS)
        raise


async def _connect(target: Target) -> Connection:
    given = dict(target.connect)
    if psycopg.pq.version() < _HAS_REQUIRE_AUTH:
        given.pop("require_auth", None)
    if target.keyring is not None:
        given["password"] = await anyio.to_thread.run_sync(_password, target.keyring)
    if type(asyncio.get_running_loop()).__name__ == "ProactorEventLoop":
        raise StorageError(
            "This event loop can't be used with PostgreSQL on Windows.",
            hint="Run under asyncio.SelectorEventLoop.",
        )
    # What a database of any encoding says is text, and the same (psycopg gives bytes for
    # SQL_ASCII). All that is ours is ASCII or binary, so that no encoding can change it.
    said = psycopg.conninfo.make_conninfo("", **given, client_encoding="UTF8")
    connection = await psycopg.AsyncConnection.connect(said, autocommit=True)
    try:
        await connection.execute(_DURABLE)
    except BaseException:
        connection.pgconn.finish()
        raise
    return connection


def _drop(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        connection = task.result()
        connection.pgconn.finish()


def _password(place: tuple[str, str]) -> str:
    import keyring
    from keyring.errors import KeyringError

    service, user = place
    try:
        found = keyring.get_password(service, user)
    except KeyringError as error:
        raise StorageError(
            f"The keyring does not answer ({type(error).__name__}).",
            hint="Unlock it, or use ?passfile=PATH.",
        ) from None
    if found is None:
        raise StorageError(
            f"The keyring has no password for {service}/{user}.",
            hint=f"Store it with: keyring set {service} {user}",
        )
    return found


@contextlib.contextmanager
def _answering(connection: Connection, seconds: float) -> Iterator[None]:
    """Cuts the line where the server does not answer in time.

    Not by cancelling: that would ask the server, and wait for it.
    """

    def cut() -> None:
        with (
            contextlib.suppress(OSError, psycopg.Error),
            socket.socket(fileno=os.dup(connection.fileno())) as line,
        ):
            line.shutdown(socket.SHUT_RDWR)

    timer = asyncio.get_running_loop().call_later(seconds, cut)
    try:
        yield
    finally:
        timer.cancel()


class _Pool:
    """Connections that are kept and used again; see docs/adr/0007 for why it is our own.

    Guarantee: at most so many at once, in the order in which they were asked for, and each
    wait ends in time; one that can't be made says why, at once. One that broke, or was left
    in the middle of something, is never used again, nor are those that lay idle then.
    Between checking one out and using it there is nothing: a statement costs its round trip.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._turns = asyncio.Semaphore(target.pool)
        self._idle: list[Connection] = []
        self._closed = False

    async def run(
        self, statement: str, **values: object
    ) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        """Executes one statement, which is committed on return.

        Raises:
            StatementError: It failed.
        """
        async with self.connection() as connection:
            with postgres_errors():
                cursor = connection.cursor(binary=True)
                return await cursor.execute(statement, values, prepare=True)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection, for the block.

        Raises:
            StatementError: None can be had.
        """
        await acquire_in_time(self._turns, seconds=_POOL_SECONDS)
        try:
            connection = await self._take()
            try:
                yield connection
            finally:
                self._put_back(connection)
        finally:
            self._turns.release()

    def close(self) -> None:
        """Closes all that are not in use, and the others when they are put back."""
        self._closed = True
        self._forget_idle()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        with postgres_errors(sent=False):
            return await connect(self._target)

    def _put_back(self, connection: Connection) -> None:
        sound = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if sound and not self._closed:
            self._idle.append(connection)
            return
        connection.pgconn.finish()
        if not sound:  # what ended this one has ended the others: a restart, for one
            self._forget_idle()

    def _forget_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.pgconn.finish()


# -- hearing from the server -------------------------------------------------------------


class _Listener:
    """A task that listens on a separate connection.

    Args:
        target: Where to.
        channel: What to.
        sender: What this process signs its own notifications with; they are not passed on.
        notify: Called without waiting.
    """

    def __init__(
        self, target: Target, *, channel: str, sender: str, notify: Callable[[], None]
    ) -> None:
        self._target = target
        self._channel = channel
        self._sender = sender
        self._notify = notify
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Ends it."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(*DATABASE_ERRORS, StorageError):
                await self._listen()
            self._notify()
            await asyncio.sleep(_NOTIFY_SECONDS / 4)

    async def _listen(self) -> None:
        connection = await connect(self._target)
        try:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            self._notify()  # for what was said before
            while True:
                others = own = False
                async for said in connection.notifies(timeout=_NOTIFY_SECONDS, stop_after=1):
                    own = said.payload == self._sender
                    others = others or not own
                if others or not own:
                    self._notify()
        finally:
            connection.pgconn.finish()


async def _watch_over(connection: Connection, lead: Leadership) -> None:
    """Ends ``lead`` when the connection does, or its server does not answer any more."""
    try:
        while True:
            async for _ in connection.notifies(timeout=_NOTIFY_SECONDS):
                pass
            answer = asyncio.ensure_future(connection.execute("SELECT 1"))
            await asyncio.wait({answer}, timeout=_SILENT_SECONDS)
            if not answer.done():
                answer.cancel()
                return
            answer.result()
    except DATABASE_ERRORS:
        pass
    finally:
        lead.lose()


# -- errors ------------------------------------------------------------------------------


@contextlib.contextmanager
def postgres_errors(*, sent: bool = True) -> Iterator[None]:
    """Turns the driver's exceptions into ``StatementError``.

    Args:
        sent: Something may have reached the server; if not, no write can have happened.
    """
    try:
        yield
    except DATABASE_ERRORS as error:
        meant = meaning_of(error)
        meant.uncertain = meant.uncertain and sent
        raise meant from error


def meaning_of(error: Exception) -> StatementError:
    """What an exception of ``DATABASE_ERRORS`` means for the caller."""
    if not isinstance(error, psycopg.Error):
        return GONE.failure()
    if error.sqlstate is not None:
        return meaning_of_state(error.sqlstate).failure(detail=error.sqlstate)
    # No answer of the server, so what it did is not known.
    lost = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    meaning = meaning_of_text(str(error)) or (GONE if lost else OTHER)
    return meaning.failure(detail=type(error).__name__, uncertain=lost)
