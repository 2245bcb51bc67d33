"""A key file is read only when it is safe, and only ever changes as a whole."""

from __future__ import annotations

import asyncio
import base64
import errno
import fcntl
import gc
import os
import re
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex_creds.crypto.memory import arena
from apex_creds.errors import (
    ApexCredsError,
    MasterKeyExistsError,
    MasterKeyNotFoundError,
    MasterKeyReadOnlyError,
    MasterKeyUnavailableError,
    StorageFullError,
    StorageLockedError,
    StorageUncertainError,
    UnsafePathError,
    UnsafePermissionsError,
    WrongMasterKeyError,
)
from apex_creds.fs import private_files
from apex_creds.keys import key_file
from apex_creds.keys.head_anchor import AnchorFile
from apex_creds.keys.key_file import FileProvider
from apex_creds.testing.providers import OTHER_VAULT, VAULT, MasterKeyProviderContract
from tests.support.disks import as_root, mounted

pytestmark = pytest.mark.anyio
KEY = bytes(range(32))
TEXT = base64.b64encode(KEY).decode()
OTHER = base64.b64encode(bytes(32)).decode()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "master.key"


def put(path: Path, text: str | bytes, mode: int = 0o600) -> None:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(mode)


async def load(path: Path, version: int = 1) -> bytes:
    with await FileProvider(path).load(vault_id=VAULT, version=version, params={}) as key:
        return key.expose_bytes()


async def create(path: Path, version: int = 1) -> bytes:
    key, params = await FileProvider(path).create(vault_id=VAULT, version=version)
    assert params == {}
    with key:
        return key.expose_bytes()


async def discard(path: Path, version: int) -> None:
    await FileProvider(path).discard(vault_id=VAULT, version=version)


def listing(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if not p.name.endswith(".lock"))


class TestFileContract(MasterKeyProviderContract):
    per_vault = False

    @pytest.fixture
    def reopen(self, path):
        return lambda: FileProvider(path)


async def test_created_file_is_ours_alone_and_in_the_format(path):
    old = os.umask(0)
    try:
        key = await create(path)
    finally:
        os.umask(old)
    assert path.read_bytes() == b"v1 " + base64.b64encode(key) + b"\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert listing(path.parent) == ["master.key"]
    assert path.stat().st_nlink == 1


async def test_no_slot_stays_open(path):
    gc.collect()
    before = arena().open_slots
    await create(path)
    await create(path, 2)
    await load(path)
    await discard(path, 1)
    put(path, f"v1 {TEXT}\nv2 {TEXT}\nnoise\n")
    with pytest.raises(WrongMasterKeyError):
        await load(path)
    assert arena().open_slots == before


@pytest.mark.parametrize("text", [TEXT, TEXT + "\n", f"v1 {TEXT}", f"v1 {TEXT}\n"])
async def test_a_provisioned_key_is_read_and_adopted_but_never_taken_for_a_new_one(path, text):
    put(path, text, 0o400)
    assert await load(path) == KEY
    with pytest.raises(MasterKeyExistsError, match="already") as caught:
        await create(path)
    assert "--use-existing-key" in caught.value.hint
    key, params = await FileProvider(path).adopt(vault_id=VAULT, version=1)
    with key:
        assert key.equals(KEY)
    assert params == {"adopted": "yes"}
    assert path.read_text() == text


async def test_a_planted_version_is_not_used(path):
    """Whoever could once write the file may have put the next version there."""
    put(path, f"v1 {TEXT}\nv2 {OTHER}\n")
    with pytest.raises(MasterKeyExistsError):
        await create(path, 2)
    third = await create(path, 3)
    assert third not in (KEY, bytes(32))
    assert path.read_text().startswith(f"v1 {TEXT}\nv2 {OTHER}\nv3 ")


async def test_version_1_is_not_made_beside_the_keys_of_another_vault(path):
    put(path, f"v2 {TEXT}\n")
    with pytest.raises(MasterKeyExistsError):
        await create(path)


async def test_from_a_file_with_adopted_keys_nothing_is_deleted(path):
    """Neither by the vault that adopted them nor by the one that they are of."""
    first = await create(path)
    key, _ = await FileProvider(path).adopt(vault_id=OTHER_VAULT, version=1)
    key.close()
    await create(path, 2)
    await discard(path, 1)
    assert await load(path) == first


