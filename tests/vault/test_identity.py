"""A home opens as the vault that it had; another one with the same master key is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apex_creds.admin import restore
from apex_creds.admin.backup import backup
from apex_creds.audit import read
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import ForeignVaultError, MasterKeyUnavailableError
from apex_creds.fs.home import audit_directory
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.key_file import FileProvider
from apex_creds.keys.os_keyring import KeyringProvider
from apex_creds.keys.passphrase import PassphraseProvider
from apex_creds.keys.provider import hold
from apex_creds.model import ApiKey, SystemClock
from apex_creds.vault import Vault
from apex_creds.vault.anchor import check_home, home_id
from tests.support.keyrings import Memory

pytestmark = pytest.mark.anyio

Find = Callable[[], MasterKeyProvider]


@pytest.fixture(params=["file", "keyring", pytest.param("passphrase", marks=pytest.mark.slow)])
def find(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Find:
    """Each kind of provider, which opens every vault that a test makes."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    if request.param == "file":
        return lambda: FileProvider(tmp_path / "master.key")
    backend = Memory()
    if request.param == "keyring":
        return lambda: KeyringProvider(backend)
    return lambda: PassphraseProvider(prompt=lambda _: "four words are few")


async def make(home: Path, provider: MasterKeyProvider, *, again: bool = False) -> str:
    again = again and isinstance(provider, FileProvider)
    made = await Vault.create(home, master=provider, use_existing_key=again)
    async with made as vault:
        await vault.put("x", ApiKey(home.name))
        return vault.vault_id


async def use(home: Path, provider: MasterKeyProvider, *, reason: str = "") -> list[str]:
    """Opens it; what the log says of the opening."""
    async with await Vault.unseal(home, master=provider, accept_rollback=reason) as vault:
        vault_id = vault.vault_id
    events = read(audit_directory(home), vault_id=vault_id)
    return [event.detail for event in events if event.kind == "unseal"]


def put_in_place_of(home: Path, other: Path) -> None:
    shutil.rmtree(home)
    shutil.copytree(other, home)


async def test_the_whole_home_of_another_vault_is_refused(tmp_path: Path, find: Find) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = await make(one, find())
    second = await make(two, find(), again=True)
    kept = Path(shutil.copytree(two, tmp_path / "kept"))
    put_in_place_of(two, one)
    with pytest.raises(ForeignVaultError, match=f"{first} now; before, it had '{second}'"):
        await use(two, find())
    put_in_place_of(two, kept)
    assert (await use(two, find()))[-1] == ""


async def test_a_person_may_want_another_vault_there(tmp_path: Path, find: Find) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    await make(one, find())
    await make(two, find(), again=True)
    put_in_place_of(two, one)
    with pytest.raises(ForeignVaultError, match="accept-rollback"):
        await use(two, find())
    assert "another vault was" in (await use(two, find(), reason="moved here"))[-1]
    assert (await use(two, find()))[-1] == ""


async def test_a_home_that_is_moved_or_copied_is_first_seen_there(
    tmp_path: Path, find: Find
) -> None:
    one = tmp_path / "one"
    await make(one, find())
    assert await use(one, find()) == [""]
    moved = one.rename(tmp_path / "moved")
    assert (await use(moved, find()))[-1].startswith("first opened in this directory")
    assert (await use(moved, find()))[-1] == ""
    copied = Path(shutil.copytree(moved, tmp_path / "copied"))
    assert (await use(copied, find()))[-1].startswith("first opened in this directory")


async def test_a_new_vault_may_be_made_where_one_was(tmp_path: Path, find: Find) -> None:
    home = tmp_path / "home"
    await make(home, find())
    shutil.rmtree(home)
    await make(home, find(), again=True)
    assert await use(home, find()) == [""]


async def test_a_backup_is_restored_where_another_vault_was(tmp_path: Path, find: Find) -> None:
    one, two, clock = tmp_path / "one", tmp_path / "two", SystemClock()
    await make(one, find())
    await make(two, find(), again=True)
    async with await Vault.unseal(one, master=find()) as vault:
        manifest = await backup(vault, tmp_path / "copy", provider=find())
    with restore.staged(tmp_path / "copy", two) as stage:
        await restore.check_copy(stage, provider=find(), clock=clock)
        restore.install(stage, two)
    await restore.record(two, manifest, provider=find(), reason="test", clock=clock)
    assert (await use(two, find()))[-1] == ""


async def test_a_link_to_a_home_is_that_home(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert home_id(tmp_path / "link" / "home") == home_id(tmp_path / "real" / "home")


def test_a_held_key_keeps_pins_where_its_provider_does(tmp_path: Path) -> None:
    behind = FileProvider(tmp_path / "k")
    with SecretBytes.random(32) as key:
        held = hold(behind, version=1, key=key)
        assert check_home(held, tmp_path / "home", "a" * 32)
        assert not check_home(behind, tmp_path / "home", "a" * 32)
        with pytest.raises(ForeignVaultError):
            check_home(held, tmp_path / "home", "b" * 32)
        held.delete_pin(home=home_id(tmp_path / "home"))
    assert behind.read_pin(home=home_id(tmp_path / "home")) is None


def test_a_provider_without_a_place_for_pins_pins_nothing(tmp_path: Path) -> None:
    class Bare:
        scheme = "bare"

    assert check_home(Bare(), tmp_path, "a" * 32) == ""  # type: ignore[arg-type]


def test_a_pin_that_can_not_be_kept_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FileProvider, *, home: str, text: str) -> None:
        raise MasterKeyUnavailableError("It can't be written.")

    monkeypatch.setattr(FileProvider, "write_pin", refuse)
    provider = FileProvider(tmp_path / "k")
    assert "could not be pinned" in check_home(provider, tmp_path / "home", "a" * 32)
