"""A vault in one file: the smallest storage that another package can add to apex-creds.

With this package installed, `apex-creds init --storage onefile:/path/to/file` makes a vault
there: its entry point (see pyproject.toml) names `OneFile.from_url`. It passes the suite
that every storage should: `apex_creds.testing.storage.StorageContract`.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading

import anyio.to_thread

from apex_creds.errors import ConflictError, StorageError
from apex_creds.storage.base import Data, Shredded, Stored, Token, WriteResult
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
        query = "SELECT data, version FROM documents WHERE name = ?"
        found = await anyio.to_thread.run_sync(self._run, query, checked(name))
        return Stored(found[0][0], Token((found[0][1],))) if found else None

    async def write(
        self, name: str, data: Data, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        version, name = secrets.randbits(62), checked(name)
        if expected is None:
            put = "INSERT INTO documents (version, data, name) VALUES (?, ?, ?)"
        else:
            put = "UPDATE documents SET version = ?, data = ? WHERE name = ? AND version = ?"
        await self._change(put, version, bytes(data), name, *(expected or ())[:1])
        return WriteResult(Token((version,)), _shredded(shred and expected is not None))

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        gone = "DELETE FROM documents WHERE (name, version) = (?, ?)"
        await self._change(gone, checked(name), expected[0])
        return _shredded(shred)

    async def names(self) -> list[str]:
        query = "SELECT name FROM documents ORDER BY name"
        return [name for (name,) in await anyio.to_thread.run_sync(self._run, query)]

    async def close(self) -> None:
        with self._lock:
            database, self._open = self._open, None
        if database is not None:
            database.close()

    async def _change(self, statement: str, *values: object) -> None:
        """Compare-and-set: the statement changes one row, or nothing."""
        changed = await anyio.to_thread.run_sync(
            self._run, f"{statement} RETURNING version", *values
        )
        if not changed:
            raise ConflictError("The document was changed meanwhile.", hint="Try again.")

    def _run(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                return self._database().execute(statement, values).fetchall()
            except sqlite3.IntegrityError:
                raise ConflictError("The document is there already.", hint="Read it.") from None
            except (sqlite3.Error, OverflowError) as error:
                raise StorageError(f"{self.url}: {error}.", hint="Look at the file.") from None

    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=30.0
            )
            self._open.execute("PRAGMA synchronous = FULL")  # what returned is durable
        return self._open


def _shredded(asked: bool) -> Shredded:
    return "unverifiable" if asked else "no"
