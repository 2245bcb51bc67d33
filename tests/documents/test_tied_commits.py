"""A commit holds only with the key store that it was computed from, on every storage.

Each test lets another process get a whole change done at the worst moment: after a writer
has sealed its records, and before they are stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from apex_creds.documents import key_versions
from apex_creds.documents.cached import Document
from apex_creds.documents.document import KeyName
from apex_creds.documents.keystore import DOCUMENTS_LABEL, Keystore, MasterKeySource
from apex_creds.documents.records import open_record
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ConflictError
from apex_creds.keys import provider_from_uri
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey
from apex_creds.scheduler import compromise, kek_rotation
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.rotation_state import rotation_document
from apex_creds.storage.base import STATE_DOCUMENTS, Storage, Write, WriteResult
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import create, credential_writes
from apex_creds.vault.lookup import PutItem
from tests.support.clocks import FakeClock
from tests.support.vaults import NoNote

pytestmark = pytest.mark.anyio


class Interrupted:
    """A storage that calls ``first`` once, before it writes what is tied to another."""

    first: Callable[[], Awaitable[object]] | None = None
    refused = 0

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        if self.first is not None and len(writes) > 1:
            first, self.first = self.first, None
            await first()
            try:
                return await super().write_many(writes, shred=shred)
            except ConflictError:
                self.refused += 1
                raise
        return await super().write_many(writes, shred=shred)


class InterruptedMemory(Interrupted, MemoryStorage):
    pass


class InterruptedFiles(Interrupted, FileStorage):
    pass


class Pair:
    """Two processes on one vault; the first one's writes can be interrupted."""

    def __init__(self, where: Path, kind: str) -> None:
        self.clock = FakeClock()
        self.provider = provider_from_uri(f"file:{where}/k")
        if kind == "files":
            self.storage = InterruptedFiles(where / "home")
            other = FileStorage(where / "home")
        else:
            shards = 4 if kind == "shared" else 0
            self.storage = InterruptedMemory(shards=shards)
            other = MemoryStorage(shards=shards)
            other._place = self.storage._place
        self.slow, self.quick = self._store(self.storage), self._store(other)

    def _store(self, storage: Storage) -> DocumentStore:
        return DocumentStore(storage, clock=self.clock, masters=MasterKeySource(self.provider))

    async def open(self) -> None:
        made = await create.create_vault(
            self.storage,
            provider=self.provider,
            hashed_names=False,
            begun=NoNote(),
            now=self.clock.now,
        )
        made.close()
        await self.slow.unseal()
        await self.quick.unseal()
        await self.put(self.quick, "other", "of the same service")

    async def put(self, store: DocumentStore, name: str, value: str) -> None:
        item = PutItem(name=name, secret=ApiKey(value), service="one")
        await credential_writes.put(store, "api_keys", [item], clock=self.clock)

    async def value(self, name: str) -> bytes:
        record = (await self.quick.sections.read("api_keys")).records[name]
        keystore = await self.quick.keystore()
        vault_id = bytes.fromhex(keystore.header.vault_id)
        opened = open_record(record, vault_id=vault_id, find_key=keystore.dek)
        with opened, opened.view() as view:
            return bytes(view)

    async def destroyed(self) -> None:
        """Renews the service's key, moves its records, destroys the old version."""
        now = self.clock.now
        await key_versions.renew(self.quick, "api_keys/one", now=now)
        await key_versions.move_records(self.quick, "api_keys", "api_keys/one")
        assert await key_versions.destroy_unused(
            self.quick, "api_keys", "api_keys/one", now=now
        )

    async def close(self) -> None:
        await self.slow.close()
        await self.quick.close()


@pytest.fixture(params=["shared", "memory", "files"])
async def pair(tmp_path: Path, request: pytest.FixtureRequest):
    made = Pair(tmp_path, request.param)
    await made.open()
    yield made
    await made.close()


async def test_a_record_is_never_left_under_a_key_that_was_destroyed(pair: Pair) -> None:
    pair.storage.first = pair.destroyed
    await pair.put(pair.slow, "mine", "value")
    assert pair.storage.refused == 1
    assert b"value" in await pair.value("mine")
    assert b"service" in await pair.value("other")
    keyset = (await pair.quick.keystore()).by_label["api_keys/one"]
    assert [version.state for version in keyset.versions] == [
        KeyState.DESTROYED,
        KeyState.PRIMARY,
    ]


