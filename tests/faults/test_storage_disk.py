"""The file storage on disks that fail, and with other processes at work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.errors import (
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    UnsafePathError,
)
from apex_creds.storage import FileStorage
from tests.faults.scenarios.storage import NAME
from tests.support.disks import as_root, mounted

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534

pytestmark = [pytest.mark.anyio, pytest.mark.faults]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB and few inodes."""
    with mounted(tmp_path / "disk", "size=256k", "nr_inodes=32"):
        yield tmp_path / "disk"


@as_root
async def test_a_full_disk_keeps_the_old_version(small_disk: Path) -> None:
    storage = FileStorage(small_disk / "home")
    await storage.prepare()
    token = (await storage.write(NAME, b"old" * 1000, expected=None)).token
    with pytest.raises(StorageFullError, match="Free some space"):
        await storage.write(NAME, b"n" * 1_000_000, expected=token, shred=True)
    stored = await storage.read(NAME)
    assert stored is not None
    assert (stored.data, stored.token) == (b"old" * 1000, token)
    assert os.listdir(small_disk / "home/credentials") == [f"{NAME}.enc"]
    await storage.write(NAME, b"there is room for this", expected=token)
    await storage.close()


@as_root
async def test_a_disk_without_inodes_keeps_the_old_version(small_disk: Path) -> None:
    storage = FileStorage(small_disk / "home")
    await storage.prepare()
    token = (await storage.write(NAME, b"old", expected=None)).token
    fill(small_disk)
    with pytest.raises(StorageFullError):
        await storage.write(NAME, b"new", expected=token)
    stored = await storage.read(NAME)
    assert stored is not None
    assert stored.data == b"old"
    await storage.close()


@as_root
async def test_a_full_disk_can_not_be_prepared(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(StorageFullError):
        await FileStorage(small_disk / "home").prepare()


@as_root
async def test_a_read_only_disk_reads_and_says_so(small_disk: Path) -> None:
    storage = FileStorage(small_disk / "home")
    await storage.prepare()
    token = (await storage.write(NAME, b"old", expected=None)).token
    await storage.close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    storage = FileStorage(small_disk / "home")
    stored = await storage.read(NAME)
    assert stored is not None
    assert stored.data == b"old"
    with pytest.raises(StorageReadOnlyError):
        await storage.write(NAME, b"new", expected=token)
    with pytest.raises(StorageReadOnlyError):
        await storage.delete(NAME, expected=token)
    with pytest.raises(StorageReadOnlyError):
        await FileStorage(small_disk / "another").prepare()
    await storage.close()


@as_root
async def test_tmpfs_is_not_said_to_be_overwritten(small_disk: Path) -> None:
    storage = FileStorage(small_disk / "home")
    await storage.prepare()
    token = (await storage.write(NAME, b"old", expected=None)).token
    result = await storage.write(NAME, b"new", expected=token, shred=True)
    assert result.shredded == "unverifiable"
    await storage.close()


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A home for an unprivileged user, and this process as that user."""
    where = Path(tempfile.mkdtemp())
    os.chown(where, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield where / "home"
    finally:
        os.seteuid(0)
        shutil.rmtree(where)


@as_root
async def test_a_read_only_folder_changes_nothing(nobody: Path) -> None:
    storage = FileStorage(nobody)
    await storage.prepare()
    token = (await storage.write(NAME, b"old", expected=None)).token
    (nobody / "credentials").chmod(0o500)
    with pytest.raises(StorageReadOnlyError):
        await storage.write(NAME, b"new", expected=token)
    with pytest.raises(StorageReadOnlyError):
        await storage.delete(NAME, expected=token)
    stored = await storage.read(NAME)
    assert stored is not None
    assert stored.data == b"old"
    await storage.close()
    (nobody / "credentials").chmod(0o700)


@as_root
async def test_what_only_root_owns_is_foreign(nobody: Path) -> None:
    storage = FileStorage(nobody)
    await storage.prepare()
    await storage.write(NAME, b"old", expected=None)
    os.seteuid(0)
    with pytest.raises(UnsafePathError, match=str(NOBODY)):
        await storage.read(NAME)  # root is no exception: it is not root's vault
    os.seteuid(NOBODY)
    await storage.close()


@as_root
async def test_an_unreadable_file_is_an_error_not_an_empty_start(nobody: Path) -> None:
    storage = FileStorage(nobody)
    await storage.prepare()
    await storage.write(NAME, b"old", expected=None)
    path = nobody / f"credentials/{NAME}.enc"
    path.chmod(0)
    with pytest.raises(StorageError, match="can't be read"):
        await storage.read(NAME)
    await storage.close()


@as_root
async def test_a_read_only_file_is_replaced_but_not_said_to_be_overwritten(
    nobody: Path,
) -> None:
    storage = FileStorage(nobody)
    await storage.prepare()
    await storage.write(NAME, b"old", expected=None)
    (nobody / f"credentials/{NAME}.enc").chmod(0o400)
    token = storage.change_token(NAME)
    result = await storage.write(NAME, b"new", expected=token, shred=True)
    assert result.shredded == "unverifiable"
    await storage.close()


async def test_four_processes_lose_no_update(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "home")
    await storage.prepare()
    await storage.write(NAME, b"0", expected=None)
    workers = [start("increment", tmp_path / "home", 25) for _ in range(4)]
    for worker in workers:
        assert worker.wait(120) == 0
    stored = await storage.read(NAME)
    assert stored is not None
    assert stored.data == b"100"
    await storage.close()


async def test_a_reader_never_sees_half_a_version_nor_a_shredded_one(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "home")
    await storage.prepare()
    await storage.write(NAME, b"A" * 300_000, expected=None)
    worker = start("churn", tmp_path / "home", 60)
    seen = set()
    while worker.poll() is None:
        stored = await storage.read(NAME)
        assert stored is not None
        assert len(stored.data) == 300_000
        assert stored.data == stored.data[:1] * 300_000
        seen.add(stored.data[:1])
    assert worker.returncode == 0
    assert len(seen) > 1
    assert b"\0" not in seen
    await storage.close()


def start(function: str, home: Path, times: int) -> subprocess.Popen[bytes]:
    code = (
        f"from tests.faults.scenarios.storage import {function} as f; f({str(home)!r}, {times})"
    )
    return subprocess.Popen([sys.executable, "-B", "-W", "error", "-c", code], cwd=REPOSITORY)


def fill(where: Path) -> None:
    """Takes every inode."""
    for number in range(100):
        try:
            (where / f"filler{number}").touch()
        except OSError:
            return
