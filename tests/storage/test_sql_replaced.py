"""An SQLite file that is removed, replaced or put where others can reach it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from apex_creds.errors import (
    StorageError,
    StorageStaleError,
    StorageUncertainError,
    UnsafePathError,
    UnsafePermissionsError,
)
from apex_creds.storage import sqlite
from apex_creds.storage.sql_schema import RowWrite
from apex_creds.storage.sql_storage import SqlStorage

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path / "vault.db"


@pytest.fixture
async def storage(path: Path) -> AsyncIterator[SqlStorage]:
    made = SqlStorage(f"sqlite:///{path}")
    await made.prepare()
    yield made
    await made.close()


def copy(path: Path) -> Path:
    """The database as it is now, in a file of its own."""
    to = path.with_name("copy.db")
    with sqlite3.connect(path) as there, sqlite3.connect(to) as here:
        there.backup(here)
    there.close()
    here.close()
    to.chmod(0o600)
    return to


def remove(path: Path) -> None:
    for beside in path.parent.glob(f"{path.name}*"):
        if beside.is_file():
            beside.unlink()


async def test_of_a_file_that_was_removed_nothing_is_current(
    storage: SqlStorage, path: Path
) -> None:
    token = (await storage.write("a", b"1", expected=None)).token
    assert storage.change_token("a") == token
    remove(path)
    assert storage.change_token("a") is None
    with pytest.raises(StorageStaleError):
        await storage.refresh()
    with pytest.raises(StorageError):
        await storage.read("a")
    with pytest.raises(StorageError):
        await storage.write("a", b"2", expected=token)
    with pytest.raises(StorageError):
        await storage.append_lines("node", [b"x"], first=0)
    assert not path.exists()


async def test_what_took_the_place_of_the_file_is_what_is_seen(
    storage: SqlStorage, path: Path
) -> None:
    old = (await storage.write("a", b"old", expected=None)).token
    older = copy(path)
    new = (await storage.write("a", b"new", expected=old)).token
    await storage.write("b", b"later", expected=None)
    assert storage.change_token("a") == new
    changes = storage.change_count()
    remove(path)
    os.replace(older, path)
    assert storage.change_token("a") == old
    assert storage.change_token("b") is None
    assert storage.change_count() > changes
    stored = await storage.read("a")
    assert stored is not None
    assert stored.data == b"old"
    again = SqlStorage(f"sqlite:///{path}")
    token = (await storage.write("a", b"here", expected=old)).token
    stored = await again.read("a")
    await again.close()
    assert stored is not None
    assert (stored.data, stored.token) == (b"here", token)


async def test_a_key_store_whose_row_is_passed_off_as_unchanged_is_seen(
    storage: SqlStorage, path: Path
) -> None:
    await storage.write("keystore", b"1", expected=None)
    old = storage.change_token("keystore")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE apex_documents SET version = 7, changed = 0")
    connection.close()
    assert storage.change_token("keystore") not in (old, None)


async def test_what_is_no_database_leaves_nothing_current(
    storage: SqlStorage, path: Path
) -> None:
    await storage.write("a", b"1", expected=None)
    remove(path)
    path.touch(mode=0o600)
    path.write_bytes(b"this is no database" * 100)
    assert storage.change_token("a") is None
    with pytest.raises(StorageError):
        await storage.read("a")


async def test_a_write_during_which_the_file_went_is_not_acknowledged(
    storage: SqlStorage, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await storage.write("a", b"1", expected=None)).token
    apply = sqlite._apply

    def then_removed(
        connection: sqlite3.Connection, space: str, writes: Sequence[RowWrite]
    ) -> None:
        apply(connection, space, writes)
        remove(path)

    monkeypatch.setattr(sqlite, "_apply", then_removed)
    with pytest.raises(StorageUncertainError):
        await storage.write("a", b"2", expected=token)


async def test_a_directory_in_which_others_can_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    storage = SqlStorage(f"sqlite:///{folder}/vault.db")
    with pytest.raises(UnsafePermissionsError, match="replace") as caught:
        await storage.prepare()
    assert "chmod 700" in (caught.value.hint or "")
    await storage.close()


@pytest.mark.parametrize("ending", ["-wal", "-shm", "-journal"])
async def test_what_others_put_beside_the_file_is_refused(path: Path, ending: str) -> None:
    refused: Sequence[tuple[str, type[StorageError]]] = (
        ("link", UnsafePathError),
        ("open", UnsafePermissionsError),
    )
    beside = path.with_name(path.name + ending)
    victim = path.with_name("victim")
    victim.write_bytes(b"precious")
    for how, error in refused:
        beside.symlink_to(victim) if how == "link" else beside.touch()
        if how == "open":
            beside.chmod(0o666)
        storage = SqlStorage(f"sqlite:///{path}")
        with pytest.raises(error):
            await storage.prepare()
        await storage.close()
        beside.unlink()
    assert victim.read_bytes() == b"precious"
