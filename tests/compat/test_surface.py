"""What callers of both builds' ``EnhancedApiKeyManager`` call, by the names that they use.

The signatures are those of ApexAgent's ``core/enhanced_api_key_manager``: of its present
source, and of the build that its tests are for.
"""

from __future__ import annotations

import base64
import enum
import inspect
import json
import os
from collections.abc import Iterator
from pathlib import Path

import nacl.secret
import pytest

from apex_creds import compat
from apex_creds.compat import ApiKeyMode, EnhancedApiKeyManager, ProviderType
from apex_creds.fs.home import audit_directory
from apex_creds.migration.legacy_readers import VARIABLE
from tests.support import old

PRESENT = {
    "get_api_key_mode": "",
    "set_api_key_mode": "mode",
    "add_user_api_key": "provider api_key name additional_config",
    "has_api_key": "provider",
    "list_user_api_keys": "",
    "remove_user_api_key": "key_id",
}
TESTED = {
    "set_api_key": "service_name api_key",
    "get_api_key": "service_name",
    "set_oauth_token": "service_name token_data",
    "get_oauth_token": "service_name",
    "delete_credential": "service_name credential_type",
    "list_configured_services": "",
    "rotate_master_key": "",
    "rotate_encryption_keys": "key_type",
    "check_key_rotation_status": "",
    "set_key_rotation_interval": "key_type interval_days",
    "enable_access_control": "enabled",
    "set_plugin_permissions": "plugin_id allowed_services",
    "check_plugin_permission": "plugin_id service_name",
    "get_plugin_permissions": "plugin_id",
    "audit_log": "plugin_id action service_name success",
    "get_api_key_secure": "plugin_id service_name",
    "get_oauth_token_secure": "plugin_id service_name",
}


class TheirProvider(enum.Enum):
    """The program's own, from a module that stays as it is."""

    OPENAI = "openai"


