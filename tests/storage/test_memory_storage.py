"""The memory storage keeps both contracts; it is not durable."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest

from apex_creds.errors import StorageStaleError, StorageUnreachableError
from apex_creds.storage import MemoryStorage
from apex_creds.testing.shared_storage import SharedStorageContract
from apex_creds.testing.storage import StorageContract

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


class TestMemoryStorage(StorageContract):
    shared: ClassVar[bool] = False

    async def open_storage(self, where: Path) -> MemoryStorage:
        return MemoryStorage()


class TestSharedMemoryStorage(SharedStorageContract):
    @pytest.fixture(autouse=True)
    def _known(self) -> None:
        self.known: dict[Path, MemoryStorage] = {}

    async def open_storage(self, where: Path) -> MemoryStorage:
        return self.known.setdefault(where, MemoryStorage(shards=4)).peer()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_storage_out_of_reach_is_relied_on_for_a_while() -> None:
    clock = Clock()
    storage = MemoryStorage(shards=4, staleness=5.0, monotonic=clock)
    await storage.write("a", b"1", expected=None)
    await storage.refresh()
    storage.reachable = False
    clock.now += 3
    await storage.refresh()
    assert storage.stale_for() == 3.0
    with pytest.raises(StorageUnreachableError):
        await storage.read("a")
    clock.now += 3
    with pytest.raises(StorageStaleError):
        await storage.refresh()
    storage.reachable = True
    clock.now += 1
    await storage.refresh()
    assert storage.stale_for() == 0.0


async def test_what_was_never_seen_is_not_relied_on() -> None:
    storage = MemoryStorage(shards=4)
    storage.reachable = False
    with pytest.raises(StorageStaleError):
        await storage.refresh()


async def test_who_is_cut_off_leads_no_more() -> None:
    storage = MemoryStorage(shards=4)
    async with storage.leader("work") as lead:
        storage.reachable = False
        with pytest.raises(StorageUnreachableError):
            await storage.read("a")
        await lead.ended()
        async with storage.peer().leader("work") as other:
            assert other
