"""The file storage refuses what others may have touched, and changes nothing by refusing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import threading
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
from anyio import to_thread

from apex_creds.errors import (
    ConflictError,
    StorageError,
    StorageLockedError,
    StorageUncertainError,
    UnsafePathError,
    UnsafePermissionsError,
)
from apex_creds.fs import private_files
from apex_creds.storage import FileStorage
from apex_creds.storage import base as storage_base
from tests.support.loops import WITHIN

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.name != "posix", reason="owners, modes and links of POSIX"),
]
as_root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root")

FILES = {
    "keystore": "security/keystore.enc",
    "config": "security/config.json",
    "api_keys": "credentials/api_keys.enc",
}
FOLDERS = ("", "security", "credentials")


@pytest.fixture
async def home(tmp_path: Path) -> Path:
    """A home with a document of each sort."""
    storage = FileStorage(tmp_path / "home")
    await storage.prepare()
    for name in FILES:
        await storage.write(name, name.encode(), expected=None)
    await storage.close()
    return tmp_path / "home"


# -- layout --------------------------------------------------------------------------


async def test_documents_lie_where_apexagent_expects_them(home: Path) -> None:
    for name, file in FILES.items():
        assert (home / file).read_bytes() == name.encode()


async def test_everything_is_closed_to_others(home: Path) -> None:
    for path in [home, *home.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


async def test_it_is_closed_from_the_first_instant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    real = os.open

    def watch(path, flags, mode=0o777, *, dir_fd=None):
        if flags & os.O_CREAT:
            modes.append(mode)
            assert flags & os.O_EXCL
            assert flags & os.O_NOFOLLOW
        return real(path, flags, mode, dir_fd=dir_fd)

    storage = FileStorage(tmp_path / "home")
    old = os.umask(0)
    try:
        await storage.prepare()
        monkeypatch.setattr("apex_creds.fs.private_files.os.open", watch)
        await storage.write("keystore", b"x", expected=None)
    finally:
        os.umask(old)
        monkeypatch.undo()
        await storage.close()
    assert modes
    assert set(modes) == {0o600}


async def test_a_home_that_was_never_made_reads_as_empty(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "none")
    assert await storage.read("keystore") is None
    assert storage.change_token("keystore") is None
    assert await storage.names() == []
    with pytest.raises(StorageError, match="apex-creds init"):
        await storage.write("keystore", b"x", expected=None)
    assert not (tmp_path / "none").exists()


async def test_a_relative_home_does_not_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = FileStorage(Path("home"))
    monkeypatch.chdir("/")
    assert storage.root == tmp_path / "home"


# -- permissions ---------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
async def test_an_open_file_is_refused_by_name(home: Path, name: str, bit: int) -> None:
    path = home / FILES[name]
    path.chmod(0o600 | bit)
    await refused(home, name, UnsafePermissionsError, f"chmod 600 {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 | bit  # never mended silently


@pytest.mark.parametrize("folder", FOLDERS)
async def test_an_open_folder_is_refused_by_name(home: Path, folder: str) -> None:
    path = home / folder
    # The home itself may be read by others: what is in it is closed by itself.
    mode = 0o750 if folder else 0o770
    path.chmod(mode)
    name = "api_keys" if folder == "credentials" else "keystore"
    await refused(home, name, UnsafePermissionsError, f"chmod 700 {path}")
    with pytest.raises(UnsafePermissionsError):
        await FileStorage(home).prepare()
    assert stat.S_IMODE(path.stat().st_mode) == mode


async def test_a_stricter_mode_is_fine(home: Path) -> None:
    (home / FILES["keystore"]).chmod(0o400)
    stored = await FileStorage(home).read("keystore")
    assert stored is not None


async def test_loosened_permissions_move_the_token(home: Path) -> None:
    storage = FileStorage(home)
    before = storage.change_token("keystore")
    (home / FILES["keystore"]).chmod(0o644)
    assert storage.change_token("keystore") != before


async def test_the_fix_is_quoted_for_a_shell(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "my home; rm -rf")
    await storage.prepare()
    storage.root.chmod(0o777)
    with pytest.raises(UnsafePermissionsError, match=r"chmod 7.. '.*my home; rm -rf'"):
        await storage.read("keystore")


# -- owners --------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("name", FILES)
async def test_a_foreign_file_is_refused(home: Path, name: str) -> None:
    os.chown(home / FILES[name], 12345, -1)
    await refused(home, name, UnsafePathError, "12345")


@as_root
@pytest.mark.parametrize("folder", FOLDERS)
async def test_a_foreign_folder_is_refused(home: Path, folder: str) -> None:
    os.chown(home / folder, 12345, -1)
    name = "api_keys" if folder == "credentials" else "keystore"
    await refused(home, name, UnsafePathError, "12345")


# -- links and other things ----------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
async def test_a_link_is_not_followed(home: Path, tmp_path: Path, name: str) -> None:
    path = home / FILES[name]
    target = tmp_path / "elsewhere"
    target.write_bytes(b"not yours")
    target.chmod(0o600)
    path.unlink()
    path.symlink_to(target)
    await refused(home, name, UnsafePathError, "symbolic link")
    assert target.read_bytes() == b"not yours"
    assert path.is_symlink()


async def test_a_dangling_link_is_not_an_absent_document(home: Path) -> None:
    path = home / FILES["api_keys"]
    path.unlink()
    path.symlink_to(home / "nowhere")
    storage = FileStorage(home)
    with pytest.raises(UnsafePathError):
        await storage.read("api_keys")
    with pytest.raises(UnsafePathError):
        await storage.write("api_keys", b"x", expected=None)
    assert not (home / "nowhere").exists()


@pytest.mark.parametrize("folder", FOLDERS)
async def test_a_linked_folder_is_refused(home: Path, tmp_path: Path, folder: str) -> None:
    path = home / folder
    moved = tmp_path / "moved"
    path.rename(moved)
    path.symlink_to(moved)
    name = "api_keys" if folder == "credentials" else "keystore"
    await refused(home, name, UnsafePathError, "symbolic link")
    with pytest.raises(UnsafePathError):
        await FileStorage(home).prepare()


async def test_a_link_above_the_home_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage = FileStorage(tmp_path / "link" / "home")
    await storage.prepare()
    await storage.write("keystore", b"x", expected=None)
    assert (tmp_path / "real" / "home" / FILES["keystore"]).exists()
    await storage.close()


@pytest.mark.parametrize("kind", ["directory", "fifo", "socket"])
async def test_what_is_no_file_is_refused(home: Path, kind: str) -> None:
    path = home / FILES["api_keys"]
    path.unlink()
    put_in_place(path, kind)
    await refused(home, "api_keys", UnsafePathError, str(path))


def put_in_place(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir(mode=0o700)
    elif kind == "fifo":
        os.mkfifo(path, 0o600)  # opening it must not wait for a writer
    else:
        where = os.open(path.parent, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{where}/{path.name}")
        os.close(where)
        path.chmod(0o600)


async def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"a file")
    (tmp_path / "home").chmod(0o600)
    storage = FileStorage(tmp_path / "home")
    with pytest.raises(UnsafePathError):
        storage.change_token("keystore")
    for attempt in (storage.prepare(), storage.read("keystore"), storage.names()):
        with pytest.raises(UnsafePathError):
            await attempt
    assert (tmp_path / "home").read_bytes() == b"a file"


@pytest.mark.parametrize("kind", ["link", "open", "directory"])
async def test_an_unsafe_lock_is_refused(home: Path, tmp_path: Path, kind: str) -> None:
    lock = home / "security/.lock"
    lock.unlink()
    target = tmp_path / "precious"
    target.write_bytes(b"kept")
    if kind == "link":
        lock.symlink_to(target)
    elif kind == "open":
        lock.touch()
        lock.chmod(0o666)
    else:
        lock.mkdir(mode=0o700)
    storage = FileStorage(home)
    with pytest.raises((UnsafePathError, UnsafePermissionsError), match="lock"):
        await storage.write("api_keys", b"x", expected=storage.change_token("api_keys"))
    assert target.read_bytes() == b"kept"
    assert (home / FILES["api_keys"]).read_bytes() == b"api_keys"


async def refused(home: Path, name: str, error: type[StorageError], words: str) -> None:
    """Reading, writing and deleting raise the error, and the file is as it was."""
    storage = FileStorage(home)
    token = storage.change_token(name)
    before = os.lstat(home / FILES[name])
    assert token is not None
    for attempt in (
        storage.read(name),
        storage.write(name, b"new", expected=token),
        storage.write(name, b"new", expected=token, shred=True),
        storage.delete(name, expected=token, shred=True),
    ):
        with pytest.raises(error) as caught:
            await attempt
        assert words in str(caught.value)
    assert os.lstat(home / FILES[name]) == before
    assert not list(home.rglob("*.tmp"))
    await storage.close()


# -- changes behind our back ---------------------------------------------------------


async def test_an_edit_in_place_moves_the_token(home: Path) -> None:
    storage = FileStorage(home)
    stored = await storage.read("keystore")
    assert stored is not None
    with (home / FILES["keystore"]).open("r+b") as file:
        file.write(b"KEYSTORE")  # the same length
    os.utime(home / FILES["keystore"], ns=(stored.token[2], stored.token[2]))
    assert storage.change_token("keystore") != stored.token
    with pytest.raises(ConflictError):
        await storage.write("keystore", b"x", expected=stored.token)
    await storage.close()


async def test_a_swapped_folder_is_noticed(home: Path) -> None:
    """A restore that moves a whole directory into place leaves the old files untouched."""
    storage = FileStorage(home)
    stored = await storage.read("api_keys")
    assert stored is not None
    (home / "credentials").rename(home / "aside")
    assert storage.change_token("api_keys") is None
    with pytest.raises(StorageError):
        await storage.write("api_keys", b"x", expected=stored.token)
    await storage.close()


async def test_a_document_that_never_stands_still_is_an_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileStorage(home)
    real = os.fstat
    calls = iter(range(10**6))

    def moving(fd: int) -> SimpleNamespace:
        status = real(fd)
        fields = {name: getattr(status, name) for name in dir(status) if name[:3] == "st_"}
        return SimpleNamespace(**fields | {"st_mtime_ns": next(calls)})

    monkeypatch.setattr("apex_creds.storage.file_storage.os.fstat", moving)
    with pytest.raises(StorageError, match="all the time"):
        await storage.read("keystore")


async def test_a_huge_document_is_refused_unread(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(home / FILES["keystore"], storage_base.MAX_DOCUMENT_BYTES + 1)  # sparse
    storage = FileStorage(home)
    with pytest.raises(StorageError, match="larger than 1 GiB"):
        await storage.read("keystore")
    monkeypatch.setattr("apex_creds.storage.file_storage.MAX_DOCUMENT_BYTES", 10)
    with pytest.raises(StorageError, match="larger than 1 GiB"):
        await storage.write("oauth_tokens", b"x" * 11, expected=None)


# -- writing -------------------------------------------------------------------------


async def test_leftovers_of_dead_writers_are_removed_and_nothing_else(home: Path) -> None:
    left = home / "credentials" / f".api_keys.enc.{'a' * 16}.tmp"
    others = [home / "credentials" / name for name in ("notes.tmp", ".api_keys.enc.tmp")]
    for path in (left, *others):
        path.write_bytes(b"half")
    storage = FileStorage(home)
    await storage.write("api_keys", b"x", expected=storage.change_token("api_keys"))
    assert not left.exists()
    assert all(path.exists() for path in others)
    assert await storage.names() == sorted(FILES)
    await storage.close()


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "utime"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
async def test_a_failing_call_leaves_the_old_version(
    home: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    storage = FileStorage(home)
    stored = await storage.read("api_keys")
    assert stored is not None

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(f"apex_creds.fs.private_files.os.{call}", fail)
        patch.setattr("apex_creds.storage.file_storage.os.supports_fd", {fail, os.utime})
        with pytest.raises(StorageError):
            await storage.write("api_keys", b"new", expected=stored.token)
    assert await storage.read("api_keys") == stored
    assert os.listdir(home / "credentials") == ["api_keys.enc"]
    await storage.close()


@pytest.mark.parametrize("call", ["fsync", "replace", "unlink"])
async def test_a_disk_that_fails_after_the_change_makes_it_uncertain(
    home: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The new version is in force, so nothing says that the old one is intact."""
    storage = FileStorage(home)
    stored = await storage.read("api_keys")
    assert stored is not None
    real = getattr(os, call)

    def fail(*args: object, **kwargs: object) -> None:
        real(*args, **kwargs)
        if call != "fsync" or stat.S_ISDIR(os.fstat(args[0]).st_mode):
            raise OSError(errno.EIO, "injected")

    monkeypatch.setattr(private_files.os, call, fail)
    change = (
        storage.delete("api_keys", expected=stored.token)
        if call == "unlink"
        else storage.write("api_keys", b"new", expected=stored.token)
    )
    with pytest.raises(StorageUncertainError, match="was changed") as caught:
        await change
    monkeypatch.undo()
    assert "intact" not in str(caught.value)
    again = await storage.read("api_keys")
    assert (again and again.data) == (None if call == "unlink" else b"new")
    assert os.listdir(home / "credentials") == ([] if call == "unlink" else ["api_keys.enc"])
    token = again.token if again else None
    await storage.write("api_keys", b"further", expected=token)
    await storage.close()