async def test_a_new_place_for_keys_is_shared_if_it_has_some(path):
    assert not await FileProvider(path).share(vault_id=VAULT)
    await create(path)
    await create(path, 2)
    assert await FileProvider(path).share(vault_id=OTHER_VAULT)
    await discard(path, 1)
    await load(path)


async def test_what_a_provider_made_for_nothing_it_takes_back(path):
    provider = FileProvider(path)
    (await provider.create(vault_id=VAULT, version=1))[0].close()
    await FileProvider(path).discard(vault_id=VAULT, version=1)
    await load(path)
    await provider.discard(vault_id=VAULT, version=1)
    assert listing(path.parent) == []


async def test_a_version_is_appended_to_a_bare_line(path):
    put(path, TEXT)
    second = await create(path, 2)
    assert path.read_text() == f"v1 {TEXT}\nv2 {base64.b64encode(second).decode()}\n"


@pytest.mark.parametrize(
    "text",
    ["", "\n", "\n" + TEXT, TEXT + "\n\n", TEXT + "\r\n", TEXT + " ", " " + TEXT, TEXT[:-1],
     f"v0 {TEXT}", f"v01 {TEXT}", f"v1  {TEXT}", f"v1\t{TEXT}", f"V1 {TEXT}", f"1 {TEXT}",
     f"v4294967296 {TEXT}", f"v-1 {TEXT}", f"v1 {TEXT}\nv1 {OTHER}", f"{TEXT}\n{OTHER}",
     f"{TEXT}\nv1 {OTHER}", f"v2 {TEXT}\nv1 {OTHER}", f"v1 {TEXT}\n# note", f"v\u0661 {TEXT}",
     "v1 ", "hunter2", b"\xff" * 44, KEY, b"\0" * 44, f"v1 {TEXT}\n" * 2000,
     "\n".join(f"v{n} {TEXT}" for n in range(1, 2000)), base64.b64encode(bytes(31))],
)  # fmt: skip
async def test_anything_else_is_refused_and_left_alone(path, text):
    put(path, text)
    before = path.read_bytes()
    for attempt in (load(path), create(path), create(path, 2), discard(path, 1)):
        with pytest.raises(WrongMasterKeyError) as caught:
            await attempt
        assert TEXT not in str(caught.value)
        assert "hunter2" not in str(caught.value)
    assert path.read_bytes() == before
    assert listing(path.parent) == ["master.key"]


@given(st.integers(0, 51), st.integers(0, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_one_changed_byte_gives_an_error_or_one_key(tmp_path, position, byte):
    path = tmp_path / "k"
    data = bytearray(f"v12 {TEXT}\n".encode())
    data[min(position, len(data) - 1)] = byte
    put(path, bytes(data))
    try:
        keys = key_file.read_keys(path)
    except WrongMasterKeyError:
        return
    assert len(keys) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o666, 0o440, 0o444])
async def test_open_permissions_are_refused_not_mended(path, mode):
    put(path, TEXT, mode)
    for attempt in (load(path), create(path), create(path, 2)):
        with pytest.raises(UnsafePermissionsError) as caught:
            await attempt
        assert f"chmod 600 {path}" in caught.value.hint
    assert path.stat().st_mode & 0o777 == mode


async def test_a_symbolic_link_is_refused(path, tmp_path):
    target = tmp_path / "target"
    put(target, TEXT)
    path.symlink_to(target)
    for attempt in (load(path), create(path), create(path, 2), discard(path, 1)):
        with pytest.raises(UnsafePathError):
            await attempt
    assert target.read_text() == TEXT


