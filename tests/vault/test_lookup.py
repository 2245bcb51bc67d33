"""What is known of a credential is found in one step, and only while nothing has changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from apex_creds.documents.store import DocumentStore
from apex_creds.errors import VaultSealedError
from apex_creds.model import ApiKey
from apex_creds.storage import file_storage
from apex_creds.vault import Vault

pytestmark = pytest.mark.anyio


async def made(tmp_path: Path) -> tuple[Vault, Path]:
    home = tmp_path / "home"
    vault = await Vault.create(home, master=f"file:{tmp_path / 'key'}")
    await vault.put("key", ApiKey("sk-1"))
    return vault, home


async def test_it_is_the_same_object_until_something_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, _ = await made(tmp_path)
    async with vault:
        first = vault.facts_now("key")
        assert first is not None
        with monkeypatch.context() as patch:
            patch.setattr(DocumentStore, "keystore_now", None)
            assert vault.facts_now("key") is first, "in one step"
        await vault.grant("demo", "key")
        second = vault.facts_now("key")
        assert second is not None
        assert second.grants.find("demo", "key") is not None
        await vault.put("key", ApiKey("sk-2"))
        third = vault.facts_now("key")
        assert third is not None
        assert third.record is not None
        assert third.record.info.version == 2


async def test_a_write_of_another_vault_object_is_seen_at_once(tmp_path: Path) -> None:
    vault, home = await made(tmp_path)
    async with vault, await Vault.unseal(home, master=f"file:{tmp_path / 'key'}") as other:
        assert vault.facts_now("key") is not None
        await other.delete("key")
        assert vault.facts_now("key") is None, "memory is not current"
        assert (await vault.facts("key")).record is None


async def test_a_closed_vault_knows_nothing(tmp_path: Path) -> None:
    vault, _ = await made(tmp_path)
    async with vault:
        assert vault.facts_now("key") is not None
    with pytest.raises(VaultSealedError):
        vault.facts_now("key")


async def test_a_file_that_was_replaced_by_hand_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault, home = await made(tmp_path)
    async with vault:
        document = home / "credentials" / "api_keys.enc"
        old = tmp_path / "old"
        shutil.copy2(document, old)
        await vault.put("other", ApiKey("sk-2"))
        assert vault.facts_now("key") is not None
        later = file_storage._monotonic() + 0.2
        document.unlink()
        shutil.copy2(old, document)
        monkeypatch.setattr(file_storage, "_monotonic", lambda: later)
        assert vault.facts_now("key") is None
