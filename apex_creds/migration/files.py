"""Old files, read, renamed and erased without being led astray.

Guarantee: nothing is read through a symbolic link, from something that is not a regular
file, from another user's file, or without end. A rename never replaces anything; what is
erased is the file that was backed up, and no other.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from apex_creds.errors import ConflictError, StorageError, UnsafePathError, ValueTooLargeError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import sync_file
from apex_creds.fs.shred import overwrite
from apex_creds.storage.base import Shredded

MAX_BYTES: Final = 64 << 20

_FLAGS: Final = (
    getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
)
_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it was read.

    Attributes:
        digest: SHA-256, 64 hexadecimal digits.
        exposed: Whether other users could reach and read it.
    """

    path: Path
    data: bytes = field(repr=False)
    digest: str
    exposed: bool


def present(path: Path) -> bool:
    """Whether there is something of that name, whatever it is."""
    return os.path.lexists(path)


def read_file(path: Path) -> SourceFile:
    """Reads a whole file.

    Raises:
        UnsafePathError: A link, not a regular file, or another user's.
        ValueTooLargeError: Larger than 64 MiB.
        StorageError: It can't be read.
    """
    with translated(path):
        fd = _open(path, os.O_RDONLY)
        try:
            status = os.fstat(fd)
            _check(path, status)
            data = _read(fd, path)
        finally:
            os.close(fd)
    exposed = sys.platform != "win32" and bool(status.st_mode & 0o077) and _is_reachable(path)
    return SourceFile(path, data, hashlib.sha256(data).hexdigest(), exposed)


def _is_reachable(path: Path) -> bool:
    """Whether no directory above a file is closed to others."""
    return all(os.stat(folder).st_mode & 0o011 for folder in path.absolute().parents)


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a file, however large it is.

    Raises:
        UnsafePathError: As for ``read_file``.
        StorageError: It can't be read.
    """
    with translated(path):
        fd = _open(path, os.O_RDONLY)
        try:
            _check_kind(path, os.fstat(fd))
            return os.read(fd, size)
        finally:
            os.close(fd)


def free_name(path: Path) -> Path:
    """``PATH.bak``, or the first of ``PATH.bak.1`` … that is not there."""
    candidates = (f"{path}.bak", *(f"{path}.bak.{number}" for number in range(1, 1000)))
    for candidate in map(Path, candidates):
        if not present(candidate):
            return candidate
    raise StorageError(f"{path} has a thousand backups.", hint="Remove some of them.")


def move(source: Path, target: Path) -> None:
    """Renames a file within its file system; durable on return. Done twice, it is done once.

    Raises:
        ConflictError: There is something of the new name already.
        StorageError: It can't be renamed.
    """
    with translated(source, writing=True):
        if not present(source):
            return
        if present(target):
            raise ConflictError(
                f"{target} is there already, and so is {source}.",
                hint="Look at both, and move one of them away.",
            )
        os.rename(source, target)
        sync_directory(target.parent)
        if source.parent != target.parent:
            sync_directory(source.parent)


def erase(path: Path) -> Shredded:
    """Overwrites a file and removes it; durable on return, and resumable if it is not.

    A file with other names (hard links, which may be somebody's backup) is removed, and not
    overwritten.

    Raises:
        UnsafePathError: A link, not a regular file, or another user's.
        StorageError: It can't be written or removed.
    """
    if not present(path):
        return "no"
    with translated(path, writing=True):
        fd = _open(path, os.O_RDWR)
        try:
            status = os.fstat(fd)
            _check(path, status)
            if status.st_nlink == 1:
                # Before it loses its name, so that a crash leaves something to go on with.
                _zero(fd, status.st_size)
            os.unlink(path)
            sync_directory(path.parent)
            return overwrite(fd)
        finally:
            os.close(fd)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable, where that can be done."""
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open(path: Path, flags: int) -> int:
    if not getattr(os, "O_NOFOLLOW", 0) and path.is_symlink():
        raise UnsafePathError(f"{path} is a symbolic link.", hint="Name the file itself.")
    return os.open(path, flags | _FLAGS)


def _check(path: Path, status: os.stat_result) -> None:
    _check_kind(path, status)
    if status.st_size > MAX_BYTES:
        raise _too_large(path)


def _check_kind(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePathError(
            f"{path} is not a regular file.", hint="Look who put it there, and move it away."
        )
    if sys.platform != "win32" and status.st_uid != os.geteuid():
        raise UnsafePathError(
            f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()}.",
            hint="Run as its owner, or take a copy that you trust.",
        )


def _read(fd: int, path: Path) -> bytes:
    chunks = []
    left = MAX_BYTES + 1
    while left and (chunk := os.read(fd, min(left, _CHUNK))):
        chunks.append(chunk)
        left -= len(chunk)
    if not left:
        raise _too_large(path)
    return b"".join(chunks)


def _zero(fd: int, size: int) -> None:
    os.lseek(fd, 0, os.SEEK_SET)
    left = size
    while left:
        left -= os.write(fd, bytes(min(left, _CHUNK)))
    sync_file(fd)


def _too_large(path: Path) -> ValueTooLargeError:
    return ValueTooLargeError(
        f"{path} is larger than {MAX_BYTES >> 20} MiB.",
        hint="No file of credentials is: look what it is.",
    )
