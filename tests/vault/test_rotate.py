"""KEK and master rotation of a vault: what stays readable, what goes, who may."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.errors import KeyStateError, MasterKeyNotFoundError, UnknownKeyError
from apex_creds.keys.file import FileProvider
from apex_creds.keys.hierarchy import is_wrapped
from apex_creds.keys.keyset import KeyState
from apex_creds.vault import Vault, dek, reseal, rotate
from apex_creds.vault.state import StateDocument
from tests.vault.helpers import FakeClock, create, home_in, secret_for, unseal, values

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
    for name in (await reseal.scan(vault.store)).stale:
        await reseal.reseal(vault.store, name)


async def test_kek_rotation_keeps_everything_readable(vault: Vault, tmp_path: Path) -> None:
    before = await stored(vault)
    await rotate.rotate_kek(vault.store, replaces=1, now=5.0)
    assert states(await keks_of(vault)) == ["active", "primary"]
    assert await stored(vault) == before
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before


async def test_kek_rotation_happens_once(vault: Vault) -> None:
    await rotate.rotate_kek(vault.store, replaces=1, now=5.0)
    await rotate.rotate_kek(vault.store, replaces=1, now=6.0)
    assert len((await keks_of(vault)).versions) == 2


async def test_an_old_kek_stays_while_a_document_needs_it(vault: Vault) -> None:
    await rotate.rotate_kek(vault.store, replaces=1, now=5.0)
    assert await rotate.retire_keks(vault.store, now=6.0) == frozenset()
    await reseal_all(vault)
    assert await rotate.destroy_keks(vault.store, before=9.0, now=9.0) == frozenset()
    assert await rotate.retire_keks(vault.store, now=6.0) == {1}
    assert await rotate.destroy_keks(vault.store, before=5.9, now=9.0) == frozenset()
    assert await rotate.destroy_keks(vault.store, before=6.0, now=9.0) == {1}


async def test_after_a_kek_is_destroyed_all_opens(vault: Vault, tmp_path: Path) -> None:
    before = await stored(vault)
    document = StateDocument(vault.store, name="rotation", empty={"a": 1})
    await document.change(lambda _: {"a": 2})
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before
        await rotate.rotate_kek(vault.store, replaces=1, now=5.0)
        await reseal_all(vault)
        await rotate.retire_keks(vault.store, now=6.0)
        await rotate.destroy_keks(vault.store, before=6.0, now=9.0)
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
    await rotate.rotate_master(vault.store, replaces=1, now=5.0)
    keystore = await vault.store.keystore()
    assert keystore.root_header.master.version == 2
    assert [is_wrapped(v) for v in keystore.root_header.keks.versions] == [True, False]
    assert await stored(vault) == before
    await rotate.discard_master(vault.store, 1)
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before
        await rotate.rotate_kek(other.store, replaces=2, now=6.0)
        assert await stored(other) == before
        await rotate.rotate_master(other.store, replaces=2, now=7.0)
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before
        await reseal_all(other)
        assert await rotate.retire_keks(other.store, now=8.0) == {1, 2, 3}
        assert await rotate.destroy_keks(other.store, before=8.0, now=8.0) == {1, 2, 3}
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before
        assert states(await keks_of(other)) == ["destroyed"] * 3 + ["primary"]


async def test_a_discarded_master_key_is_gone_and_the_present_one_stays(
    vault: Vault, tmp_path: Path
) -> None:
    with pytest.raises(KeyStateError):
        await rotate.discard_master(vault.store, 1)
    await rotate.rotate_master(vault.store, replaces=1, now=5.0)
    await rotate.discard_master(vault.store, 1)
    await rotate.discard_master(vault.store, 1)
    provider = FileProvider(tmp_path / "master.key")
    with pytest.raises(MasterKeyNotFoundError):
        await provider.load(vault_id=vault.vault_id, version=1, params={})
    (await provider.load(vault_id=vault.vault_id, version=2, params={})).close()


async def test_a_master_key_that_was_left_by_an_interrupted_rotation_is_used(
    vault: Vault, tmp_path: Path
) -> None:
    provider = FileProvider(tmp_path / "master.key")
    (await provider.create(vault_id=vault.vault_id, version=2))[0].close()
    before = await stored(vault)
    await rotate.rotate_master(vault.store, replaces=1, now=5.0)
    async with await unseal(tmp_path) as other:
        assert await stored(other) == before


async def test_a_service_without_records_gets_a_fence_before_its_key_goes(
    vault: Vault,
) -> None:
    """A writer in another process that took the old primary must come second."""
    store = vault.store
    async with await Vault.unseal(vault.home) as other:
        section = await other.store.section("api_keys")
        await other.put("x", secret_for("api_key", "v"), service="shared")
        await other.delete("x")
        label = "api_keys/shared"
        before = (await other.store.section("api_keys")).generation
        await dek.renew(store, label, now=5.0)
        await dek.retire_unused(store, "api_keys", [label], now=6.0)
        await dek.destroy_retired(store, "api_keys", [label], before=7.0, now=7.0)
        assert (await other.store.section("api_keys")).generation > before
        assert section.generation < before
    keyset = (await store.keystore()).by_label[label]
    live = {v.state for v in keyset.versions} - {KeyState.DESTROYED}
    assert live == {KeyState.PRIMARY}


async def test_compromised_versions_go_without_grace(vault: Vault) -> None:
    await rotate.mark_keks_compromised(vault.store, [1], now=4.0)
    await rotate.rotate_kek(vault.store, replaces=1, now=5.0)
    await reseal_all(vault)
    await rotate.retire_keks(vault.store, now=6.0)
    assert await rotate.destroy_keks(vault.store, before=0.0, now=6.0) == {1}


async def test_the_home_of_a_rotated_vault(vault: Vault) -> None:
    await rotate.rotate_kek(vault.store, replaces=1, now=5.0)
    await reseal_all(vault)
    assert (await reseal.scan(vault.store)).only
    assert home_in(vault.home.parent) == vault.home
