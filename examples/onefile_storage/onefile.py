"""A vault in one file: the smallest storage that another package can add to apex-creds.

With this package installed, `apex-creds init --storage onefile:/path/to/file` makes a vault
there: its entry point (see pyproject.toml) names `OneFile.from_url`. It passes the suite
that every storage should: `apex_creds.testing.storage.StorageContract`.
"""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import anyio.to_thread

from apex_creds.errors import ConflictError, StorageError
from apex_creds.storage.base import (
    Data,
    Shredded,
    Stored,
    Token,
    Write,
    WriteResult,
    tie_result,
)
from apex_creds.storage.base import check_document_name as checked

TABLE = "CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, version INT, data BLOB)"


class OneFile:
    """Documents are rows; a version is a random number, so that none ever comes back."""

    def __init__(self, path: str) -> None:
        self.url = f"onefile:{path}"  # the home remembers it: never with a password in it
        self._path = path
        self._lock = threading.Lock()  # any thread, any event loop
        self._open: sqlite3.Connection | None = None

    @classmethod
    def from_url(cls, url: str) -> OneFile:
        return cls(url.removeprefix("onefile:"))

    def change_token(self, name: str) -> Token | None:
        found = self._run("SELECT version FROM documents WHERE name = ?", checked(name))
        return Token((found[0][0],)) if found else None

    async def prepare(self) -> None:
        await anyio.to_thread.run_sync(self._run, TABLE)

    async def read(self, name: str) -> Stored | None:
        return (await self.read_many([name])).get(name)

    async def write(
        self, name: str, data: Data, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        return (await self.write_many([Write(name, data, expected)], shred=shred))[0]

    async def read_many(self, names: Iterable[str]) -> dict[str, Stored]:
        query = "SELECT data, version FROM documents WHERE name = ?"
        found: dict[str, Stored] = {}
        for name in map(checked, names):
            for data, version in await anyio.to_thread.run_sync(self._run, query, name):
                found[name] = Stored(data, Token((version,)))
        return found

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        return await anyio.to_thread.run_sync(self._write_all, writes, shred)

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        gone = "DELETE FROM documents WHERE (name, version) = (?, ?) RETURNING version"
        if not await anyio.to_thread.run_sync(self._run, gone, checked(name), expected[0]):
            raise ConflictError("The document was changed meanwhile.", hint="Try again.")
        return _shredded(shred)

    async def names(self) -> list[str]:
        query = "SELECT name FROM documents ORDER BY name"
        return [name for (name,) in await anyio.to_thread.run_sync(self._run, query)]

    async def close(self) -> None:
        with self._lock:
            database, self._open = self._open, None
        if database is not None:
            database.close()

    def _write_all(self, writes: Sequence[Write], shred: bool) -> list[WriteResult]:
        """All or nothing: an error rolls the transaction back."""
        with self._lock, self._errors():
            database = self._database()
            database.execute("BEGIN IMMEDIATE")  # no other process writes until it ends
            with database:
                return [_write(database, write, shred) for write in writes]

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._database().execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError) as error:
            raise StorageError(f"{self.url}: {error}.", hint="Look at the file.") from None

    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=30.0
            )
            self._open.execute("PRAGMA synchronous = FULL")  # what returned is durable
        return self._open


def _write(database: sqlite3.Connection, write: Write, shred: bool) -> WriteResult:
    """Compare-and-set; a write without data only compares."""
    query = "SELECT version FROM documents WHERE name = ?"
    there = database.execute(query, [checked(write.name)]).fetchone()
    if there != (None if write.expected is None else write.expected[:1]):
        raise ConflictError("A document was changed meanwhile.", hint="Try again.")
    if write.data is None:
        return tie_result(write)
    version = secrets.randbits(62)
    put = "REPLACE INTO documents (name, version, data) VALUES (?, ?, ?)"
    database.execute(put, [write.name, version, bytes(write.data)])
    return WriteResult(Token((version,)), _shredded(shred and there is not None))


def _shredded(asked: bool) -> Shredded:
    return "unverifiable" if asked else "no"
