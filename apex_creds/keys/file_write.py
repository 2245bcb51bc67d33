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
from pathlib import Path
from typing import Final

import filelock

from apex_creds.errors import (
    ApexCredsError,
    MasterKeyReadOnlyError,
    MasterKeyUnavailableError,
    StorageFullError,
    StorageLockedError,
    StorageUncertainError,
)
from apex_creds.fs.lock import lock_at, release
from apex_creds.fs.private_files import OPEN_FLAGS, NotDurableError
from apex_creds.fs.replacing import create_exclusive, erase, remove_file, replace_file, sweep
from apex_creds.fs.shred import overwrite
from apex_creds.keys.base import encode_key, wipe
from apex_creds.keys.file_read import Keys

__all__ = ["READ_ONLY", "clean", "exclusive", "remove_keys", "shredding", "write_keys"]

_LOCK_SECONDS: Final = 10.0
READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL: Final = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextlib.contextmanager
def exclusive(path: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Holds the lock of the file, beside it, against other threads and processes.

    Raises:
        MasterKeyReadOnlyError: The file or its directory can't be written.
        MasterKeyUnavailableError: The directory does not exist.
        StorageFullError: There is no space for the lock.
        StorageLockedError: Another process holds it for longer than ``seconds``.
    """
    beside = path.with_name(f".{path.name}.lock")
    failure: ApexCredsError = StorageLockedError(
        f"{path} is locked by another process.", hint="Try again."
    )
    lock: filelock.BaseFileLock | None = None
    try:
        _check_writable(path)
        lock = lock_at(beside)
        lock.acquire(timeout=_LOCK_SECONDS if seconds is None else seconds)
    except filelock.Timeout:
        lock = None
    except OSError as error:
        failure, lock = _cannot_write(path, error), None
    if lock is None:
        raise failure
    try:
        yield
    finally:
        release(lock)


def _check_writable(path: Path) -> None:
    """A file that its owner closed to writing is not replaced behind the owner's back."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory")
    if os.path.lexists(path) and os.name == "posix":
        info = path.lstat()
        if info.st_uid != os.geteuid() or not info.st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "read-only")


def _cannot_write(path: Path, error: OSError) -> ApexCredsError:
    if isinstance(error, NotDurableError):
        return StorageUncertainError(
            f"{path} was changed, but the disk may not keep it ({error.strerror}).",
            hint="Copy the file to a safe place, and check the disk.",
        )
    if error.errno in READ_ONLY:
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


def write_keys(path: Path, keys: Keys, *, new: bool) -> None:
    """Writes the whole file anew beside the old one, then puts it in its place."""
    failure: ApexCredsError | None = None
    try:
        _erase_earlier(path)
        if new:
            create_exclusive(path, _lines(keys))
        else:
            replace_file(path, _lines(keys))
    except OSError as error:
        failure = _cannot_write(path, error)
    if failure is not None:
        raise failure


def remove_keys(path: Path) -> None:
    """Removes the whole file, durably."""
    failure: ApexCredsError | None = None
    try:
        remove_file(path)
    except OSError as error:
        failure = _cannot_write(path, error)
    if failure is not None:
        raise failure


def _lines(keys: Keys) -> Iterator[bytes | bytearray]:
    # Piece by piece: joining them would leave copies of the key in memory.
    for version in sorted(keys):
        text = encode_key(keys[version])
        try:
            yield b"v%d " % version
            yield text
            yield b"\n"
        finally:
            wipe(text)


def clean(path: Path) -> None:
    """Removes, and overwrites, what killed writers left beside the file: keys in clear.

    Does nothing where that can't be done, or while another process writes.
    """
    with contextlib.suppress(OSError):
        sweep(path)
    if os.path.lexists(_earlier(path)):
        with contextlib.suppress(OSError, ApexCredsError), exclusive(path, seconds=0):
            _erase_earlier(path)


def _erase_earlier(path: Path) -> None:
    """For who holds the lock: what an earlier program's killed writer left."""
    with contextlib.suppress(FileNotFoundError):
        erase(_earlier(path))


def _earlier(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


@contextlib.contextmanager
def shredding(path: Path) -> Iterator[None]:
    """Overwrites the replaced file's blocks, as far as the file system lets us."""
    if os.name != "posix":
        yield
        return
    fd = _open_to_shred(path)
    try:
        yield
        overwrite(fd)
    finally:
        os.close(fd)


def _open_to_shred(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | OPEN_FLAGS)
    except OSError as error:
        failure = _cannot_write(path, error)
    raise failure
