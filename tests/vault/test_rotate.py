"""KEK and master rotation of a vault: what stays readable, what goes, who may."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import anyio
import pytest

from apex_creds.documents import key_versions
from apex_creds.documents.cached import Document, recommit
from apex_creds.documents.store import Rekeyed
from apex_creds.errors import (
    KeyStateError,
    MasterKeyExistsError,
    MasterKeyNotFoundError,
    StorageFullError,
    UnknownKeyError,
)
from apex_creds.keys.hierarchy import is_wrapped, master_check
from apex_creds.keys.key_file import FileProvider
from apex_creds.keys.keyset import KeyState
from apex_creds.scheduler import kek_rotation, master_rotation
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import Vault
from tests.support.clocks import FakeClock
from tests.support.vaults import (
    create,
    home_in,
    secret_for,
    tree,
    unseal,
    values,
    write_version_1,
)

pytestmark = pytest.mark.anyio

KINDS = ("api_key", "oauth_token", "basic", "generic")


@pytest.fixture
async def vault(tmp_path: Path):
    async with await create(tmp_path, clock=FakeClock()) as made:
        for kind in KINDS:
            await made.put(f"a {kind}", secret_for(kind, f"value of {kind}"))
        yield made


async def stored(vault: Vault) -> dict[str, bytes]:
    return await values(vault)


def states(keyset) -> list[str]:
    return [version.state.value for version in keyset.versions]


async def keks_of(vault: Vault):
    return (await vault.store.keystore()).root_header.keks


async def reseal_all(vault: Vault) -> None:
    for name in (await kek_rotation.scan(vault.store)).stale:
        await recommit(vault.store, name)


async def test_kek_rotation_keeps_everything_readable(vault: Vault, tmp_path: Path) -> None:
    before = await stored(vault)
    await kek_rotation.rotate_kek(vault.store, replaces=1, now=5.0)
    assert states(await keks_of(vault)) == ["active", "primary"]
    assert await stored(vault) == before
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before


@pytest.mark.parametrize("rotated", [kek_rotation.rotate_kek, master_rotation.rotate_master])
async def test_a_rotation_writes_the_key_store_and_nothing_else(
    vault: Vault, tmp_path: Path, rotated
) -> None:
    await Document(vault.store, name="rotation", empty=b"").change(lambda _: b"state")
    before = tree(vault.home)
    written = Counted(vault.store.storage)
    vault.store.storage = written
    await rotated(vault.store, replaces=1, now=5.0)
    assert written.names == ["keystore"]
    assert not (await kek_rotation.scan(vault.store)).stale
    assert await kek_rotation.retire_keks(vault.store, now=6.0) == {1}
    assert await kek_rotation.destroy_keks(vault.store, before=9.0, now=9.0) == {1}
    assert written.names == ["keystore"] * 3
    changed = {name for name, found in tree(vault.home).items() if found != before.get(name)}
    assert {name for name in changed if name.endswith(".enc")} == {"security/keystore.enc"}
    async with await unseal(tmp_path) as other:
        assert await stored(other) == await stored(vault)


async def test_kek_rotation_happens_once(vault: Vault) -> None:
    await kek_rotation.rotate_kek(vault.store, replaces=1, now=5.0)
    await kek_rotation.rotate_kek(vault.store, replaces=1, now=6.0)
    assert len((await keks_of(vault)).versions) == 2


class Counted:
    """A storage that says what was written."""

    def __init__(self, inner: FileStorage) -> None:
        self._inner = inner
        self.names: list[str] = []

    async def write(self, name: str, *args: object, **options: object) -> object:
        self.names.append(name)
        return await self._inner.write(name, *args, **options)

    async def write_many(self, writes, **options: object) -> object:
        self.names += [write.name for write in writes if write.data is not None]
        return await self._inner.write_many(writes, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


async def test_an_old_kek_stays_while_a_document_needs_it(vault: Vault) -> None:
    """One of version 1 does."""
    await write_version_1(vault.store, "api_keys")
    await kek_rotation.rotate_kek(vault.store, replaces=1, now=5.0)
    assert (await kek_rotation.scan(vault.store)).stale == ("api_keys",)
    assert await kek_rotation.retire_keks(vault.store, now=6.0) == frozenset()
    await reseal_all(vault)
    assert await kek_rotation.destroy_keks(vault.store, before=9.0, now=9.0) == frozenset()
    assert await kek_rotation.retire_keks(vault.store, now=6.0) == {1}
    assert await kek_rotation.destroy_keks(vault.store, before=5.9, now=9.0) == frozenset()
    assert await kek_rotation.destroy_keks(vault.store, before=6.0, now=9.0) == {1}


async def test_after_a_kek_is_destroyed_all_opens(vault: Vault, tmp_path: Path) -> None:
    before = await stored(vault)
    document = Document(vault.store, name="rotation", empty={"a": 1})
    await document.change(lambda _: {"a": 2})
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before
        await kek_rotation.rotate_kek(vault.store, replaces=1, now=5.0)
        await reseal_all(vault)
        await kek_rotation.retire_keks(vault.store, now=6.0)
        await kek_rotation.destroy_keks(vault.store, before=6.0, now=9.0)
        keystore = await vault.store.keystore()
        assert keystore.hierarchy.kek_versions == {2}
        with pytest.raises(UnknownKeyError):
            keystore.hierarchy.document_keys("api_keys", 1)
        assert await stored(other) == before
        await other.put("further", secret_for("api_key", "further value"))
    assert await document.read() == {"a": 2}
    assert await stored(vault) == {**before, "further": b"further value"}
    async with await unseal(tmp_path) as last:
        assert await stored(last) == await stored(vault)


async def test_master_rotation(vault: Vault, tmp_path: Path) -> None:
    before = await stored(vault)
    await master_rotation.rotate_master(vault.store, replaces=1, now=5.0)
    keystore = await vault.store.keystore()
    assert keystore.root_header.master.version == 2
    assert [is_wrapped(v) for v in keystore.root_header.keks.versions] == [True, False]
    assert await stored(vault) == before
    await master_rotation.discard_master(vault.store, 1)
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before
        await kek_rotation.rotate_kek(other.store, replaces=2, now=6.0)
        assert await stored(other) == before
        await master_rotation.rotate_master(other.store, replaces=2, now=7.0)
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before
        await reseal_all(other)
        assert await kek_rotation.retire_keks(other.store, now=8.0) == {1, 2, 3}
        assert await kek_rotation.destroy_keks(other.store, before=8.0, now=8.0) == {1, 2, 3}
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before
        assert states(await keks_of(other)) == ["destroyed"] * 3 + ["primary"]


async def test_a_discarded_master_key_is_gone_and_the_present_one_stays(
    vault: Vault, tmp_path: Path
) -> None:
    with pytest.raises(KeyStateError):
        await master_rotation.discard_master(vault.store, 1)
    await master_rotation.rotate_master(vault.store, replaces=1, now=5.0)
    await master_rotation.discard_master(vault.store, 1)
    await master_rotation.discard_master(vault.store, 1)
    provider = FileProvider(tmp_path / "master.key")
    with pytest.raises(MasterKeyNotFoundError):
        await provider.load(vault_id=vault.vault_id, version=1, params={})
    (await provider.load(vault_id=vault.vault_id, version=2, params={})).close()


async def test_a_key_that_is_at_the_provider_already_is_never_rotated_to(
    vault: Vault, tmp_path: Path
) -> None:
    """One that was planted, that leaked before a restore, or that a killed rotation left."""
    provider = FileProvider(tmp_path / "master.key")
    planted, _ = await provider.create(vault_id=vault.vault_id, version=2)
    before = await stored(vault)
    with planted:
        await master_rotation.rotate_master(vault.store, replaces=1, now=5.0)
        record = (await vault.store.keystore()).root_header.master
        assert record.version == 3
        assert record.check != master_check(planted, vault_id=vault.vault_id)
        with await vault.store.masters.load(record, vault.vault_id) as made:
            assert not made.equals(planted)
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before


async def test_a_rotation_that_lost_a_race_takes_its_key_back(
    vault: Vault, tmp_path: Path
) -> None:
    async with await unseal(tmp_path) as other, anyio.create_task_group() as group:
        for store in (vault.store, other.store, vault.store):
            group.start_soon(partial(master_rotation.rotate_master, store, replaces=1, now=5.0))
    record = (await vault.store.keystore()).root_header.master
    lines = (tmp_path / "master.key").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["v1", f"v{record.version}"]


async def test_a_rotation_that_lost_by_far_takes_its_key_back(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another has rotated twice, and discarded the version whose number it takes."""
    create = FileProvider.create

    async def late(provider: FileProvider, *, vault_id: str, version: int) -> object:
        monkeypatch.setattr(FileProvider, "create", create)
        async with await unseal(tmp_path) as other:
            for replaces in (1, 2):
                await master_rotation.rotate_master(other.store, replaces=replaces, now=5.0)
                await master_rotation.discard_master(other.store, replaces)
        return await create(provider, vault_id=vault_id, version=version)

    monkeypatch.setattr(FileProvider, "create", late)
    await master_rotation.rotate_master(vault.store, replaces=1, now=5.0)
    lines = (tmp_path / "master.key").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["v3"]