async def test_a_shard_is_never_left_under_a_key_that_was_destroyed(pair: Pair) -> None:
    async def turned() -> None:
        engine = Engine(
            pair.quick,
            rotation_document(pair.quick),
            next_fire=lambda *_: None,
        )
        lost = {DOCUMENTS_LABEL: [1]}
        await compromise.mark_deks_compromised(pair.quick, lost, now=pair.clock.now)
        assert not (await engine.run(lease=False)).failed

    pair.storage.first = turned
    await pair.put(pair.slow, "mine", "value")
    assert b"value" in await pair.value("mine")
    keyset = (await pair.quick.keystore()).by_label[DOCUMENTS_LABEL]
    assert [v.state for v in keyset.versions] == [KeyState.DESTROYED, KeyState.PRIMARY]
    assert set((await pair.quick.sections.keys("api_keys")).values()) == {(keyset.id, 2)}
    assert pair.storage.refused == 1


async def test_a_document_made_while_keys_are_scanned_is_not_left_under_one_that_goes(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not there when it was looked for: its key is in use all the same."""
    made = Document(pair.slow, name=STATE_DOCUMENTS[0], empty=b"")
    last = Document(pair.quick, name=STATE_DOCUMENTS[-1], empty=b"")
    find = type(last).key

    async def key(document: Document[bytes]) -> KeyName | None:
        if document._name == STATE_DOCUMENTS[-1]:
            await made.change(lambda _: b"made meanwhile")
            await key_versions.renew(pair.quick, DOCUMENTS_LABEL, now=pair.clock.now)
        return await find(document)

    monkeypatch.setattr(Document, "key", key)
    destroy = partial(key_versions.destroy_now, now=pair.clock.now)
    await kek_rotation.step_unused(pair.quick, destroy)
    again = Document(pair.quick, name=STATE_DOCUMENTS[0], empty=b"")
    assert await again.read() == b"made meanwhile"


async def test_no_write_to_the_same_shard_is_lost(pair: Pair) -> None:
    async def others() -> None:
        for number in range(8):
            await pair.put(pair.quick, f"theirs {number}", "value")

    pair.storage.first = others
    await pair.put(pair.slow, "mine", "value")
    records = (await pair.slow.sections.read("api_keys")).records
    assert set(records) == {"mine", "other", *(f"theirs {number}" for number in range(8))}


async def test_a_state_document_is_never_left_under_a_key_that_was_replaced(
    pair: Pair,
) -> None:
    async def turned() -> None:
        await key_versions.renew(pair.quick, DOCUMENTS_LABEL, now=pair.clock.now)

    document = Document(pair.slow, name="recovery", empty=b"")
    pair.storage.first = turned
    await document.change(lambda _: b"mine")
    assert pair.storage.refused == 1
    assert (await document.key())[1] == 2
    assert await Document(pair.quick, name="recovery", empty=b"").read() == b"mine"


async def test_a_change_that_needs_keys_is_given_those_of_its_commit(pair: Pair) -> None:
    """What it was computed from is what is there when it is written."""
    found: list[int] = []

    def change(value: bytes, keystore: Keystore) -> bytes:
        found.append(keystore.by_label["api_keys/one"].primary.version)
        return value + b"!"

    pair.storage.first = pair.destroyed
    document = Document(pair.slow, name="recovery", empty=b"")
    assert await document.change_keyed(change) == b"!"
    assert found == [1, 2]


async def test_what_is_not_changed_is_neither_written_nor_noted(pair: Pair) -> None:
    """Noted, it would be missing from then on."""
    document = Document(pair.slow, name="recovery", empty=b"")
    assert await document.change(lambda value: value) == b""
    await pair.slow.sections.commit("generic", lambda *_: {})
    assert not {"recovery", *pair.slow.sections.all("generic")} & set(
        (await pair.slow.keystore()).body.sections
    )
    assert (await pair.slow.sections.reread("generic")).shards == {}
