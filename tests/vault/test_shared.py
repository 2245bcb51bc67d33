"""A vault in a storage that several homes share: shards, freshness, logs of their own."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

from apex_creds.audit.verify import check
from apex_creds.documents.keystore import shard_names
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    AuditTamperedError,
    CorruptDocumentError,
    ForeignDocumentError,
    IntegrityError,
    RollbackDetectedError,
    StorageStaleError,
    StorageUnreachableError,
    VaultExistsError,
)
from apex_creds.fs.home import audit_directory
from apex_creds.model import ApiKey
from apex_creds.scheduler.rotation_state import rotation_document
from apex_creds.storage.memory_storage import MemoryStorage
from apex_creds.vault import Vault
from apex_creds.vault.anchor import Anchor
from apex_creds.vault.config import node_of
from apex_creds.vault.log_replication import copies, verify_copy
from tests.support.loops import WITHIN
from tests.support.vaults import secret_for, value_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_slot_left")]


class Place:
    """A storage, and homes that share the vault in it."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.storage = MemoryStorage(shards=4)
        self.master = f"file:{where}/master.key"

    @asynccontextmanager
    async def homes(self, *names: str) -> AsyncIterator[list[Vault]]:
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(await self.home(name)) for name in names]

    async def home(self, name: str) -> Vault:
        home = self.where / name
        home.mkdir(mode=0o700, exist_ok=True)
        if await self.storage.peer().read("keystore") is None:
            return await Vault.create(home, master=self.master, storage=self.storage.peer())
        return await Vault.unseal(home, storage=self.storage.peer())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def inner(vault: Vault) -> MemoryStorage:
    found = vault.store.storage.inner
    assert isinstance(found, MemoryStorage)
    return found


async def test_what_one_home_puts_the_others_have(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        kinds = {"a": "api_key", "b": "oauth_token", "c": "basic", "d": "generic"}
        for name, kind in kinds.items():
            await one.put(name, secret_for(kind, f"value of {name}"))
        assert [info.name for info in await two.list()] == list(kinds)
        assert await value_of(two, "c") == b"value of c"
        await two.put("a", ApiKey("other"))
        assert await value_of(one, "a") == b"other"
        assert (await two.delete("b")).shredded
        assert [info.name for info in await one.list()] == ["a", "c", "d"]


async def test_a_put_writes_one_shard_and_a_section_has_all(place: Place) -> None:
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("1"))
        before = {name: s.token for name, s in place.storage._place.documents.items()}
        assert {n for n in before if n.startswith("api_keys")} == set(
            shard_names("api_keys", 4)
        )
        await vault.put("first", ApiKey("2"))
        after = {name: s.token for name, s in place.storage._place.documents.items()}
        moved = {name for name in after if after[name] != before.get(name)}
        assert isinstance(vault.store, DocumentStore)
        assert moved == {vault.store.sections.shard_of("api_keys", "first")}


async def test_where_a_credential_is_depends_on_the_vault(tmp_path: Path) -> None:
    found = []
    for number in range(2):
        where = tmp_path / str(number)
        where.mkdir()
        async with Place(where).homes("one") as (vault,):
            assert isinstance(vault.store, DocumentStore)
            found.append(
                [vault.store.sections.shard_of("api_keys", f"n{i}") for i in range(64)]
            )
    assert found[0] != found[1]
    assert set(found[0]) == set(shard_names("api_keys", 4))


async def test_a_shard_that_is_missing_is_an_error(place: Place) -> None:
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("1"))
    gone = place.storage._place.documents.pop("api_keys_02")
    async with place.homes("one") as (vault,):
        with pytest.raises(CorruptDocumentError, match="api_keys_02"):
            await vault.list()
    place.storage._place.documents["api_keys_02"] = gone


async def test_all_shards_missing_are_an_error_too(place: Place) -> None:
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("1"))
    for name in shard_names("api_keys", 4):
        del place.storage._place.documents[name]
    async with place.homes("one") as (vault,):
        with pytest.raises(CorruptDocumentError, match="missing"):
            await vault.list()
        with pytest.raises(CorruptDocumentError, match="missing"):
            await vault.put("second", ApiKey("2"))


async def test_a_shard_that_is_put_back_is_refused(place: Place) -> None:
    async with place.homes("one") as (vault,):
        assert isinstance(vault.store, DocumentStore)
        await vault.put("first", ApiKey("1"))
        shard = vault.store.sections.shard_of("api_keys", "first")
        old = place.storage._place.documents[shard]
        await vault.put("first", ApiKey("2"))
        place.storage._place.documents[shard] = old
        with pytest.raises(RollbackDetectedError):
            await vault.get("first")
        await vault.grant("p", "first")  # the key store is the floor for every later process
    async with place.homes("one") as (again,):
        with pytest.raises(RollbackDetectedError):
            await again.get("first")