async def test_a_rotation_that_fails_takes_its_key_back(
    vault: Vault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_before: object, made: Rekeyed) -> None:
        made.hierarchy.close()
        raise KeyStateError("injected", hint="-")

    monkeypatch.setattr(kek_rotation, "_compare", fail)
    with pytest.raises(KeyStateError, match="injected"):
        await master_rotation.rotate_master(vault.store, replaces=1, now=5.0)
    assert (tmp_path / "master.key").read_text().count("\n") == 1


async def test_an_adopted_key_is_never_deleted(tmp_path: Path) -> None:
    """Nor those that came after it: another vault may have made them."""
    uri = f"file:{tmp_path}/k"
    async with await Vault.create(tmp_path / "a", master=uri) as first:
        await first.put("x", secret_for("api_key", "v"))
        async with await Vault.create(
            tmp_path / "b", master=uri, use_existing_key=True
        ) as second:
            for vault in (second, first):
                await master_rotation.rotate_master(vault.store, replaces=1, now=5.0)
                await master_rotation.discard_master(vault.store, 1)
    lines = (tmp_path / "k").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["v1", "v2", "v3"]
    for name, params in (("a", {}), ("b", {"adopted": "yes"})):
        async with await Vault.unseal(tmp_path / name) as vault:
            assert (await vault.store.keystore()).root_header.master.params == params


