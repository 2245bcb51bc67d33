"""A commit of shards holds only with the key store that it was computed from.

Each test lets another process get a whole change done at the worst moment: after a writer
has sealed its records, and before they are stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from apex_creds.documents.keystore import Masters
from apex_creds.documents.records import open_record
from apex_creds.documents.shared import SharedStore
from apex_creds.keys import provider_from_uri
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.state import rotation_document
from apex_creds.storage.base import Write, WriteResult
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import dek, genesis, rotate, writing
from apex_creds.vault.values import PutItem
from tests.support.vaults import FakeClock, NoNote

pytestmark = pytest.mark.anyio


class Interrupted(MemoryStorage):
    """Calls ``first`` once, before it writes several documents."""

    first: Callable[[], Awaitable[object]] | None = None

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        if self.first is not None and len(writes) > 1:
            first, self.first = self.first, None
            await first()
        return await super().write_many(writes, shred=shred)


class Pair:
    """Two processes on one vault; the first one's writes can be interrupted."""

    def __init__(self, where: Path) -> None:
        self.clock = FakeClock()
        self.provider = provider_from_uri(f"file:{where}/k")
        self.storage = Interrupted(shards=4)
        other = MemoryStorage(shards=4)
        other._place = self.storage._place
        self.slow, self.quick = self._store(self.storage), self._store(other)

    def _store(self, storage: MemoryStorage) -> SharedStore:
        return SharedStore(storage, clock=self.clock, masters=Masters(self.provider))

    async def open(self) -> None:
        made = await genesis.create(
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

    async def put(self, store: SharedStore, name: str, value: str) -> None:
        item = PutItem(name=name, secret=ApiKey(value), service="one")
        await writing.put(store, "api_keys", [item], clock=self.clock)

    async def value(self, name: str) -> bytes:
        record = (await self.quick.section("api_keys")).records[name]
        keystore = await self.quick.keystore()
        vault_id = bytes.fromhex(keystore.header.vault_id)
        opened = open_record(record, vault_id=vault_id, find_key=keystore.dek)
        with opened, opened.view() as view:
            return bytes(view)

    async def destroyed(self) -> None:
        """Renews the service's key, moves its records, destroys the old version."""
        now = self.clock.now
        await dek.renew(self.quick, "api_keys/one", now=now)
        await dek.move_records(self.quick, "api_keys", "api_keys/one")
        assert await dek.destroy_unused(self.quick, "api_keys", "api_keys/one", now=now)

    async def close(self) -> None:
        await self.slow.close()
        await self.quick.close()


@pytest.fixture
async def pair(tmp_path: Path):
    made = Pair(tmp_path)
    await made.open()
    yield made
    await made.close()


async def test_a_record_is_never_left_under_a_key_that_was_destroyed(pair: Pair) -> None:
    pair.storage.first = pair.destroyed
    await pair.put(pair.slow, "mine", "value")
    assert pair.storage.first is None
    assert b"value" in await pair.value("mine")
    assert b"service" in await pair.value("other")
    keyset = (await pair.quick.keystore()).by_label["api_keys/one"]
    assert [version.state for version in keyset.versions] == [
        KeyState.DESTROYED,
        KeyState.PRIMARY,
    ]


async def test_a_shard_is_never_left_under_a_kek_that_was_destroyed(pair: Pair) -> None:
    async def turned() -> None:
        engine = Engine(
            pair.quick,
            rotation_document(pair.quick),
            next_fire=lambda *_: None,
        )
        await rotate.rotate_kek(pair.quick, replaces=1, now=pair.clock.now)
        await rotate.mark_keks_compromised(pair.quick, [1], now=pair.clock.now)
        assert not (await engine.run(lease=False)).failed

    pair.storage.first = turned
    await pair.put(pair.slow, "mine", "value")
    assert b"value" in await pair.value("mine")
    versions = (await pair.quick.keystore()).root_header.keks.versions
    assert versions[0].state is KeyState.DESTROYED
    assert set((await pair.quick.kek_versions("api_keys")).values()) == {2}


async def test_no_write_to_the_same_shard_is_lost(pair: Pair) -> None:
    async def others() -> None:
        for number in range(8):
            await pair.put(pair.quick, f"theirs {number}", "value")

    pair.storage.first = others
    await pair.put(pair.slow, "mine", "value")
    records = (await pair.slow.section("api_keys")).records
    assert set(records) == {"mine", "other", *(f"theirs {number}" for number in range(8))}
