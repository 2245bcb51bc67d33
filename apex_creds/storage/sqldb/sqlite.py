"""Documents in an SQLite file, for several processes of one machine.

Guarantee: the file is ours, closed to others, in a directory where nobody else can put one,
and written with full durability (WAL, ``synchronous=FULL``); what another process committed
is seen without waiting, because SQLite itself counts commits. A file that was removed or
replaced is never used on: nothing in memory counts as current then, and no write to it is
acknowledged. Deleted bytes are overwritten in the file (``secure_delete``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Final

from filelock import Timeout
from sqlalchemy import event, text
from sqlalchemy.exc import InvalidatePoolError
from sqlalchemy.ext.asyncio import create_async_engine

from apex_creds.errors import StorageError, StorageUnreachableError
from apex_creds.fs.lock import lock_at, release
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import create_file
from apex_creds.storage.base import KEYSTORE, Leadership
from apex_creds.storage.layout import make_home
from apex_creds.storage.sqldb import upgrade
from apex_creds.storage.sqldb.common import Common, told
from apex_creds.storage.sqldb.dberrors import FailedError
from apex_creds.storage.sqldb.place import Place, check_place, place_of
from apex_creds.storage.sqldb.rows import Change, Seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
    from sqlalchemy.pool import ConnectionPoolEntry

_BUSY_MS: Final = 10_000
_GLANCE_EVERY: Final = 0.05
_PLACE: Final = "place"
_PRAGMAS: Final = (
    f"PRAGMA busy_timeout={_BUSY_MS}",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA secure_delete=ON",
    "PRAGMA trusted_schema=OFF",
)
_NEXT: Final = "(SELECT coalesce(max(changed), 0) + 1 FROM apex_documents WHERE space = :space)"
_CREATE: Final = text(
    "INSERT INTO apex_documents (space, name, version, changed, data)"
    f" VALUES (:space, :name, :new, {_NEXT}, :data)"
    " ON CONFLICT (space, name) DO UPDATE SET version = excluded.version,"
    " changed = excluded.changed, data = excluded.data, written = CURRENT_TIMESTAMP"
    " WHERE apex_documents.data IS NULL"
)
_REPLACE: Final = text(
    f"UPDATE apex_documents SET version = :new, changed = {_NEXT}, data = :data,"
    " written = CURRENT_TIMESTAMP"
    " WHERE space = :space AND name = :name AND version = :old AND data IS NOT NULL"
)
_HOLD: Final = text(
    "SELECT 1 FROM apex_documents"
    " WHERE space = :space AND name = :name AND version = :old AND data IS NOT NULL"
)
# The key store in any case: no number that a row claims keeps a revocation from being seen.
_CHANGED: Final = (
    "SELECT name, version, changed, data IS NULL FROM apex_documents"
    f" WHERE space = ? AND (changed > ? OR name = '{KEYSTORE}')"
)
_COUNT: Final = text(
    "SELECT coalesce(max(seq) + 1, 0) FROM apex_lines WHERE space = :space AND stream = :stream"
)
_APPEND: Final = text(
    "INSERT INTO apex_lines (space, stream, seq, line) VALUES (:space, :stream, :seq, :line)"
)


class SqliteRows(Common):
    """The rows of an SQLite file; see ``Rows``."""

    exact = True

    def __init__(self, path: Path, *, pool: int = 4) -> None:
        self.path = path
        self._watch = _Watch(path)
        self._poller: asyncio.Task[None] | None = None
        super().__init__(_engine(path, pool))

    # -- seeing ----------------------------------------------------------------------

    def glance(self) -> Seen | None:
        """See ``Rows``."""
        return self._watch.glance()

    def again(self) -> None:
        """See ``Rows``."""
        self._watch.again()

    def follow(self, space: str, heard: Callable[[], None]) -> None:
        """See ``Rows``."""
        self._watch.space = space
        self._poller = asyncio.ensure_future(_poll(heard))

    async def look(self, space: str) -> Seen:
        """See ``Rows``."""
        self._watch.space = space
        with told():
            return self._watch.glance(strict=True) or Seen([], whole=False)

    def told(self) -> None:
        """See ``Rows``; the file itself tells."""

    # -- writing ---------------------------------------------------------------------

    async def make_tables(self, *, fresh_only: bool) -> str | None:
        """See ``Rows``."""
        _make_file(self.path)
        async with self._writing() as connection:
            return (await upgrade.upgrade(connection, fresh_only=fresh_only)).current

    async def apply(self, space: str, changes: Sequence[Change]) -> bool:
        """See ``Rows``."""
        try:
            async with self._writing() as connection:
                for change in changes:
                    await _apply(connection, space, change)
        except _MovedError:
            return False
        return True

    async def append(self, space: str, stream: str, lines: Sequence[bytes], first: int) -> bool:
        """See ``Rows``."""
        of = {"space": space, "stream": stream}
        async with self._writing() as connection:
            if await connection.scalar(_COUNT, of) != first:
                return False
            rows = [{**of, "seq": first + n, "line": line} for n, line in enumerate(lines)]
            if rows:
                await connection.execute(_APPEND, rows)
        return True

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[AsyncConnection]:
        """See ``Common``; nothing is opened that is not the right file."""
        check_place(self.path)
        async with super().connected() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _writing(self) -> AsyncIterator[AsyncConnection]:
        async with self.connected() as connection:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                await connection.exec_driver_sql("ROLLBACK")
                raise
            await connection.exec_driver_sql("COMMIT")
            if not _is_there(self.path, connection.info.get(_PLACE)):
                raise FailedError(_gone(self.path), again=True, lost=True)

    # -- sharing work ----------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lead(self, space: str, what: str) -> AsyncIterator[Leadership]:
        """See ``Rows``; by a lock file beside the database."""
        with contextlib.ExitStack() as held:
            lead = Leadership(held=_locked(held, self._beside(f"{space}.lead.{what}")))
            held.callback(lead.lose)
            yield lead

    @contextlib.asynccontextmanager
    async def claim(
        self, space: str, names: Sequence[str], limit: int
    ) -> AsyncIterator[list[str]]:
        """See ``Rows``; by lock files beside the database."""
        ours: list[str] = []
        with contextlib.ExitStack() as held:
            for name in names:
                if len(ours) >= limit:
                    break
                if _locked(held, self._beside(f"{space}.claim.{name}")):
                    ours.append(name)
            yield ours

    def _beside(self, what: str) -> Path:
        folder = self.path.with_name(f"{self.path.name}.locks")
        with translated(folder, writing=True):
            make_home(folder)
        return folder / what

    async def close(self) -> None:
        """See ``Rows``."""
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        self._watch.close()
        await self.engine.dispose()


class _MovedError(Exception):
    """A row is not at the version that was expected."""


async def _apply(connection: AsyncConnection, space: str, change: Change) -> None:
    values = {"space": space, "name": change.name, "old": change.old, "new": change.new}
    if change.new is None:
        done = await connection.scalar(_HOLD, values) is not None
    else:
        statement = _CREATE if change.old is None else _REPLACE
        result = await connection.execute(statement, {**values, "data": change.data})
        done = result.rowcount == 1
    if not done:
        raise _MovedError


class _Watch:
    """A connection of its own that is asked whether any other one has committed.

    Usable from every thread.
    """

    def __init__(self, path: Path) -> None:
        self.space: str | None = None
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._place: Place | None = None
        self._lock = threading.Lock()
        self._commits: int | None = None
        self._changed = 0
        self._before = 0
        self._all = True

    def glance(self, *, strict: bool = False) -> Seen | None:
        """What changed; None where nothing did, or (unless ``strict``) it can't be told.

        Where the file that it knew is not there any more, nothing is.
        """
        with self._lock:
            try:
                return self._look()
            except (sqlite3.Error, StorageError):
                if strict:
                    raise
                return Seen([], whole=True) if self._all and self.space else None

    def again(self) -> None:
        """See ``Rows``."""
        with self._lock:
            self._commits = None
            self._changed = self._before

    def _look(self) -> Seen | None:
        if self.space is None:
            return None
        self._follow_file()
        if self._connection is None:
            self._connection = _plain(self._path)
        (commits,) = self._connection.execute("PRAGMA data_version").fetchone()
        if commits == self._commits:
            return None
        rows = self._connection.execute(_CHANGED, (self.space, self._changed)).fetchall()
        self._commits, self._before = commits, self._changed
        self._changed = max([self._changed, *(changed for _, _, changed, _ in rows)])
        found = [(name, None if gone else version) for name, version, _, gone in rows]
        whole, self._all = self._all, False
        return Seen(found, whole=whole)

    def _follow_file(self) -> None:
        """Begins anew with a file that took the place of the one that was open."""
        if self._connection is not None and _is_there(self._path, self._place):
            return
        self._let_go()
        self._place = place_of(self._path)

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._commits = None
        self._changed = self._before = 0
        self._all = True

    def close(self) -> None:
        with self._lock:
            self._let_go()
            self.space = None


def _plain(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
    )
    connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    return connection


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))


def _engine(path: Path, pool: int) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///file:{_quoted(path)}?mode=rw&uri=true",
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        pool_size=pool,
        max_overflow=0,
        pool_timeout=_BUSY_MS / 1000,
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def _on_opening(
        _dialect: object, entry: ConnectionPoolEntry, _args: object, _options: object
    ) -> None:
        entry.info[_PLACE] = place_of(path)

    @event.listens_for(engine.sync_engine, "checkout")
    def _on_use(_connection: object, entry: ConnectionPoolEntry, _fairy: object) -> None:
        if not _is_there(path, entry.info.get(_PLACE)):
            raise InvalidatePoolError

    @event.listens_for(engine.sync_engine, "connect")
    def _on_connect(connection: object, _entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    return engine


def _make_file(path: Path) -> None:
    with translated(path, writing=True):
        make_home(path.parent) if not path.parent.exists() else None
        with contextlib.suppress(FileExistsError):
            os.close(create_file(path))
    check_place(path)


def _is_there(path: Path, place: object) -> bool:
    """Whether the file at ``path`` is still the one that was opened."""
    try:
        return place_of(path) == place
    except StorageError:
        return False


def _gone(path: Path) -> StorageUnreachableError:
    return StorageUnreachableError(
        f"The SQLite database {path} was removed or replaced during a write.",
        hint="Look who did that; stop every process before replacing it.",
    )


def _locked(held: contextlib.ExitStack, path: Path) -> bool:
    with translated(path, writing=True):
        lock = lock_at(path)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
    held.callback(release, lock)
    return True


async def _poll(heard: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(_GLANCE_EVERY)
        heard()