async def test_a_database_that_is_put_back_is_noticed_by_the_anchor(place: Place) -> None:
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("1"))
    earlier = dict(place.storage._place.documents)
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("2"))  # the key store does not change with that
    assert place.storage._place.documents["keystore"] == earlier["keystore"]
    later = dict(place.storage._place.documents)
    place.storage._place.documents.update(earlier)
    async with place.homes("one") as (vault,):
        with pytest.raises(RollbackDetectedError):
            await vault.get("first")
    home = place.where / "one"
    accepted = await Vault.unseal(home, storage=place.storage.peer(), accept_rollback="a test")
    async with accepted as vault:
        assert await value_of(vault, "first") == b"1"
    async with place.homes("one") as (vault,):
        assert await value_of(vault, "first") == b"1"
    place.storage._place.documents.update(later)
    async with place.homes("one") as (vault,):
        assert await value_of(vault, "first") == b"2"


async def test_a_row_that_is_put_back_is_noticed_though_others_moved_on(place: Place) -> None:
    documents = place.storage._place.documents
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("1"))
        shard = vault.store.sections.shard_of("api_keys", "first")
        elsewhere = next(
            name
            for name in map(str, range(99))
            if vault.store.sections.shard_of("api_keys", name) != shard
        )
        await vault.put(elsewhere, ApiKey("1"))
        old = documents[shard]
        await vault.put("first", ApiKey("2"))
    async with place.homes("two") as (two,):  # as many writes as are taken back
        await two.put(elsewhere, ApiKey("2"))
    documents[shard] = old
    async with place.homes("one") as (vault,):
        with pytest.raises(RollbackDetectedError, match=shard):
            await vault.get("first")


async def test_a_revocation_is_anchored_before_it_is_acknowledged(place: Place) -> None:
    documents = place.storage._place.documents
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("1"))
        await vault.grant("p", "first")
        old = dict(documents)
        await vault.revoke(plugin="p")
        (anchor,) = place.where.glob("*.anchor")
        kept = anchor.read_text()  # as if killed now
    anchor.write_text(kept)
    documents.update(old)
    with pytest.raises(RollbackDetectedError, match="'keystore' is at generation"):
        await place.home("one")


async def test_the_sums_in_an_older_programs_anchor_are_heeded_and_not_kept(
    place: Place,
) -> None:
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("1"))
        anchor = vault._logged.anchor
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Anchor, "_states", lambda *_: True)
            vault.store.rollback._newest["api_keys"] = (9, "")
            anchor.keep()
        del vault.store.rollback._newest["api_keys"]
        (path,) = place.where.glob("*.anchor")
        older = path.read_text()
        assert "api_keys 9\n" in older
    path.write_text(older)
    async with place.homes("one") as (vault,):
        with pytest.raises(RollbackDetectedError, match="generation 4; 9 was seen"):
            await vault.get("first")
    assert "api_keys 9\n" not in path.read_text()


async def test_a_shard_in_anothers_place_is_refused(place: Place) -> None:
    async with place.homes("one") as (vault,):
        await vault.put("first", ApiKey("1"))
    documents = place.storage._place.documents
    documents["api_keys_00"] = documents["api_keys_01"]
    async with place.homes("one") as (vault,):
        with pytest.raises(ForeignDocumentError):
            await vault.list()


async def test_a_second_vault_is_not_made_over_the_first(place: Place) -> None:
    async with place.homes("one"):
        home = place.where / "two"
        home.mkdir(mode=0o700)
        with pytest.raises(VaultExistsError):
            await Vault.create(
                home, master=f"file:{place.where}/other.key", storage=place.storage.peer()
            )
    assert not (place.where / "other.key").exists()


async def test_a_home_with_files_does_not_move_by_itself(place: Place) -> None:
    home = place.where / "files"
    home.mkdir(mode=0o700)
    await (await Vault.create(home, master=place.master)).close()
    with pytest.raises(VaultExistsError, match="has the documents"):
        await Vault.create(
            home, master=f"file:{place.where}/other.key", storage=place.storage.peer()
        )


# -- when the storage can't be reached -------------------------------------------------


async def test_memory_goes_on_within_the_bound_and_no_longer(tmp_path: Path) -> None:
    now = [0.0]
    storage = MemoryStorage(shards=4, staleness=5.0, monotonic=lambda: now[0])
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    vault = await Vault.create(home, master=f"file:{tmp_path}/k", storage=storage)
    async with vault:
        await vault.put("a", ApiKey("1"))
        await vault.list()
        storage.reachable = False
        now[0] += 4.9
        assert (await vault.get("a")).version == 1
        with pytest.raises(StorageUnreachableError):
            await vault.put("a", ApiKey("2"))
        with pytest.raises(StorageStaleError):
            await vault.store.refresh_strict()  # what destroys keys does not guess
        now[0] += 0.2
        with pytest.raises(StorageStaleError):
            await vault.get("a")
        with pytest.raises(StorageStaleError):
            vault.store.refresh_blocking()
        storage.reachable = True
        now[0] += 0.2
        assert (await vault.get("a")).version == 1


