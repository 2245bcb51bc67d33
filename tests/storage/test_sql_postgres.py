"""The SQL storage keeps both contracts on a real PostgreSQL server."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from apex_creds.storage.sql import SqlStorage
from apex_creds.testing.shared_storage import MANY, SharedStorageContract
from apex_creds.testing.storage import DOCUMENTS
from tests.e2e.postgres import Postgres
from tests.storage.test_sql_sqlite import hashed

pytestmark = pytest.mark.anyio


class _OnPostgres:
    @pytest.fixture(autouse=True)
    def _server(self, server: Postgres) -> None:
        self.server = server

    def url(self, where: Path) -> str:
        """A space of its own for each place."""
        return self.server.url(space=hashlib.blake2b(bytes(where), digest_size=8).hexdigest())


class TestPostgres(_OnPostgres, SharedStorageContract):
    async def open_storage(self, where: Path) -> SqlStorage:
        return SqlStorage(self.url(where))


class TestPostgresWithHashedNames(_OnPostgres, SharedStorageContract):
    async def open_storage(self, where: Path) -> SqlStorage:
        storage = SqlStorage(self.url(where))
        storage.map_names(hashed, candidates=[*DOCUMENTS, *MANY])
        return storage
