"""Providers that are given a key that exists, and one with a key at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    MasterKeyNotFoundError,
    UnsafePermissionsError,
    WrongMasterKeyError,
)
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.head_anchor import AnchorStore
from apex_creds.keys.key_file import FileProvider
from apex_creds.keys.os_keyring import KeyringProvider
from apex_creds.keys.provider import MasterKeyReceiver, hold
from tests.support.keyrings import Memory

pytestmark = pytest.mark.anyio

VAULT = "ab" * 16


@pytest.fixture(params=["file", "keyring"])
def provider(request: pytest.FixtureRequest, tmp_path: Path) -> MasterKeyProvider:
    if request.param == "file":
        return FileProvider(tmp_path / "master.key")
    return KeyringProvider(Memory())


async def loaded(provider: MasterKeyProvider, version: int) -> bytes:
    with await provider.load(vault_id=VAULT, version=version, params={}) as key:
        return key.expose_bytes()


async def test_what_was_received_is_loaded(provider: MasterKeyProvider) -> None:
    assert isinstance(provider, MasterKeyReceiver)
    with SecretBytes.random(32) as key:
        await provider.receive(vault_id=VAULT, version=3, key=key)
        await provider.receive(vault_id=VAULT, version=3, key=key)  # again: nothing happens
        assert await loaded(provider, 3) == key.expose_bytes()
        await provider.receive(vault_id=VAULT, version=1, key=key)
        assert await loaded(provider, 1) == await loaded(provider, 3)


async def test_another_key_is_never_overwritten(provider: MasterKeyProvider) -> None:
    assert isinstance(provider, MasterKeyReceiver)
    made, _ = await provider.create(vault_id=VAULT, version=1)
    with made, SecretBytes.random(32) as key:
        with pytest.raises(WrongMasterKeyError, match="left alone"):
            await provider.receive(vault_id=VAULT, version=1, key=key)
        assert await loaded(provider, 1) == made.expose_bytes()


async def test_a_file_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "master.key"
    path.write_text("")
    path.chmod(0o644)
    with SecretBytes.random(32) as key, pytest.raises(UnsafePermissionsError):
        await FileProvider(path).receive(vault_id=VAULT, version=1, key=key)
    assert path.read_text() == ""


async def test_a_key_at_hand_comes_first_and_is_stored_nowhere(tmp_path: Path) -> None:
    behind = FileProvider(tmp_path / "master.key")
    with SecretBytes.random(32) as key:
        held = hold(behind, version=1, key=key)
        assert held.uri == behind.uri
        assert isinstance(held, AnchorStore)
        assert await loaded(held, 1) == key.expose_bytes()
        with pytest.raises(MasterKeyNotFoundError):
            await loaded(held, 2)
        assert not list(tmp_path.iterdir())
        made, _ = await held.create(vault_id=VAULT, version=2)
        made.close()
        assert await loaded(held, 2) == await loaded(behind, 2)
        held.write_anchor(vault_id=VAULT, text="anchor")
        assert behind.read_anchor(vault_id=VAULT) == held.read_anchor(vault_id=VAULT)
    with pytest.raises(MasterKeyNotFoundError):
        await loaded(held, 1)  # no longer at hand
