"""Look-ups that miss fall back to what is not migrated yet, and are in the log as such."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex_creds.errors import CredentialNotFoundError, LockedDownError
from apex_creds.migration import Fallback, Options, migrate
from apex_creds.model import ApiKey, CredentialKind
from apex_creds.vault import Vault
from tests.support import old

pytestmark = pytest.mark.anyio


async def looked_up(fallback: Fallback, name: str, part: str = "") -> str:
    async with fallback.open(name, action="test") as opened:
        return bytes(opened.view(part)).decode()


async def test_the_vault_comes_first_then_the_old_file(vault: Vault, place: Path) -> None:
    old.fernet_file(place)
    await vault.put("openai", ApiKey("new"))
    fallback = Fallback(vault, environ=old.ENV)
    assert await looked_up(fallback, "openai") == "new"
    assert await looked_up(fallback, "github") == "gh-1"
    assert await looked_up(fallback, "github/oauth_token", "refresh") == "rt-1"
    with pytest.raises(CredentialNotFoundError):
        await looked_up(fallback, "absent")
    assert await fallback.find("github", kind=CredentialKind.OAUTH_TOKEN) is None
    await vault.close()
    text = b"".join(p.read_bytes() for p in (vault.home / "security/audit").glob("*.jsonl"))
    assert text.count(b"legacy fallback") == 2
    assert b"gh-1" not in text


async def test_only_while_it_is_not_finished(vault: Vault, place: Path) -> None:
    path = old.fernet_file(place, {"api_keys": {"a": "1", "bad": 7}})
    fallback = Fallback(vault, environ=old.ENV)
    await migrate(vault, environ=old.ENV)
    await vault.delete("a")
    with pytest.raises(CredentialNotFoundError):  # deleted on purpose
        await looked_up(fallback, "a")
    await migrate(vault, options=Options(accept_partial=True), environ=old.ENV)
    assert not path.exists()
    assert await fallback.entries() == ()


async def test_what_is_forgotten_is_neither_read_nor_migrated(
    vault: Vault, place: Path
) -> None:
    old.fernet_file(place)
    fallback = Fallback(vault, environ=old.ENV)
    found = await fallback.find("openai")
    assert found is not None
    await fallback.forget(found)
    assert await fallback.find("openai") is None
    assert (await migrate(vault, environ=old.ENV)).complete
    assert sorted(await old.secrets(vault)) == ["github", "github/oauth_token", "google"]


async def test_without_the_key_a_look_up_just_misses(vault: Vault, place: Path) -> None:
    old.fernet_file(place)
    with pytest.raises(CredentialNotFoundError):
        await looked_up(Fallback(vault, environ=old.WRONG), "openai")


async def test_in_a_lockdown_nothing_comes_out_of_an_old_file(
    vault: Vault, place: Path
) -> None:
    old.fernet_file(place)
    fallback = Fallback(vault, environ=old.ENV)
    found = await fallback.find("github")
    assert found is not None
    await vault.lockdown()
    with pytest.raises(LockedDownError):
        await looked_up(fallback, "openai")
    with pytest.raises(LockedDownError):
        await fallback.release(found, action="test")
    assert await fallback.adopt(["openai"]) is False
    text = b"".join(p.read_bytes() for p in (vault.home / "security/audit").glob("*.jsonl"))
    assert b"legacy fallback" not in text
    await vault.unlock()
    assert await looked_up(fallback, "openai") == "sk-1"
    assert await fallback.adopt(["github"]) is True
