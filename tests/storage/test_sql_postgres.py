"""The SQL storage keeps both contracts on a real PostgreSQL server."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from apex_creds.model import ApiKey
from apex_creds.storage.sql_storage import SqlStorage
from apex_creds.storage.storage_factory import StoragePlace, open_sql, remember_storage
from apex_creds.testing.shared_storage import MANY, SharedStorageContract
from apex_creds.testing.storage import DOCUMENTS
from apex_creds.vault import Vault
from tests.storage.test_sql_sqlite import hashed
from tests.support.postgres import Postgres
from tests.support.vaults import value_of

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


@pytest.mark.parametrize("what", ["leader", "claim"])
async def test_a_lock_is_free_when_its_block_ends_not_when_the_server_sees_the_line_closed(
    server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The line is closed last here, as for a server that is busy."""
    closing = psycopg.AsyncConnection.close
    late: list[psycopg.AsyncConnection] = []

    async def close(connection: psycopg.AsyncConnection) -> None:
        late.append(connection)

    storage = SqlStorage(_OnPostgres.url(SimpleNamespace(server=server), tmp_path))
    await storage.prepare()
    monkeypatch.setattr(psycopg.AsyncConnection, "close", close)
    try:
        for _ in range(3):
            if what == "leader":
                async with storage.leader("work") as lead:
                    assert lead
            else:
                async with storage.claim(["one", "two"], limit=2) as ours:
                    assert sorted(ours) == ["one", "two"]
        assert len(late) >= 3
    finally:
        monkeypatch.undo()
        for connection in late:
            await closing(connection)
        await storage.close()


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
async def test_the_encoding_of_a_database_changes_nothing(
    server: Postgres, tmp_path: Path, encoding: str
) -> None:
    database = f"in_{encoding.lower()}"
    server.sql(
        f"CREATE DATABASE {database} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0"
    )
    url, master = server.url(database=database), f"file:{tmp_path}/master.key"
    async with await Vault.create(tmp_path / "one", master=master, storage=url) as vault:
        await vault.put("snow☃", ApiKey("wért☃"))
        await vault.grant("plugin", "snow☃", scopes=["läsen"])
    await remember_storage(tmp_path / "two", open_sql(StoragePlace(url)))
    async with await Vault.unseal(tmp_path / "two") as vault:
        assert [info.name for info in await vault.list()] == ["snow☃"]
        assert await value_of(vault, "snow☃") == "wért☃".encode()
        async with vault.store.shared.leader("work") as lead:
            assert lead


class TestPostgresWithHashedNames(_OnPostgres, SharedStorageContract):
    async def open_storage(self, where: Path) -> SqlStorage:
        storage = SqlStorage(self.url(where))
        storage.map_names(hashed, candidates=[*DOCUMENTS, *MANY])
        return storage