async def test_nothing_is_created_through_a_dangling_link(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError):
        await create(path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", [".master.key.new", ".master.key.lock"])
async def test_links_in_place_of_our_own_files_are_not_followed(path, tmp_path, name):
    victim = tmp_path / "victim"
    put(victim, "precious")
    (tmp_path / name).symlink_to(victim)
    try:
        await create(path)
    except ApexCredsError:
        assert not path.exists()
    assert victim.read_text() == "precious"


@as_root
async def test_a_foreign_owner_is_refused(path):
    put(path, TEXT)
    os.chown(path, 12345, 12345)
    for attempt in (load(path), create(path), create(path, 2)):
        with pytest.raises(UnsafePathError):
            await attempt


async def test_a_fifo_does_not_hang(path):
    os.mkfifo(path, 0o600)
    with pytest.raises(UnsafePathError):
        await load(path)


async def test_a_directory_is_refused(path):
    path.mkdir(mode=0o700)
    with pytest.raises(UnsafePathError):
        await load(path)


async def test_a_file_its_owner_closed_to_writing_is_read_only(path):
    put(path, TEXT, 0o400)
    with pytest.raises(MasterKeyReadOnlyError):
        await create(path, 2)
    assert path.read_text() == TEXT


async def test_a_read_only_file_keeps_its_old_version(path):
    put(path, f"v1 {TEXT}\nv2 {OTHER}\n", 0o400)
    with pytest.raises(MasterKeyReadOnlyError):
        await discard(path, 1)
    assert await load(path) == KEY


async def test_a_missing_directory_is_said(tmp_path):
    path = tmp_path / "no" / "master.key"
    with pytest.raises(MasterKeyNotFoundError):
        await load(path)
    with pytest.raises(MasterKeyUnavailableError, match="mkdir"):
        await create(path)
    assert not path.parent.exists()


async def test_the_newest_version_is_never_deleted(path):
    """A lost race for init, or for a rotation, must not take the winner's key."""
    first = await create(path)
    await FileProvider(path).discard(vault_id=OTHER_VAULT, version=1)
    assert await load(path) == first
    second = await create(path, 2)
    await discard(path, 2)
    assert await load(path, 2) == second


async def test_a_discarded_key_is_overwritten_on_disk(path, tmp_path):
    key = await create(path)
    await create(path, 2)
    fd = os.open(path, os.O_RDONLY)
    await discard(path, 1)
    assert not os.pread(fd, 1000, 0).strip(b"\0")
    os.close(fd)
    assert base64.b64encode(key) not in path.read_bytes()


async def test_a_reader_of_the_shredded_file_reads_the_new_one(path, monkeypatch):
    await create(path)
    second = await create(path, 2)
    real = key_file._read_all

    def slow(where, fd):
        monkeypatch.setattr(key_file, "_read_all", real)
        key_file.read_keys(where)
        asyncio.run(discard(where, 1))  # between this reader's open and its read
        return real(where, fd)

    monkeypatch.setattr(key_file, "_read_all", slow)
    assert await load(path, 2) == second


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
async def test_a_failed_write_changes_nothing(path, monkeypatch, call, number):
    first = await create(path)
    before = path.read_bytes()
    real = getattr(os, call)

    def failing(*args, **kwargs):
        if call == "open" and not str(args[0]).endswith(".tmp"):
            return real(*args, **kwargs)
        raise OSError(number, "injected")

    monkeypatch.setattr(key_file.os, call, failing)
    with pytest.raises(ApexCredsError) as caught:
        await create(path, 2)
    monkeypatch.undo()
    expected = {errno.ENOSPC: StorageFullError, errno.EROFS: MasterKeyReadOnlyError}
    assert isinstance(caught.value, expected.get(number, MasterKeyUnavailableError))
    assert path.read_bytes() == before
    assert listing(path.parent) == ["master.key"]
    assert await load(path) == first


EARLIER, OURS = ".master.key.new", f".master.key.{'a' * 16}.tmp"


@pytest.mark.parametrize("name", [EARLIER, OURS])
@pytest.mark.parametrize("then", [load, create, lambda path: create(path, 2)])
async def test_keys_that_a_killed_writer_left_are_erased_by_whoever_comes_next(
    path, tmp_path, name, then
):
    if then is not create:
        await create(path)
    put(tmp_path / name, f"v1 {TEXT}\nv2 {TEXT}\n")
    left = os.open(tmp_path / name, os.O_RDONLY)
    await then(path)
    assert listing(tmp_path) == ["master.key"]
    assert set(os.pread(left, 200, 0)) == {0}
    os.close(left)


async def test_keys_that_another_process_is_writing_are_left_alone(path, tmp_path):
    import filelock

    await create(path)
    put(tmp_path / EARLIER, "half a ke")
    put(tmp_path / OURS, "half a ke")
    with (
        filelock.FileLock(tmp_path / ".master.key.lock"),
        (tmp_path / OURS).open() as writing,
    ):
        fcntl.flock(writing, fcntl.LOCK_EX)
        await load(path)
        assert (tmp_path / EARLIER).exists()
        assert (tmp_path / OURS).exists()


@pytest.mark.parametrize("call", ["create", "discard"])
async def test_a_disk_that_fails_after_the_change_makes_it_uncertain(path, monkeypatch, call):
    first = await create(path)
    second = await create(path, 2) if call == "discard" else None
    real = os.fsync

    def failing(fd):
        real(fd)
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageUncertainError, match="was changed"):
        await (create(path, 2) if call == "create" else discard(path, 1))
    monkeypatch.undo()
    assert await load(path, 2) == (second or await load(path, 2))
    if call == "create":
        assert await load(path) == first
    assert listing(path.parent) == ["master.key"]


