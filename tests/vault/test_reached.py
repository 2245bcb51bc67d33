"""A worker has the key store say how far the shards have come, so that one that is put back
is refused by a process that has never seen a newer one."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.documents.keystore import MasterKeySource
from apex_creds.documents.sections import NOTE_AFTER
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import RollbackDetectedError
from apex_creds.keys import provider_from_uri
from apex_creds.model import ApiKey
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.rotation_state import rotation_document
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import create, credential_writes
from apex_creds.vault.lookup import PutItem
from tests.support.clocks import FakeClock
from tests.support.vaults import NoNote

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_slot_left")]


class Database:
    """Shards, and one process after another."""

    def __init__(self, where: Path) -> None:
        self.clock = FakeClock()
        self.provider = provider_from_uri(f"file:{where}/k")
        self.storage = MemoryStorage(shards=4)

    async def create(self) -> None:
        made = await create.create_vault(
            self.storage,
            provider=self.provider,
            hashed_names=False,
            begun=NoNote(),
            now=self.clock.now,
        )
        made.close()

    async def process(self) -> DocumentStore:
        masters = MasterKeySource(self.provider)
        store = DocumentStore(self.storage.peer(), clock=self.clock, masters=masters)
        await store.unseal()
        return store

    async def put(self, value: str) -> str:
        """In a process of its own; the shard that it is in."""
        store = await self.process()
        shard = store.sections.shard_of("api_keys", "x")
        item = PutItem(name="x", secret=ApiKey(value), service="one")
        await credential_writes.put(store, "api_keys", [item], clock=self.clock)
        await store.close()
        return shard

    async def round(self, store: DocumentStore) -> int:
        """A worker's; the key store's generation after it."""
        document = rotation_document(store)
        await Engine(store, document, next_fire=lambda *_: None).run()
        return (await store.keystore()).header.generation


@pytest.fixture
async def database(tmp_path: Path) -> Database:
    made = Database(tmp_path)
    await made.create()
    return made


async def test_a_shard_put_back_after_a_round_is_refused_by_a_new_process(
    database: Database,
) -> None:
    shard = await database.put("old")
    documents = database.storage._place.documents
    old = documents[shard]
    await database.put("new")
    worker = await database.process()
    await database.round(worker)
    await worker.close()
    documents[shard] = old
    store = await database.process()
    with pytest.raises(RollbackDetectedError, match=shard):
        await store.sections.read("api_keys")
    await store.close()


async def test_the_key_store_is_not_written_for_it_more_than_once_an_hour(
    database: Database,
) -> None:
    for value in ("old", "newer"):
        await database.put(value)
    worker = await database.process()
    noted = await database.round(worker)
    await database.put("new")
    database.clock.now += NOTE_AFTER - 1
    assert await database.round(worker) == noted
    database.clock.now += 1
    assert await database.round(worker) == noted + 1
    database.clock.now += NOTE_AFTER
    assert await database.round(worker) == noted + 1
    await worker.close()
