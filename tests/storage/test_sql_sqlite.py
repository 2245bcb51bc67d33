"""The SQL storage keeps both contracts on SQLite, with plain and with hashed names."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from apex_creds.errors import NotInstalledError, StorageBusyError, StorageLockedError
from apex_creds.storage import sqlite
from apex_creds.storage.sql_storage import SqlStorage
from apex_creds.storage.storage_factory import StoragePlace, open_sql
from apex_creds.testing.shared_storage import MANY, SharedStorageContract
from apex_creds.testing.storage import DOCUMENTS

pytestmark = pytest.mark.anyio


def hashed(name: str) -> str:
    return hashlib.blake2b(name.encode(), key=b"k" * 32, digest_size=32).hexdigest()


def url(where: Path) -> str:
    return f"sqlite:///{where}/vault.db"


class TestSqlite(SharedStorageContract):
    async def open_storage(self, where: Path) -> SqlStorage:
        where.chmod(0o700)
        return SqlStorage(url(where))


class TestSqliteWithHashedNames(SharedStorageContract):
    async def open_storage(self, where: Path) -> SqlStorage:
        where.chmod(0o700)
        storage = SqlStorage(url(where))
        storage.map_names(hashed, candidates=[*DOCUMENTS, *MANY])
        return storage


async def _make(storage: SqlStorage, name: str) -> None:
    await storage.write(name, b"1", expected=None)


@contextmanager
def writing_elsewhere(where: Path) -> Iterator[None]:
    """Another process is in the middle of a write."""
    with closing(sqlite3.connect(where / "vault.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def test_reads_do_not_wait_for_writes_that_wait_for_another_process(
    tmp_path: Path,
) -> None:
    tmp_path.chmod(0o700)
    storage = SqlStorage(url(tmp_path))
    await storage.prepare()
    token = (await storage.write("a", b"1", expected=None)).token
    with writing_elsewhere(tmp_path):
        writes = [
            asyncio.ensure_future(storage.write(f"n{n}", b"1", expected=None))
            for n in range(12)
        ]
        for _ in range(20):
            stored = await storage.read("a")
            assert stored is not None
            assert stored.token == token
        assert not any(write.done() for write in writes)
    await asyncio.gather(*writes)
    assert len(await storage.names()) == 13
    await storage.close()


async def test_a_write_waits_for_others_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 0.05)
    tmp_path.chmod(0o700)
    storage = SqlStorage(url(tmp_path), patience=0.0)
    await storage.prepare()
    with writing_elsewhere(tmp_path):
        said = await asyncio.gather(
            *(_make(storage, f"n{n}") for n in range(3)), return_exceptions=True
        )
    assert all(isinstance(each, StorageLockedError | StorageBusyError) for each in said), said
    await storage.write("n0", b"1", expected=None)
    await storage.close()


async def test_sqlite_needs_no_driver_of_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "apex_creds.storage.postgresql", raising=False)
    tmp_path.chmod(0o700)
    storage = open_sql(StoragePlace(url(tmp_path)))
    await storage.prepare()
    await storage.close()
    with pytest.raises(NotInstalledError, match="optional part"):
        open_sql(StoragePlace("postgresql+psycopg://user@/database"))
