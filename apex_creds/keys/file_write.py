"""Writing a file of master keys.

Guarantee: the file changes only as a whole and durably, by one writer at a time; nothing is
followed, overwritten or left behind when a write fails; and a key that was dropped is
overwritten on disk, as far as the file system lets us.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Final

import filelock

from apex_creds.errors import (
    ApexCredsError,
    MasterKeyReadOnlyError,
    MasterKeyUnavailableError,
    StorageFullError,
    StorageLockedError,
)
from apex_creds.keys.base import encode_key, wipe
from apex_creds.keys.file_read import OPEN_FLAGS, Keys

__all__ = ["exclusive", "remove_file", "replace_file", "shredding"]

_LOCK_SECONDS: Final = 10.0
_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL: Final = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS))


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Holds the lock of the file, beside it, against other threads and processes.

    Raises:
        MasterKeyReadOnlyError: The file or its directory can't be written.
        MasterKeyUnavailableError: The directory does not exist.
        StorageFullError: There is no space for the lock.
        StorageLockedError: Another process holds it for too long.
    """
    lock = filelock.FileLock(
        path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS, mode=0o600
    )
    failure: ApexCredsError | None = None
    try:
        _check_writable(path)
        lock.acquire()
    except filelock.Timeout:
        failure = StorageLockedError(f"{path} is locked by another process.", hint="Try again.")
    except OSError as error:
        failure = _cannot_write(path, error)
    if failure is not None:
        raise failure
    try:
        yield
    finally:
        lock.release()


def _check_writable(path: Path) -> None:
    """A file that its owner closed to writing is not replaced behind the owner's back."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory")
    if os.path.lexists(path) and os.name == "posix":
        info = path.lstat()
        if info.st_uid != os.geteuid() or not info.st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "read-only")


def _cannot_write(path: Path, error: OSError) -> ApexCredsError:
    if error.errno in _READ_ONLY:
        return MasterKeyReadOnlyError(
            f"{path} can't be written.",
            hint="Make it writable (chmod 600), or provision the new version from outside.",
        )
    if error.errno in _FULL:
        return StorageFullError(f"There is no space left for {path}.", hint="Free some space.")
    if error.errno == errno.ENOENT:
        return MasterKeyUnavailableError(
            f"The directory of {path} does not exist.", hint=f"mkdir -m 700 {path.parent}"
        )
    return MasterKeyUnavailableError(
        f"{path} can't be written ({error.strerror}).", hint="Check the path."
    )


def replace_file(path: Path, keys: Keys, *, new: bool) -> None:
    """Writes the whole file anew beside the old one, then puts it in its place."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)  # of a writer that was killed; we hold the lock
        _write(temporary, keys)
        _put_in_place(temporary, path, new=new)
        _sync_directory(path.parent)
    except OSError as error:
        failure = _cannot_write(path, error)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    else:
        return
    raise failure


def remove_file(path: Path) -> None:
    """Removes the whole file, durably."""
    try:
        path.unlink()
        _sync_directory(path.parent)
    except OSError as error:
        failure = _cannot_write(path, error)
    else:
        return
    raise failure


def _write(path: Path, keys: Keys) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600)
    try:
        with open(fd, "wb", 0, closefd=False) as raw:
            for version in sorted(keys):
                _write_line(raw, version, encode_key(keys[version]))
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_line(raw: FileIO, version: int, text: bytearray) -> None:
    # Piece by piece: joining them would leave copies of the key in memory.
    try:
        for piece in (b"v%d " % version, text, b"\n"):
            _write_all(raw, piece)
    finally:
        wipe(text)


def _write_all(raw: FileIO, piece: bytes | bytearray) -> None:
    with memoryview(piece) as view:
        written = 0
        while written < len(view):
            written += raw.write(view[written:]) or 0


def _put_in_place(temporary: Path, path: Path, *, new: bool) -> None:
    if new and hasattr(os, "link"):
        try:
            os.link(temporary, path)  # fails when something is there, unlike a rename
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            temporary.unlink()
            return
    if new and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "appeared meanwhile")
    os.replace(temporary, path)


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def shredding(path: Path) -> Iterator[None]:
    """Overwrites the replaced file's blocks, as far as the file system lets us."""
    if os.name != "posix":
        yield
        return
    fd = _open_to_shred(path)
    try:
        yield
        with contextlib.suppress(OSError):
            _zero(fd)
    finally:
        os.close(fd)


def _open_to_shred(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | OPEN_FLAGS)
    except OSError as error:
        failure = _cannot_write(path, error)
    raise failure


def _zero(fd: int) -> None:
    info = os.fstat(fd)
    if info.st_nlink == 0:
        os.pwrite(fd, bytes(info.st_size), 0)
        os.fsync(fd)