async def test_an_anchor_goes_elsewhere_only_where_the_keys_are_read_only(path, monkeypatch):
    """One beside the keys is read first: what is newer must not hide behind it."""
    provider = FileProvider(path)
    refuse = partial(_raise, OSError(errno.EROFS, "injected"))
    monkeypatch.setattr(AnchorFile, "write", staticmethod(refuse))
    with pytest.raises(MasterKeyUnavailableError, match="anchors"):  # there neither
        provider.write_anchor(vault_id=VAULT, text="text")
    monkeypatch.undo()
    provider.write_anchor(vault_id=VAULT, text="old")
    for number in (errno.EROFS, errno.ENOSPC, errno.EIO):
        fail = partial(_raise, OSError(number, "injected"))
        monkeypatch.setattr(private_files.os, "replace", fail)
        with pytest.raises(MasterKeyUnavailableError, match=re.escape(str(path))):
            provider.write_anchor(vault_id=VAULT, text="new")
        monkeypatch.undo()
        assert provider.read_anchor(vault_id=VAULT) == "old"


def _raise(error, *_):
    raise error


async def test_a_lock_that_is_held_is_said(path, monkeypatch, tmp_path):
    import filelock

    monkeypatch.setattr(key_file, "_LOCK_SECONDS", 0.05)
    with filelock.FileLock(tmp_path / ".master.key.lock"), pytest.raises(StorageLockedError):
        await create(path)
    assert not path.exists()


async def test_a_file_system_without_hard_links(path, monkeypatch):
    def link(*_args, **_kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(key_file.os, "link", link)
    assert await create(path) == await load(path)
    assert listing(path.parent) == ["master.key"]


def test_of_processes_that_race_one_makes_each_version(path):
    program = (
        "import sys, asyncio\n"
        "from apex_creds.errors import MasterKeyExistsError\n"
        "from apex_creds.keys.key_file import FileProvider\n"
        "async def main():\n"
        "    for version in (1, 2, 3):\n"
        "        p = FileProvider(sys.argv[1])\n"
        "        try:\n"
        "            key, _ = await p.create(vault_id='a', version=version)\n"
        "            print(key.expose_bytes().hex())\n"
        "        except MasterKeyExistsError:\n"
        "            pass\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [line for run in runs for line in run.communicate(timeout=480)[0].splitlines()]
    assert [run.returncode for run in runs] == [0, 0, 0, 0]
    stored = [line.split()[1] for line in path.read_text().splitlines()]
    assert sorted(base64.b64decode(s).hex() for s in stored) == sorted(outputs)
    assert len(stored) == 3


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own; ``disk("ro")`` remounts it."""
    with mounted(tmp_path / "disk", "size=64k") as mount:
        yield tmp_path / "disk", mount


@as_root
@pytest.mark.faults
async def test_a_read_only_disk_is_read_and_not_written(disk):
    place, mount = disk
    path = place / "master.key"
    with pytest.raises(MasterKeyNotFoundError):
        await load(path)
    put(path, f"v1 {TEXT}\nv2 {OTHER}\n")
    assert mount("remount", "ro")
    assert await load(path) == KEY
    key, params = await FileProvider(path).adopt(vault_id=VAULT, version=1)
    key.close()
    assert params
    for attempt in (create(path, 3), discard(path, 1), create(place / "new.key")):
        with pytest.raises(MasterKeyReadOnlyError):
            await attempt
    assert [p.name for p in place.iterdir()] == ["master.key"]


@as_root
@pytest.mark.faults
async def test_a_full_disk_keeps_the_old_file(disk):
    place, _ = disk
    path = place / "master.key"
    first = await create(path)
    filler = place / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 20))
    with pytest.raises(StorageFullError):
        await create(path, 2)
    assert listing(place) == ["filler", "master.key"]
    filler.unlink()
    assert await load(path) == first
    await create(path, 2)
