"""The managers over what older programs left: migrated, fallen back to, forgotten."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.compat import (
    ApiKeyManager,
    ApiKeyManagerError,
    EncryptionError,
    EnhancedApiKeyManager,
)
from apex_creds.vault import Vault
from tests.support import old

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def home(fresh_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("APEX_CREDS_MASTER", f"file:{tmp_path}/master.key")
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.fail.Keyring")
    monkeypatch.setenv(old.VARIABLE, old.ENV[old.VARIABLE])
    return fresh_home / ".apex_agent"


def test_the_old_constructor_moves_a_fernet_file(home: Path) -> None:
    path = old.fernet_file(home.parent)
    with EnhancedApiKeyManager() as manager:
        assert manager.get_api_key("openai") == "sk-1"
        assert manager.get_api_key("github") == "gh-1"
        assert manager.get_oauth_token("github") == old.TOKEN
        assert manager.list_configured_services() == {
            "api_keys": ["github", "openai"], "oauth_tokens": ["github", "google"],
        }  # fmt: skip
    assert not path.exists()


def test_the_old_constructor_moves_an_installation(home: Path) -> None:
    config = {"plugin_permissions": {"p": ["openai"]}, "x": {"data_encryption_keys": 45}}
    old.install(home, old.box_files(config=config))
    with EnhancedApiKeyManager() as manager:
        assert manager.get_api_key_secure("p", "openai") == "sk-1"
        assert manager.get_api_key_secure("p", "github") is None
        assert manager.get_oauth_token("github") == old.TOKEN
        status = manager.check_key_rotation_status()
        assert status["data_encryption_keys"]["rotation_interval_days"] == 45


def test_directories_elsewhere(home: Path, tmp_path: Path) -> None:
    files = old.box_files()
    for name, data in files.items():
        folder = "keys" if name.startswith("security") else "creds"
        old.write(tmp_path / folder / Path(name).name, data)
    (tmp_path / "keys").chmod(0o700)
    with EnhancedApiKeyManager(tmp_path / "keys", tmp_path / "creds") as manager:
        assert manager.get_api_key("openai") == "sk-1"
    assert (tmp_path / "keys/keystore.enc.bak").exists()
    assert (tmp_path / "creds/api_keys.enc.bak").exists()


def test_fallback_deletion_and_new_values_while_it_is_not_migrated(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APEX_CREDS_AUTO_MIGRATE", "off")
    path = old.fernet_file(home.parent)
    with EnhancedApiKeyManager() as manager:
        assert manager.get_api_key("openai") == "sk-1"
        assert manager.get_oauth_token("github") == old.TOKEN
        assert manager.list_configured_services()["oauth_tokens"] == ["github", "google"]
        manager.set_plugin_permissions("p", ["openai"])
        assert manager.get_api_key_secure("p", "openai") == "sk-1"
        assert manager.get_api_key_secure("q", "openai") is None
        assert manager.delete_credential("github", "all") is True
        assert manager.get_api_key("github") is None
        assert manager.get_oauth_token("github") is None
        manager.set_api_key("openai", "new")
        assert manager.get_api_key("openai") == "new"
    text = "".join(p.read_text() for p in (home / "security/audit").glob("*.jsonl"))
    assert text.count("legacy fallback") == 3
    monkeypatch.delenv("APEX_CREDS_AUTO_MIGRATE")
    with EnhancedApiKeyManager() as manager:
        assert manager.get_api_key("openai") == "new"
        assert manager.list_configured_services() == {
            "api_keys": ["openai"], "oauth_tokens": ["google"],
        }  # fmt: skip
    assert not path.exists()


def test_migrate_legacy_false_looks_at_nothing(home: Path) -> None:
    path = old.fernet_file(home.parent)
    with EnhancedApiKeyManager(migrate_legacy=False) as manager:
        assert manager.get_api_key("openai") is None
    assert path.exists()


def test_an_installation_that_does_not_open_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old.install(home, old.box_files())
    monkeypatch.setenv(old.VARIABLE, old.WRONG[old.VARIABLE])
    with pytest.raises(EncryptionError, match="does not open"):
        EnhancedApiKeyManager()
    assert (home / "security/keystore.enc").exists()


def test_the_interpreter_ends_although_nobody_closes(home: Path) -> None:
    import subprocess
    import sys

    code = (
        "from apex_creds.compat import ApiKeyManager\n"
        "m = ApiKeyManager(); m.set_api_key('a', 'k'); print(m.get_api_key('a'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        timeout=480,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"k\n", b"")
    with warnings.catch_warnings(), EnhancedApiKeyManager() as manager:
        assert manager.get_api_key("a") == "k"


@pytest.mark.parametrize("switched", ["on", "off"])
@pytest.mark.parametrize("make", [ApiKeyManager, EnhancedApiKeyManager])
def test_in_a_lockdown_no_manager_hands_out_what_an_old_file_has(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    switched: str,
    make: type[ApiKeyManager],
) -> None:
    monkeypatch.setenv("APEX_CREDS_AUTO_MIGRATE", switched)

    async def lock() -> None:
        async with await Vault.unseal(home) as vault:
            await vault.lockdown()

    with make() as before:
        old.fernet_file(home.parent)
        assert before.get_api_key("openai") == "sk-1"
        asyncio.run(lock())
        with make() as made_meanwhile:
            for manager in (before, made_meanwhile):
                with pytest.raises(ApiKeyManagerError, match="locked down"):
                    manager.get_api_key("openai")
                with pytest.raises(ApiKeyManagerError, match="locked down"):
                    manager.get_oauth_token("github")