async def test_everything_is_readable_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        storage = FileStorage(tmp_path / "above/home")
        await storage.prepare()
        await storage.write("api_keys", b"kept", expected=None)
    finally:
        os.umask(before)
    for path in (tmp_path / "above").rglob("*"):
        wanted = 0o700 if path.is_dir() else 0o600
        assert path.stat().st_mode & 0o777 == wanted, path
    await storage.close()


async def test_short_writes_are_completed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr("apex_creds.fs.private_files.os.write", lambda fd, b: real(fd, b[:7]))
    storage = FileStorage(home)
    await storage.write("oauth_tokens", bytes(range(100)), expected=None)
    monkeypatch.undo()
    stored = await storage.read("oauth_tokens")
    assert stored is not None
    assert stored.data == bytes(range(100))
    await storage.close()


async def test_a_lock_held_elsewhere_ends_in_an_error(home: Path) -> None:
    import fcntl

    storage = FileStorage(home, lock_timeout=0.05)
    fd = os.open(home / "security/.lock", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(StorageLockedError, match=r"\.lock"):
        await storage.write("api_keys", b"x", expected=storage.change_token("api_keys"))
    stored = await storage.read("api_keys")  # readers never wait
    os.close(fd)
    assert stored is not None
    await storage.write("api_keys", b"x", expected=stored.token)
    await storage.close()


async def test_a_cancelled_write_that_has_not_begun_does_not(home: Path) -> None:
    storage = FileStorage(home)
    token = storage.change_token("api_keys")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await storage.write("api_keys", b"never begun", expected=token)
    assert storage.change_token("api_keys") == token
    assert not list(home.rglob("*.tmp"))
    await storage.close()


async def test_a_write_that_has_begun_ends_even_if_its_caller_is_cancelled(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = FileStorage(home)
    begun, go_on = threading.Event(), threading.Event()

    def hold(fd: int) -> None:
        begun.set()
        assert go_on.wait(WITHIN)
        os.fsync(fd)

    monkeypatch.setattr("apex_creds.storage.file_storage.sync_file", hold)
    token = storage.change_token("api_keys")
    task = asyncio.create_task(storage.write("api_keys", b"whole", expected=token))
    await to_thread.run_sync(begun.wait)
    task.cancel()
    go_on.set()
    await asyncio.wait([task])
    await storage.write("oauth_tokens", b"", expected=None)  # waits for the lock
    stored = await storage.read("api_keys")
    assert stored is not None
    assert stored.data == b"whole"
    assert not list(home.rglob("*.tmp"))
    await storage.close()


def descriptors(home: Path) -> int:
    """How many this process has open that are of the home."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(link.startswith(str(home)) for link in links)


async def test_no_descriptor_is_left_behind(home: Path) -> None:
    storage = FileStorage(home)
    for _ in range(5):
        for name in FILES:
            stored = await storage.read(name)
            assert stored is not None
            await storage.write(name, b"x", expected=stored.token, shred=True)
            with pytest.raises(ConflictError):
                await storage.write(name, b"y", expected=stored.token)
    assert descriptors(home) == len(FILES) + 1  # the pins, the counter
    await storage.close()
    await storage.read("keystore")
    assert descriptors(home) == 0


async def test_an_inode_number_does_not_come_back(home: Path) -> None:
    storage = FileStorage(home)
    stored = await storage.read("api_keys")
    assert stored is not None
    (home / FILES["api_keys"]).unlink()
    for _ in range(50):  # ext4 hands out a freed inode at once
        path = home / "credentials" / "again"
        path.touch()
        assert path.stat().st_ino != stored.token[1]
        path.unlink()
    await storage.close()


# -- names ---------------------------------------------------------------------------


async def test_mapped_sections_show_no_name_on_disk(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "home")
    await storage.prepare()
    storage.map_names(lambda name: f"h_{len(name)}")
    await storage.write("api_keys", b"x", expected=None)
    await storage.write("keystore", b"k", expected=None)
    assert os.listdir(tmp_path / "home/credentials") == ["h_8.enc"]
    assert await storage.names() == ["api_keys", "keystore"]
    await storage.close()


@pytest.mark.parametrize("stem", ["../../etc/passwd", "", "a/b", "a" * 65, "UP"])
async def test_a_map_can_not_lead_out_of_the_folder(tmp_path: Path, stem: str) -> None:
    storage = FileStorage(tmp_path / "home")
    storage.map_names(lambda _name: stem)
    with pytest.raises(Exception, match="not acceptable"):
        await storage.read("api_keys")


async def test_stray_files_are_no_documents(home: Path) -> None:
    for name in ("UP.enc", "a-b.enc", ".enc", "x.enc.bak", "keystore.enc", "y.json"):
        (home / "credentials" / name).touch()
    assert await FileStorage(home).names() == sorted(FILES)
