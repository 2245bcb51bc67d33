"""Workers that share a vault: one leads, and all of them do the shards between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from apex_creds.documents import key_versions
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import DecryptionError, StorageUnreachableError
from apex_creds.model import ApiKey
from apex_creds.scheduler import reencryption
from apex_creds.scheduler.reencryption import ROTATION, Leader, Pace, left, reencrypt
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import Vault
from apex_creds.vault.lookup import PutItem

pytestmark = pytest.mark.anyio
SHARDS = 32
NAMES = [f"name{number}" for number in range(200)]


class Workplace:
    """A vault with many credentials of one service, and homes that share it."""

    def __init__(self, where: Path, stack: AsyncExitStack) -> None:
        self.where, self.stack = where, stack
        self.storage = MemoryStorage(shards=SHARDS)
        self.vaults: list[Vault] = []

    async def home(self) -> Vault:
        home = self.where / f"home{len(self.vaults)}"
        home.mkdir(mode=0o700)
        if self.vaults:
            vault = await Vault.unseal(home, storage=self.storage.peer())
        else:
            vault = await Vault.create(
                home, master=f"file:{self.where}/k", storage=self.storage
            )
            items = [PutItem(name=n, secret=ApiKey(n), service="one") for n in NAMES]
            await vault.put_many(items)
        self.vaults.append(vault)
        return await self.stack.enter_async_context(vault)

    async def rotated(self) -> None:
        """Nothing is under its primary."""
        await key_versions.renew(self.vaults[0].store, "api_keys/one", now=1.0)


@pytest.fixture
async def workplace(tmp_path: Path) -> AsyncIterator[Workplace]:
    async with AsyncExitStack() as stack:
        yield Workplace(tmp_path, stack)


def store_of(vault: Vault) -> DocumentStore:
    assert isinstance(vault.store, DocumentStore)
    return vault.store


# -- who leads ------------------------------------------------------------------------


async def test_one_leads_until_it_leaves() -> None:
    storage = MemoryStorage(shards=4)
    one, two = Leader(storage, ROTATION), Leader(storage.peer(), ROTATION)
    assert await one.hold()
    assert await one.hold()
    assert not await two.hold()
    await one.release()
    await one.release()
    assert await two.hold()
    assert not await one.hold()
    await two.release()


async def test_who_is_cut_off_leads_no_more() -> None:
    storage = MemoryStorage(shards=4)
    one, two = Leader(storage, ROTATION), Leader(storage.peer(), ROTATION)
    assert await one.hold()
    storage.reachable = False
    with pytest.raises(StorageUnreachableError):
        await storage.read("keystore")
    with pytest.raises(StorageUnreachableError):
        await one.hold()
    assert await two.hold()
    storage.reachable = True
    assert not await one.hold()
    await two.release()


async def test_a_worker_that_does_not_lead_helps(workplace: Workplace) -> None:
    first, second = await workplace.home(), await workplace.home()
    leads, helps = RotationWorker(first), RotationWorker(second)
    assert await leads.engine.hold()
    await workplace.rotated()
    outcome = await helps.run_once()
    assert outcome.waiting
    await helps._help_reencrypt()
    assert await left(first.store, "api_keys") == 0
    assert not (await leads.run_once()).failed
    assert not (await helps.run_once()).waiting
    await helps.engine.release()


# -- who does which shards ----------------------------------------------------------------


async def test_two_do_every_record_once_between_them(workplace: Workplace) -> None:
    vaults = [await workplace.home() for _ in range(2)]
    await workplace.rotated()
    done: list[int] = [0, 0]

    async def work(number: int) -> None:
        async for progress in reencrypt(vaults[number].store, "api_keys"):
            done[number] = progress.done

    async with anyio.create_task_group() as group:
        group.start_soon(work, 0)
        group.start_soon(work, 1)
    assert sum(done) == len(NAMES)
    # How much each does is up to their threads; nothing is done twice, or by nobody.
    assert await left(vaults[1].store, "api_keys") == 0
    for name in NAMES[::50]:
        async with vaults[1].open(name) as opened:
            assert bytes(opened.view()) == name.encode()


async def test_what_others_keep_and_do_not_do_is_done_at_last(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = await workplace.home()
    await workplace.rotated()
    monkeypatch.setattr(reencryption, "PATIENCE", 3)
    monkeypatch.setattr(reencryption, "PERIOD", 0.0)
    names = store_of(vault).sections.all("api_keys")
    async with workplace.storage.peer().claim(names, limit=SHARDS) as kept:
        assert len(kept) == SHARDS
        helping = reencrypt(vault.store, "api_keys", pace=Pace(backwards=True))
        assert [progress async for progress in helping] == []
        assert await left(vault.store, "api_keys") == len(NAMES)
        last = [progress async for progress in reencrypt(vault.store, "api_keys")][-1]
    assert last.done == len(NAMES)


async def test_only_the_shards_that_have_something_to_do_are_written(
    workplace: Workplace,
) -> None:
    vault = await workplace.home()
    await vault.put("alone", ApiKey("x"), service="two")
    documents = workplace.storage._place.documents
    before = {name: stored.token for name, stored in documents.items()}
    await key_versions.renew(vault.store, "api_keys/two", now=1.0)
    async for _ in reencrypt(vault.store, "api_keys", labels=["api_keys/two"]):
        pass
    moved = {n for n, s in documents.items() if s.token != before[n]} - {"keystore"}
    assert moved == {store_of(vault).sections.shard_of("api_keys", "alone")}


async def test_a_record_that_does_not_open_keeps_nothing_else_back(
    workplace: Workplace,
) -> None:
    vault = await workplace.home()
    store = store_of(vault)
    whole = await store.sections.read("api_keys")
    bad = whole.records["name7"]
    forged = type(bad)(bad.info, bad.sealed[:-1] + bytes([bad.sealed[-1] ^ 1]))
    await store.sections.commit("api_keys", lambda *_: {"name7": forged})
    await workplace.rotated()
    with pytest.raises(DecryptionError, match="1 credentials"):
        async for _ in reencrypt(store, "api_keys"):
            pass
    assert await left(store, "api_keys") == 1