TheirMode = enum.Enum(  # of installation.common.config
    "ApiKeyMode", {"COMPLETE_SYSTEM": "complete_system", "USER_PROVIDED": "user_provided"}
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APEX_CREDS_MASTER", f"file:{tmp_path}/master.key")
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "user" / ".apex_agent"


@pytest.fixture
def manager(home: Path) -> Iterator[EnhancedApiKeyManager]:
    with make(home) as made:
        yield made


def make(home: Path, **more: object) -> EnhancedApiKeyManager:
    home.parent.mkdir(mode=0o700, exist_ok=True)
    return EnhancedApiKeyManager(
        config_dir=str(home / "security"), credentials_dir=str(home / "credentials"), **more
    )


@pytest.mark.parametrize(("method", "names"), [*PRESENT.items(), *TESTED.items()])
def test_names_of_arguments(method: str, names: str) -> None:
    found = inspect.signature(getattr(EnhancedApiKeyManager, method)).parameters
    assert list(found) == ["self", *names.split()]


def test_names_of_the_module() -> None:
    assert {"ProviderType", "ModelCategory", "ApiKeyMode", "StorageError"} <= set(
        compat.__all__
    )
    assert [p.value for p in ProviderType][:3] == ["openai", "anthropic", "google"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_settings_dialog_does(manager: EnhancedApiKeyManager) -> None:
    first = manager.add_user_api_key(provider=ProviderType.OPENAI, api_key="sk-1", name="Work")
    second = manager.add_user_api_key(
        TheirProvider.OPENAI, "sk-2", additional_config={"a": "b"}
    )
    listed = manager.list_user_api_keys()
    assert [(k["id"], k["provider_type"], k["name"], k["last_used"]) for k in listed] == [
        (first, "openai", "Work", None), (second, "openai", "openai API Key", None),
    ]  # fmt: skip
    assert "sk-" not in json.dumps(listed)
    assert all(isinstance(key["created_at"], float) for key in listed)
    assert manager.get_api_key(ProviderType.OPENAI) == "sk-1"
    assert manager.has_api_key(TheirProvider.OPENAI)
    assert not manager.has_api_key(ProviderType.COHERE)
    assert manager.remove_user_api_key(first)
    assert not manager.remove_user_api_key(first)
    assert manager.get_api_key("openai") == "sk-2"
    third = manager.add_user_api_key("openai", "sk-3")
    assert manager.get_api_key("openai") == "sk-2"
    assert [key["id"] for key in manager.list_user_api_keys()] == [second, third]


def test_the_mode_is_what_the_installation_says(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    with make(home, installation_config_dir=str(folder)) as manager:
        assert manager.get_api_key_mode() is ApiKeyMode.COMPLETE_SYSTEM
    folder.mkdir()
    path = folder / "installation.json"
    path.write_text(json.dumps({"api_key_mode": "user_provided", "mode": "standard"}))
    with make(home, installation_config_dir=str(folder)) as manager:
        found = manager.get_api_key_mode()
        assert found == TheirMode.USER_PROVIDED
        assert found == TheirMode.USER_PROVIDED
        assert found != TheirMode.COMPLETE_SYSTEM
        assert {TheirMode.USER_PROVIDED: "a title"}[found] == "a title"
        manager.set_api_key_mode(TheirMode.COMPLETE_SYSTEM)
        assert json.loads(path.read_text()) == {
            "api_key_mode": "complete_system", "mode": "standard",
        }  # fmt: skip
        with pytest.raises(ValueError, match="mode"):
            manager.set_api_key_mode("mode that is none")
    path.write_text("{")
    with make(home, installation_config_dir=str(folder)) as manager:
        assert manager.get_api_key_mode() is ApiKeyMode.COMPLETE_SYSTEM


def test_permissions_and_reports(manager: EnhancedApiKeyManager, home: Path) -> None:
    manager.set_api_key(service_name="openai", api_key="sk-1")
    assert manager.get_plugin_permissions("p") == []
    manager.set_plugin_permissions(
        plugin_id="p", allowed_services=[ProviderType.OPENAI, "later"]
    )
    assert manager.get_plugin_permissions("p") == ["later", "openai"]
    assert manager.check_plugin_permission(plugin_id="p", service_name="openai")
    manager.audit_log(plugin_id="p", action="get", service_name="openai", success=False)
    manager.close()
    lines = b"".join(p.read_bytes() for p in audit_directory(home).glob("*.jsonl"))
    assert b"compat.get" in lines
    assert b"reported by the program" in lines


def test_status_has_the_old_fields(manager: EnhancedApiKeyManager) -> None:
    manager.set_key_rotation_interval(key_type="master_key", interval_days=30)
    status = manager.check_key_rotation_status()["master_key"]
    assert status["rotation_interval_days"] == 30
    assert status["due_for_rotation"] is False
    assert isinstance(status["days_since_last_rotation"], float)


def test_attributes_that_held_secrets_are_refused_in_words(
    manager: EnhancedApiKeyManager, home: Path
) -> None:
    assert manager.config_dir == str(home / "security")
    assert manager.credentials_dir == str(home / "credentials")
    for name in ("master_key", "api_keys", "oauth_tokens", "data_encryption_keys", "config"):
        with pytest.raises(AttributeError, match=r"MIGRATING\.md"):
            getattr(manager, name)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_default_installation_goes_on_after_the_import_is_changed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the present source leaves it: several keys, names, home 0755, config.json 0644."""
    dek = old.deks("dek_api")["dek_api_v1"]

    def item(key: str, name: str) -> dict[str, object]:
        box = nacl.secret.SecretBox(dek).encrypt(key.encode())
        about = {"name": name, "additional_config": None}
        return {
            "id": os.urandom(8).hex(), "provider_type": "openai", "created_at": 1.7e9,
            "encrypted_key": base64.b64encode(box).decode(), "last_used": 1.7e9,
            "metadata": about,
        }  # fmt: skip

    used, spare = item("sk-used", "Work"), item("sk-spare", "Home")
    spare["id"], used["id"] = "0" * 16, "f" * 16
    config = {"version": "1.0.0", "access_control": {"plugin_permissions": {"p": ["openai"]}}}
    files = old.box_files({"keys": [old.PROXY, used, spare]}, {}, config=config)
    old.install_by_default(home, files)
    monkeypatch.setenv(VARIABLE, base64.b64encode(old.MASTER).decode())
    for _ in range(2):
        with make(home) as manager:
            assert manager.get_api_key(ProviderType.OPENAI) == "sk-used"
            names = {str(key["name"]) for key in manager.list_user_api_keys()}
            assert names == {"Work", "Home"}
            assert manager.get_api_key_secure("p", "openai") == "sk-used"
