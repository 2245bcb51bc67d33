"""Documents in an SQLite file, for several processes of one machine.

Guarantee: the file is ours, closed to others, in a directory where nobody else can put one,
and written with full durability (WAL, ``synchronous=FULL``); what another process committed
is seen without waiting, because SQLite itself counts commits. A file that was removed or
replaced is never used on: nothing in memory counts as current then, and no write to it is
acknowledged. Deleted bytes are overwritten in the file (``secure_delete``).

The driver is the standard library's, in a worker thread for each statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sqlite3
import stat
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from anyio import to_thread
from filelock import Timeout

from apex_creds.errors import (
    StorageError,
    StorageUnreachableError,
    UnsafePathError,
    UnsafePermissionsError,
)
from apex_creds.fs.home import make_home
from apex_creds.fs.lock import lock_at, release
from apex_creds.fs.private_files import check, create_file, storage_error, translated
from apex_creds.storage.base import KEYSTORE, Leadership
from apex_creds.storage.sql_retry import (
    FULL,
    GONE,
    LOCKED,
    NO_TABLES,
    OTHER,
    READ_ONLY,
    Meaning,
    StatementError,
    acquire_in_time,
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
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

_BUSY_SECONDS: Final = 10
_READERS: Final = 4
_POLL_SECONDS: Final = 0.05
_BESIDE: Final = ("-wal", "-shm", "-journal")
_TYPES: Final = {"bytes": "BLOB", "moment": "DATETIME DEFAULT CURRENT_TIMESTAMP"}
_PRAGMAS: Final = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",
    "PRAGMA trusted_schema=OFF",
)
_HAS_TABLES: Final = (
    f"SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = '{VERSION_TABLE}'"
)
_NEXT: Final = "(SELECT coalesce(max(changed), 0) + 1 FROM apex_documents WHERE space = :space)"
_CREATE: Final = (
    "INSERT INTO apex_documents (space, name, version, changed, data)"
    f" VALUES (:space, :name, :new, {_NEXT}, :data)"
    " ON CONFLICT (space, name) DO UPDATE SET version = excluded.version,"
    " changed = excluded.changed, data = excluded.data, written = CURRENT_TIMESTAMP"
    " WHERE apex_documents.data IS NULL"
)
_AT_OLD: Final = "space = :space AND name = :name AND version = :old AND data IS NOT NULL"
_REPLACE: Final = (
    f"UPDATE apex_documents SET version = :new, changed = {_NEXT}, data = :data,"
    f" written = CURRENT_TIMESTAMP WHERE {_AT_OLD}"
)
_HOLD: Final = f"SELECT 1 FROM apex_documents WHERE {_AT_OLD}"
# The key store in any case: no number that a row claims keeps a revocation from being seen.
_CHANGED: Final = (
    "SELECT name, version, changed, data IS NULL FROM apex_documents"
    f" WHERE space = ? AND (changed > ? OR name = '{KEYSTORE}')"
)
_COUNT: Final = (
    "SELECT coalesce(max(seq) + 1, 0) FROM apex_lines WHERE space = ? AND stream = ?"
)
_APPEND: Final = "INSERT INTO apex_lines (space, stream, seq, line) VALUES (?, ?, ?, ?)"
_LINES: Final = (
    "SELECT line FROM apex_lines WHERE space = ? AND stream = ? AND seq >= ?"
    " ORDER BY seq LIMIT ?"
)
_ADD_SPACE: Final = "INSERT INTO apex_spaces (space) VALUES (?) ON CONFLICT DO NOTHING"
_SPACES: Final = "SELECT space FROM apex_spaces ORDER BY made, rowid"
_MEANINGS: Final = {
    sqlite3.SQLITE_BUSY: LOCKED,
    sqlite3.SQLITE_LOCKED: LOCKED,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_FULL: FULL,
    sqlite3.SQLITE_PERM: READ_ONLY,
    sqlite3.SQLITE_NOTADB: Meaning(
        StorageError, "The file is no SQLite database.", "Check the URL, or restore a backup."
    ),
    sqlite3.SQLITE_CORRUPT: Meaning(
        StorageError, "The SQLite database is damaged.", "Restore a backup."
    ),
    sqlite3.SQLITE_CANTOPEN: Meaning(
        StorageError, "The SQLite database can't be opened.", "Check the URL and the directory."
    ),
}

T = TypeVar("T")


class SqliteDialect:
    """The rows of an SQLite file; see ``Dialect``."""

    exact = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connections = _Connections(path)
        self._watcher = _CommitWatcher(path)
        self._poller: asyncio.Task[None] | None = None
        self._reading = asyncio.Semaphore(_READERS)
        self._writing = asyncio.Semaphore(1)

    # -- seeing ----------------------------------------------------------------------

    def poll(self) -> Changes | None:
        """See ``Dialect``."""
        return self._watcher.poll()

    def invalidate(self) -> None:
        """See ``Dialect``."""
        self._watcher.invalidate()

    def subscribe(self, space: str, notify: Callable[[], None]) -> None:
        """See ``Dialect``; polls."""

        async def polling() -> None:
            while True:
                await asyncio.sleep(_POLL_SECONDS)
                notify()

        self._watcher.space = space
        self._poller = asyncio.ensure_future(polling())

    def notify_peers(self) -> None:
        """See ``Dialect``; the file itself shows it."""

    async def refresh(self, space: str) -> Changes:
        """See ``Dialect``."""
        self._watcher.space = space
        with sqlite_errors():
            return self._watcher.poll(strict=True) or Changes([], whole=False)

    # -- statements ------------------------------------------------------------------

    async def schema(self) -> str | None:
        """See ``Dialect``."""
        return await self._read(_schema)

    async def make_tables(self, *, fresh_only: bool) -> str | None:
        """See ``Dialect``."""
        with translated(self.path, writing=True):
            if not self.path.parent.exists():
                make_home(self.path.parent)
            with contextlib.suppress(FileExistsError):
                os.close(create_file(self.path))

        def upgrade(connection: sqlite3.Connection) -> str | None:
            before = SchemaStatus(_schema(connection))
            for statement in before.upgrade(_TYPES, fresh_only=fresh_only):
                connection.execute(statement)
            return before.current

        return await self._write(upgrade)

    async def spaces(self) -> list[str]:
        """See ``Dialect``."""
        return [str(space) for (space,) in await self._rows(_SPACES)]

    async def add_space(self, space: str) -> None:
        """See ``Dialect``."""
        if space not in await self.spaces():
            await self._write(lambda connection: connection.execute(_ADD_SPACE, (space,)))

    async def read(self, space: str, names: Sequence[str]) -> dict[str, Row]:
        """See ``Dialect``."""
        found = await self._rows(
            "SELECT name, version, data FROM apex_documents WHERE space = ?"
            f" AND name IN ({_marks(names)}) AND data IS NOT NULL",
            (space, *names),
        )
        return {name: Row(version, data) for name, version, data in found}

    async def versions(self, space: str, names: Sequence[str]) -> dict[str, tuple[int, bool]]:
        """See ``Dialect``."""
        found = await self._rows(
            "SELECT name, version, data IS NOT NULL FROM apex_documents WHERE space = ?"
            f" AND name IN ({_marks(names)})",
            (space, *names),
        )
        return {name: (version, bool(there)) for name, version, there in found}

    async def apply(self, space: str, writes: Sequence[RowWrite]) -> bool:
        """See ``Dialect``."""
        try:
            await self._write(lambda connection: _apply(connection, space, writes))
        except _MovedError:
            return False
        return True

    async def append(self, space: str, stream: str, lines: Sequence[bytes], first: int) -> bool:
        """See ``Dialect``."""

        def append(connection: sqlite3.Connection) -> bool:
            (count,) = connection.execute(_COUNT, (space, stream)).fetchone()
            rows = ((space, stream, first + n, line) for n, line in enumerate(lines))
            if count == first:
                connection.executemany(_APPEND, rows)
            return bool(count == first)

        return await self._write(append)

    async def lines(self, space: str, stream: str, first: int, limit: int) -> list[bytes]:
        """See ``Dialect``."""
        return [line for (line,) in await self._rows(_LINES, (space, stream, first, limit))]

    async def streams(self, space: str) -> dict[str, int]:
        """See ``Dialect``."""
        return dict(await self._rows(STREAMS.format(of=":of"), {"of": space}))

    async def _rows(
        self, statement: str, values: Sequence[object] | Mapping[str, object] = ()
    ) -> list[tuple[Any, ...]]:
        return await self._read(
            lambda connection: connection.execute(statement, values).fetchall()
        )

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def reading() -> T:
            with self._connections.held() as (connection, _):
                return work(connection)

        return await self._in_thread(reading, self._reading)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Does ``work`` in a transaction; one at a time, which SQLite would wait for anyway."""

        def writing() -> T:
            with self._connections.held() as (connection, identity):
                connection.execute("BEGIN IMMEDIATE")
                try:
                    result = work(connection)
                    connection.execute("COMMIT")
                except BaseException:
                    if connection.in_transaction:  # some failures have ended it
                        connection.execute("ROLLBACK")
                    raise
                if not _is_there(self.path, identity):
                    gone = StorageUnreachableError(
                        f"The SQLite database {self.path} was removed or replaced during a "
                        "write.",
                        hint="Look who did that; stop every process before replacing it.",
                    )
                    raise StatementError(gone, retryable=True, uncertain=True)
                return result

        return await self._in_thread(writing, self._writing)

    async def _in_thread(self, work: Callable[[], T], turns: asyncio.Semaphore) -> T:
        await acquire_in_time(turns, seconds=_BUSY_SECONDS)
        try:
            return await to_thread.run_sync(work)
        finally:
            turns.release()

    # -- sharing work ----------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lead(self, space: str, what: str) -> AsyncIterator[Leadership]:
        """See ``Dialect``; by a lock file beside the database."""
        with contextlib.ExitStack() as held:
            lead = Leadership(held=self._locked(held, f"{space}.lead.{what}"))
            held.callback(lead.lose)
            yield lead

    @contextlib.asynccontextmanager
    async def claim(
        self, space: str, names: Sequence[str], limit: int
    ) -> AsyncIterator[list[str]]:
        """See ``Dialect``; by lock files beside the database."""
        ours: list[str] = []
        with contextlib.ExitStack() as held:
            for name in names:
                if len(ours) >= limit:
                    break
                if self._locked(held, f"{space}.claim.{name}"):
                    ours.append(name)
            yield ours

    def _locked(self, held: contextlib.ExitStack, what: str) -> bool:
        folder = self.path.with_name(f"{self.path.name}.locks")
        with translated(folder / what, writing=True):
            make_home(folder)
            lock = lock_at(folder / what)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                return False
        held.callback(release, lock)
        return True

    async def close(self) -> None:
        """See ``Dialect``."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        self._watcher.close()
        await to_thread.run_sync(self._connections.close)  # the last one empties the log


# -- what is done in a thread ------------------------------------------------------------


class _MovedError(Exception):
    """A row is not at the version that was expected."""


def _apply(connection: sqlite3.Connection, space: str, writes: Sequence[RowWrite]) -> None:
    for write in writes:
        values = {
            "space": space,
            "name": write.name,
            "old": write.old,
            "new": write.new,
            "data": write.data,
        }
        if write.new is None:
            done = connection.execute(_HOLD, values).fetchone() is not None
        else:
            statement = _CREATE if write.old is None else _REPLACE
            done = connection.execute(statement, values).rowcount == 1
        if not done:
            raise _MovedError


def _schema(connection: sqlite3.Connection) -> str | None:
    if connection.execute(_HAS_TABLES).fetchone() is None:
        return None
    found = connection.execute(VERSION).fetchone()
    return None if found is None else str(found[0])


def _marks(names: Sequence[str]) -> str:
    return ", ".join("?" * len(names))


class _Connections:
    """Connections that are open to the file that is at ``path`` now; used in any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[tuple[sqlite3.Connection, FileIdentity]] = []
        self._closed = False

    @contextlib.contextmanager
    def held(self) -> Iterator[tuple[sqlite3.Connection, FileIdentity]]:
        """One for this thread alone; it is used again unless something fails.

        Raises:
            StatementError: The database failed.
            StorageError: The file is not there, or not only ours.
        """
        identity = check_file(self._path)
        with sqlite_errors():
            connection = self._take(identity)
            try:
                yield connection, identity
            except _MovedError:
                self._keep(connection, identity)
                raise
            except BaseException:
                connection.close()
                raise
            self._keep(connection, identity)

    def _take(self, identity: FileIdentity) -> sqlite3.Connection:
        while self._idle:
            connection, opened = self._idle.pop()
            if opened == identity:
                return connection
            connection.close()
        connection = _connect(self._path)
        try:
            for pragma in _PRAGMAS:
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        return connection

    def _keep(self, connection: sqlite3.Connection, identity: FileIdentity) -> None:
        self._idle.append((connection, identity))
        if self._closed:
            self.close()

    def close(self) -> None:
        """Closes all, those that are in use when they come back; idempotent."""
        self._closed = True
        while self._idle:
            self._idle.pop()[0].close()


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