# -- revocations ------------------------------------------------------------------------


async def test_what_others_revoke_is_told_once(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        told: list[tuple[str | None, str | None]] = []
        two.watch_revocations(lambda plugin, credential: told.append((plugin, credential)))
        await one.grant("p", "c")
        await one.revoke(plugin="p")
        await _until(two, lambda: bool(told))
        await one.revoke(credential="c")
        await _until(two, lambda: len(told) > 1)
        assert told == [("p", None), (None, "c")]
        await one.lockdown()
        await _until(two, lambda: (None, None) in told)


async def _until(vault: Vault, true: Callable[[], bool]) -> None:
    with anyio.fail_after(WITHIN):
        while not true():
            await vault.store.refresh()
            await anyio.sleep(0)


# -- the log ------------------------------------------------------------------------------


async def test_each_home_has_a_log_of_its_own(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        assert one.vault_id == two.vault_id
        numbers = {node_of(vault.home) for vault in (one, two)}
        assert len(numbers) == 2
        assert None not in numbers
    async with place.homes("one") as (one,):  # nor is it behind its anchor
        assert node_of(one.home) in numbers


async def test_the_copy_of_each_log_is_in_the_storage(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        await one.put("a", ApiKey("1"))
        await two.put("b", ApiKey("2"))
    for lines in place.storage._place.streams.values():
        assert not any(b"put" in line or b"vault" in line for line in lines)
    async with place.homes("one", "three") as (one, _):
        shared, keystore = one.store.shared, one.store.unsealed()
        assert shared is not None
        assert len(await copies(shared)) >= 2  # that of the third may be on its way
        node = node_of(two.home)
        assert node is not None
        report = await verify_copy(shared, keystore, node)
        assert report == check(audit_directory(two.home), vault_id=node)
        assert report.ok
        assert report.signed == report.count >= 2


async def test_a_copy_that_was_altered_does_not_verify(place: Place) -> None:
    async with place.homes("one") as (one,):
        node = one.audit.vault_id
        for number in range(3):
            await one.put("a", ApiKey(str(number)))
    [stream] = place.storage._place.streams.values()
    assert len(stream) >= 2
    async with place.homes("two") as (two,):
        shared, keystore = two.store.shared, two.store.unsealed()
        assert shared is not None
        whole, streams = list(stream), place.storage._place.streams
        name = f"audit_{node}"
        streams[name] = [whole[1], whole[0], *whole[2:]]  # each is bound to its place
        with pytest.raises(IntegrityError):
            await verify_copy(shared, keystore, node)
        streams[name] = whole[1:]
        with pytest.raises(IntegrityError):
            await verify_copy(shared, keystore, node)
        streams[name] = whole
        assert (await verify_copy(shared, keystore, node)).ok
        with pytest.raises(AuditTamperedError):
            await verify_copy(shared, keystore, "0" * 32)


async def test_a_log_that_was_cut_is_not_copied_over(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with place.homes("one") as (one,):
        await one.put("a", ApiKey("1"))
        node = one.audit.vault_id
    before = place.storage._place.streams[f"audit_{node}"]
    shutil.rmtree(audit_directory(one.home))
    for anchor in place.where.glob("*.anchor"):
        anchor.unlink()
    async with place.homes("one") as (one,):
        await one.put("a", ApiKey("2"))
        with anyio.fail_after(WITHIN):
            while "is not copied" not in caplog.text:
                await anyio.sleep(0.01)
    assert place.storage._place.streams[f"audit_{node}"] == before
    assert "AuditTamperedError" in caplog.text or "is not the one" in caplog.text


async def test_a_home_keeps_its_number(place: Place) -> None:
    async with place.homes("one") as (one,):
        number = node_of(one.home)
    (one.home / "security" / "node").write_text("something else\n")
    with pytest.raises(CorruptDocumentError):
        await place.home("one")
    (one.home / "security" / "node").write_text(f"{number}\n")
    async with place.homes("one") as (one,):
        assert node_of(one.home) == number


# -- sharing what is counted and asked ----------------------------------------------------


async def test_second_factors_and_rotation_state_are_shared(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        states = [rotation_document(vault.store) for vault in (one, two)]
        await states[0].change(lambda s: msgspec.structs.replace(s, debounce=7.0))
        assert (await states[1].read()).debounce == 7.0
        await states[1].change(lambda s: msgspec.structs.replace(s, debounce=8.0))
        assert (await states[0].read()).debounce == 8.0
