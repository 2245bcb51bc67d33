"""The master key out, and back in: into the same provider, another one, or as a new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.admin import master_recovery
from apex_creds.admin.master_recovery import Recovery, RecoveryState
from apex_creds.audit.verify import read
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import public_key
from apex_creds.documents.document import Header
from apex_creds.documents.keystore import root_header
from apex_creds.errors import (
    DecryptionError,
    LockedDownError,
    MasterKeyNotFoundError,
    MasterKeyReadOnlyError,
    WrongMasterKeyError,
)
from apex_creds.keys import provider_from_uri
from apex_creds.keys.provider import hold
from apex_creds.keys.shares import combine, parse_share, split
from apex_creds.model import ApiKey, SystemClock
from apex_creds.scheduler import kek_rotation, master_rotation
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import Vault
from tests.support.vaults import create, home_in, master_in, unseal, values

pytestmark = pytest.mark.anyio

STORED = {"a": b"first", "b": b"second"}


async def filled(where: Path) -> list[str]:
    """A vault with two credentials; shares of its master key."""
    async with await create(where) as vault:
        await vault.put("a", ApiKey("first"))
        await vault.put("b", ApiKey("second"))
        with await master_recovery.take_key(vault) as key:
            return split(key, threshold=2, shares=3)


async def root(where: Path) -> tuple[Header, bytes]:
    storage = FileStorage(home_in(where))
    try:
        return await master_recovery.read_root(storage)
    finally:
        await storage.close()


def key_of(shares: list[str]) -> SecretBytes:
    return combine([parse_share(text) for text in shares[1:]])


async def reset(where: Path, shares: list[str], uri: str) -> master_recovery.Reset:
    header, data = await root(where)
    lost = root_header(header).master
    with key_of(shares) as key:
        master_recovery.opens(key, data).hierarchy.close()
        held = hold(provider_from_uri(uri), version=lost.version, key=key)
        async with await Vault.unseal(home_in(where), master=held) as vault:
            return await master_recovery.reset_master(vault, lost=lost)


@pytest.mark.usefixtures("no_slot_left")
async def test_a_lost_key_comes_back_from_shares(tmp_path: Path) -> None:
    shares = await filled(tmp_path)
    (tmp_path / "master.key").unlink()
    with pytest.raises(MasterKeyNotFoundError):
        await unseal(tmp_path)
    _, data = await root(tmp_path)
    with key_of(shares) as key:
        for _ in range(2):  # again: nothing happens
            await master_recovery.restore_key(key, data, provider_from_uri(master_in(tmp_path)))
    async with await unseal(tmp_path) as vault:
        assert await values(vault) == STORED


async def test_it_can_come_back_somewhere_else_and_the_vault_knows(tmp_path: Path) -> None:
    shares = await filled(tmp_path)
    (tmp_path / "master.key").unlink()
    _, data = await root(tmp_path)
    other = provider_from_uri(f"file:{tmp_path}/elsewhere.key")
    with key_of(shares) as key:
        await master_recovery.restore_key(key, data, other)
        async with await Vault.unseal(home_in(tmp_path), master=other) as vault:
            await master_recovery.note_provider(vault, other)
            await master_recovery.note_provider(vault, other)
    async with await unseal(tmp_path) as vault:  # as the vault itself says
        assert await values(vault) == STORED
        assert (await vault.store.keystore()).root_header.master.uri == other.uri


async def test_only_the_vaults_own_key_is_given_to_a_provider(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "other").mkdir()
    foreign = await filled(tmp_path / "other")
    (tmp_path / "master.key").unlink()
    _, data = await root(tmp_path)
    with (
        key_of(foreign) as key,
        pytest.raises(WrongMasterKeyError, match="Nothing"),
    ):
        await master_recovery.restore_key(key, data, provider_from_uri(master_in(tmp_path)))
    assert not (tmp_path / "master.key").exists()


async def test_a_passphrase_can_not_be_given_a_key(tmp_path: Path) -> None:
    shares = await filled(tmp_path)
    _, data = await root(tmp_path)
    with key_of(shares) as key, pytest.raises(MasterKeyReadOnlyError):
        await master_recovery.restore_key(key, data, provider_from_uri("passphrase:fd=9"))


@pytest.mark.usefixtures("no_slot_left")
async def test_a_lost_key_is_replaced_by_a_new_one(tmp_path: Path) -> None:
    shares = await filled(tmp_path)
    (tmp_path / "master.key").unlink()
    made = await reset(tmp_path, shares, master_in(tmp_path))
    assert made == master_recovery.Reset(1, 2)
    assert "v2 " in (tmp_path / "master.key").read_text()
    assert "v1 " not in (tmp_path / "master.key").read_text()
    async with await unseal(tmp_path) as vault:
        assert await values(vault) == STORED
        await vault.put("c", ApiKey("third"))
        now = vault.clock.time()
        await master_rotation.rotate_master(vault.store, replaces=2, now=now)
    async with await unseal(tmp_path) as vault:
        assert await values(vault) == {**STORED, "c": b"third"}
    with pytest.raises(WrongMasterKeyError):
        await reset(tmp_path, shares, master_in(tmp_path))


async def test_whether_a_provider_has_the_key(tmp_path: Path) -> None:
    await filled(tmp_path)
    header, _ = await root(tmp_path)
    assert await master_recovery.has_key(provider_from_uri(master_in(tmp_path)), header)
    other = tmp_path / "elsewhere.key"
    other.write_text("A" * 43 + "=\n")
    other.chmod(0o600)
    assert not await master_recovery.has_key(provider_from_uri(f"file:{other}"), header)
    assert not await master_recovery.has_key(provider_from_uri(f"file:{tmp_path}/no"), header)


# -- sealed ------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_slot_left")
async def test_a_sealed_key_is_of_one_vault_and_opens_with_one_key(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "other").mkdir()
    await filled(tmp_path / "other")
    header, _ = await root(tmp_path)
    foreign, _ = await root(tmp_path / "other")
    with SecretBytes.random(32) as private, SecretBytes.random(32) as stranger:
        async with await unseal(tmp_path) as vault:
            with await master_recovery.take_key(vault) as key:
                sealed = master_recovery.seal_package(
                    key, header=header, public=public_key(private)
                )
                with master_recovery.open_package(private, sealed, header=header) as back:
                    assert back.equals(key)
        with pytest.raises(DecryptionError):
            master_recovery.open_package(stranger, sealed, header=header)
        with pytest.raises(WrongMasterKeyError, match="another vault"):
            master_recovery.open_package(private, sealed, header=foreign)


# -- what the vault knows of it ----------------------------------------------------------


async def test_the_vault_says_whether_there_is_a_recovery(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with await unseal(tmp_path) as vault:
        document = master_recovery.recovery_document(vault.store)
        assert (await document.read()).lacks(1) == "none exists"
        made = Recovery(at=1.0, by="me", master_version=1, threshold=2, shares=3)
        await master_recovery.record(vault, made)
        assert "never tried" in (await document.read()).lacks(1)
        tried = Recovery(at=1.0, by="me", master_version=1, threshold=2, shares=3, tested=2.0)
        await master_recovery.record(vault, tried)
        state = await document.read()
        assert state == RecoveryState(made=(tried,))
        assert state.lacks(1) == ""
        assert "earlier master key" in state.lacks(2)


async def test_it_outlives_rotations_and_is_audited(tmp_path: Path) -> None:
    shares = await filled(tmp_path)
    async with await unseal(tmp_path) as vault:
        await master_recovery.record(
            vault,
            Recovery(at=1.0, by="me", master_version=1, threshold=2, shares=3, tested=1.0),
        )
        await kek_rotation.rotate_kek(vault.store, replaces=1, now=2.0)
        await master_rotation.rotate_master(vault.store, replaces=1, now=3.0)
        vault_id = vault.vault_id
    async with await unseal(tmp_path) as vault:
        state = await master_recovery.recovery_document(vault.store).read()
        assert state.made[0].master_version == 1
        assert state.lacks(2)
    events = list(read(home_in(tmp_path) / "security/audit", vault_id=vault_id))
    told = [event.action for event in events if event.kind == "recovery"]
    assert told == ["recovery export", "recovery export"]
    everything = b"".join(p.read_bytes() for p in home_in(tmp_path).rglob("*") if p.is_file())
    assert not any(share.encode() in everything for share in shares)


async def test_nothing_is_exported_in_a_lockdown(tmp_path: Path) -> None:
    await filled(tmp_path)
    async with await unseal(tmp_path) as vault:
        await vault.lockdown(reason="test")
        with pytest.raises(LockedDownError):
            await master_recovery.take_key(vault)


async def test_who_made_it_is_told() -> None:
    class Standing:
        clock = SystemClock()

    at, by = master_recovery.by_now(Standing())  # type: ignore[arg-type]
    assert at > 0
    assert by