async def test_a_new_vault_does_not_share_a_key_file_unasked(tmp_path: Path) -> None:
    uri = f"file:{tmp_path}/k"
    async with await Vault.create(tmp_path / "a", master=uri):
        pass
    kept = (tmp_path / "k").read_bytes()
    with pytest.raises(MasterKeyExistsError, match="already"):
        await Vault.create(tmp_path / "b", master=uri)
    assert (tmp_path / "k").read_bytes() == kept


async def test_an_init_that_fails_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_args: object, **_named: object) -> None:
        raise StorageFullError("injected", hint="-")

    with monkeypatch.context() as patched:
        patched.setattr(FileStorage, "write", fail)
        with pytest.raises(StorageFullError):
            await Vault.create(tmp_path / "a", master=f"file:{tmp_path}/k")
    assert not (tmp_path / "k").exists()
    async with await Vault.create(tmp_path / "a", master=f"file:{tmp_path}/k"):
        pass


async def test_the_old_key_of_a_service_without_records_goes_and_no_section_is_written(
    vault: Vault,
) -> None:
    """A writer who took it is refused, since his commit is tied to the key store."""
    store = vault.store
    await vault.put("x", secret_for("api_key", "v"), service="shared")
    await vault.delete("x")
    label = "api_keys/shared"
    before = (await store.sections.read("api_keys")).generation
    await key_versions.renew(store, label, now=5.0)
    retire = partial(key_versions.retire, now=6.0)
    destroy = partial(key_versions.destroy, before=7.0, now=7.0)
    await key_versions.step_unused(store, "api_keys", [label], retire)
    await key_versions.step_unused(store, "api_keys", [label], destroy)
    assert (await store.sections.read("api_keys")).generation == before
    keyset = (await store.keystore()).by_label[label]
    live = {v.state for v in keyset.versions} - {KeyState.DESTROYED}
    assert live == {KeyState.PRIMARY}


async def test_compromised_versions_go_without_grace(vault: Vault) -> None:
    await kek_rotation.mark_keks_compromised(vault.store, [1], now=4.0)
    await kek_rotation.rotate_kek(vault.store, replaces=1, now=5.0)
    await reseal_all(vault)
    await kek_rotation.retire_keks(vault.store, now=6.0)
    assert await kek_rotation.destroy_keks(vault.store, before=0.0, now=6.0) == {1}


async def test_the_home_of_a_rotated_vault(vault: Vault) -> None:
    await kek_rotation.rotate_kek(vault.store, replaces=1, now=5.0)
    await reseal_all(vault)
    assert (await kek_rotation.scan(vault.store)).only
    assert home_in(vault.home.parent) == vault.home
