"""A shared storage in a thread of its own keeps the contract, for callers in any loop."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from apex_creds.errors import ConflictError, StorageError, StorageStaleError
from apex_creds.storage.base import Stored
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.storage.portal import StoragePortal
from apex_creds.testing.shared_storage import SharedStorageContract

pytestmark = pytest.mark.anyio


class TestThreaded(SharedStorageContract):
    @pytest.fixture(autouse=True)
    def _known(self) -> None:
        self.known: dict[Path, MemoryStorage] = {}

    async def open_storage(self, where: Path) -> StoragePortal:
        place = self.known.setdefault(where, MemoryStorage(shards=4))
        return StoragePortal(place.peer())


async def test_callers_in_several_loops_use_it_at_the_same_time() -> None:
    storage = StoragePortal(MemoryStorage(shards=4))
    await storage.write("a", b"0", expected=None)

    async def count() -> None:
        for _ in range(20):
            await _add_one(storage)

    threads = [threading.Thread(target=anyio.run, args=(count,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    await count()
    for thread in threads:
        await to_thread.run_sync(thread.join)
    stored = await storage.read("a")
    assert stored is not None
    assert stored.data == b"80"
    await storage.close()


async def _add_one(storage: StoragePortal) -> None:
    while True:
        stored = await storage.read("a")
        assert isinstance(stored, Stored)
        try:
            data = b"%d" % (int(stored.data) + 1)
            await storage.write("a", data, expected=stored.token)
        except ConflictError:
            continue
        return


async def test_code_that_stands_on_the_loop_can_look() -> None:
    inner = MemoryStorage(shards=4, staleness=0.0)
    storage, other = StoragePortal(inner), inner.peer()
    token = (await other.write("a", b"1", expected=None)).token
    storage.refresh_blocking()
    assert storage.change_token("a") == token
    inner.reachable = False
    with pytest.raises(StorageStaleError):
        storage.refresh_blocking()
    await storage.close()


async def test_a_block_is_left_by_another_task_than_entered_it() -> None:
    inner = MemoryStorage(shards=4)
    storage = StoragePortal(inner)
    block = storage.leader("rotation")
    assert await asyncio.create_task(block.__aenter__())
    async with inner.peer().leader("rotation") as other:
        assert not other
    await asyncio.create_task(block.__aexit__(None, None, None))
    async with inner.peer().leader("rotation") as other:
        assert other
    await storage.close()


async def test_a_caller_that_is_cancelled_leaves_nothing_held() -> None:
    inner = MemoryStorage(shards=4)
    storage = StoragePortal(inner)

    async def holds(entered: anyio.Event) -> None:
        async with storage.leader("rotation"):
            entered.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        entered = anyio.Event()
        group.start_soon(holds, entered)
        await entered.wait()
        group.cancel_scope.cancel()
    async with storage.leader("rotation") as lead:
        assert lead
    await storage.close()


async def test_its_thread_ends_with_it() -> None:
    before = set(threading.enumerate())
    storage = StoragePortal(MemoryStorage(shards=4))
    await storage.prepare()
    [own] = [t for t in set(threading.enumerate()) - before if t.name == "apex-creds-storage"]
    await storage.close()
    await storage.close()
    assert not own.is_alive()
    with pytest.raises(StorageError, match="closed"):
        await storage.read("a")
