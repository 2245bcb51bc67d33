"""A home says where its vault is; one that says nothing has it in files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apex_creds.errors import CorruptDocumentError, InvalidInputError, UnsafePermissionsError
from apex_creds.storage import FileStorage
from apex_creds.storage.sql_storage import SqlStorage
from apex_creds.storage.storage_factory import (
    StoragePlace,
    configured,
    has_vault,
    remember,
    storage_for,
)

pytestmark = pytest.mark.anyio


def written(home: Path, text: str) -> Path:
    security = home / "security"
    security.mkdir(mode=0o700, parents=True)
    home.chmod(0o700)
    file = security / "config.json"
    file.write_text(text)
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(
    "text",
    ["", "{}", "not json", '{"storage": "file"}', '{"storage": null}', '{"audit": {}}', "[]"],
)
def test_a_home_that_names_no_database_has_files(tmp_path: Path, text: str) -> None:
    written(tmp_path / "home", text)
    assert configured(tmp_path / "home") is None
    assert isinstance(storage_for(tmp_path / "home"), FileStorage)


def test_a_home_that_is_not_there_has_files(tmp_path: Path) -> None:
    assert isinstance(storage_for(tmp_path / "none"), FileStorage)


@pytest.mark.parametrize(
    "text",
    [
        '{"storage": {}}',
        '{"storage": {"url": 1}}',
        '{"storage": {"url": "sqlite:////x", "password": "p"}}',
        '{"storage": {"url": "sqlite:////x", "staleness": -1}}',
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, text: str) -> None:
    written(tmp_path / "home", text)
    with pytest.raises(CorruptDocumentError):
        configured(tmp_path / "home")


def test_a_home_that_others_may_change_names_no_database(tmp_path: Path) -> None:
    written(tmp_path / "home", '{"storage": {"url": "sqlite:////x"}}').chmod(0o644)
    with pytest.raises(UnsafePermissionsError):
        configured(tmp_path / "home")


async def test_what_was_remembered_is_used(tmp_path: Path) -> None:
    home = tmp_path / "home"
    written(home, '{"audit": {"pseudonyms": true}}')
    tmp_path.chmod(0o700)
    place = StoragePlace(f"sqlite:///{tmp_path}/vault.db", space="ab" * 8, staleness=2.0)
    await remember(home, place)
    assert configured(home) == place
    said = json.loads((home / "security" / "config.json").read_text())
    assert said["audit"] == {"pseudonyms": True}
    storage = storage_for(home)
    assert isinstance(storage, SqlStorage)
    assert (storage.space, storage.staleness) == ("ab" * 8, 2.0)
    await storage.prepare()
    assert not await has_vault(home)
    await storage.write("keystore", b"1", expected=None)
    await storage.close()
    assert await has_vault(home)


async def test_what_can_not_be_read_is_not_overwritten(tmp_path: Path) -> None:
    file = written(tmp_path / "home", "not json")
    with pytest.raises(CorruptDocumentError):
        await remember(tmp_path / "home", StoragePlace("sqlite:////x"))
    assert file.read_text() == "not json"


async def test_a_home_with_files_has_a_vault_when_it_has_a_key_store(tmp_path: Path) -> None:
    files = FileStorage(tmp_path / "home")
    assert not await has_vault(tmp_path / "home")
    await files.prepare()
    await files.write("keystore", b"1", expected=None)
    await files.close()
    assert await has_vault(tmp_path / "home")


def test_a_url_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        storage_for(tmp_path, url="mysql://host/db")
