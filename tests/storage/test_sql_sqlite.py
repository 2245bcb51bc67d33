"""The SQL storage keeps both contracts on SQLite, with plain and with hashed names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from apex_creds.storage.sql import SqlStorage
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