class _CommitWatcher:
    """A connection that is asked whether any other one has committed.

    Usable from every thread.
    """

    def __init__(self, path: Path) -> None:
        self.space: str | None = None
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._identity: FileIdentity | None = None
        self._lock = threading.Lock()
        self._commits: int | None = None
        self._changed = 0
        self._before = 0
        self._all = True

    def poll(self, *, strict: bool = False) -> Changes | None:
        """What changed; None where nothing did, or (unless ``strict``) it can't be known.

        Where the file that it knew is not there any more, nothing is.
        """
        with self._lock:
            try:
                return self._poll()
            except (sqlite3.Error, StorageError):
                if strict:
                    raise
                return Changes([], whole=True) if self._all and self.space else None

    def invalidate(self) -> None:
        """See ``Dialect``."""
        with self._lock:
            self._commits = None
            self._changed = self._before

    def close(self) -> None:
        """Closes it; idempotent."""
        with self._lock:
            self._forget()
            self.space = None

    def _poll(self) -> Changes | None:
        if self.space is None:
            return None
        if self._connection is None or not _is_there(self._path, self._identity):
            self._forget()  # another file took the place of the one that was open
            self._identity = identity_of(self._path)
            self._connection = _connect(self._path)
        (commits,) = self._connection.execute("PRAGMA data_version").fetchone()
        if commits == self._commits:
            return None
        rows = self._connection.execute(_CHANGED, (self.space, self._changed)).fetchall()
        self._commits, self._before = commits, self._changed
        self._changed = max([self._changed, *(changed for _, _, changed, _ in rows)])
        found = [(name, None if gone else version) for name, version, _, gone in rows]
        whole, self._all = self._all, False
        return Changes(found, whole=whole)

    def _forget(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._commits = None
        self._changed = self._before = 0
        self._all = True


# -- the file ----------------------------------------------------------------------------


class FileIdentity(NamedTuple):
    """Which file it is, whatever its name; known while it is open."""

    device: int
    inode: int


def identity_of(path: Path) -> FileIdentity:
    """Which file is at ``path`` now.

    Raises:
        StorageUnreachableError: None.
        UnsafePathError, UnsafePermissionsError: It is not only ours.
        StorageError: It can't be examined.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise StorageUnreachableError(
            f"The SQLite database {path} is not there.",
            hint="Put it back, or create the vault: apex-creds init.",
        ) from None
    except OSError as error:
        raise storage_error(error, path) from error
    check(path, status)
    return FileIdentity(status.st_dev, status.st_ino)


def check_file(path: Path) -> FileIdentity:
    """Refuses a database that others could have made, or could replace; see ``identity_of``."""
    identity = identity_of(path)
    _check_folder(path.parent)
    for ending in _BESIDE:
        beside = f"{path}{ending}"
        try:
            check(beside, os.lstat(beside))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_error(error, beside) from error
    return identity


def _check_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        status = os.stat(folder)
    except OSError as error:
        raise storage_error(error, folder) from error
    if status.st_uid not in (os.geteuid(), 0):
        raise UnsafePathError(
            f"{folder} belongs to user {status.st_uid}, who can replace the database in it.",
            hint="Move the database to a directory of yours.",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafePermissionsError(
            f"Other users can write to {folder}, and replace the database in it.",
            hint=f"Run: chmod 700 {shlex.quote(str(folder))}, or move the database away.",
        )


def _is_there(path: Path, identity: FileIdentity | None) -> bool:
    """Whether the file at ``path`` is still the one that was opened."""
    try:
        return identity_of(path) == identity
    except StorageError:
        return False


# -- errors ------------------------------------------------------------------------------


@contextlib.contextmanager
def sqlite_errors() -> Iterator[None]:
    """Turns the driver's exceptions into ``StatementError``."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            meaning = GONE if isinstance(error, sqlite3.ProgrammingError) else OTHER
        elif isinstance(error, sqlite3.OperationalError) and "no such table" in str(error):
            meaning = NO_TABLES
        else:
            meaning = _MEANINGS.get(code & 0xFF, OTHER)
        raise meaning.failure(detail=type(error).__name__) from error
    except OSError as error:
        raise GONE.failure() from error
