"""Files of old programs: found, recognised, locked, read, moved and erased.

Guarantee: files are found by where they are and by what is in their first bytes, never by
their name alone; a document of this project, however damaged, is never taken for one of an
older program. Finding changes nothing, and loads nothing of what a migration needs. The lock
ends with the process that holds it; a wait is as long as was said and never keeps the event
loop.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from apex_creds.errors import (
    ConflictError,
    StorageError,
    StorageLockedError,
    UnsafePathError,
    ValueTooLargeError,
)
from apex_creds.fs.home import SECURITY
from apex_creds.fs.lock import release, take_lock
from apex_creds.fs.private_files import overwrite, sync_directory, sync_file, translated
from apex_creds.migration.entries import Format
from apex_creds.migration.progress import DOCUMENT
from apex_creds.storage.base import Shredded
from apex_creds.vault import Vault

# -- reading, moving, erasing ---------------------------------------------------------------


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
            chunks = []
            left = MAX_BYTES + 1
            while left and (chunk := os.read(fd, min(left, _CHUNK))):
                chunks.append(chunk)
                left -= len(chunk)
            if not left:
                raise _too_large(path)
        finally:
            os.close(fd)
    exposed = sys.platform != "win32" and bool(status.st_mode & 0o077) and _is_reachable(path)
    data = b"".join(chunks)
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
                hint="Compare both, and move one of them away.",
            )
        os.rename(source, target)
        sync_directory(target.parent)
        if source.parent != target.parent:
            sync_directory(source.parent)


def erase(path: Path) -> Shredded:
    """Overwrites a file and removes it; durable on return, and resumable if it is not.

    A file with other names (hard links, which may be backups) is removed, and not
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
                left = status.st_size
                os.lseek(fd, 0, os.SEEK_SET)
                while left:
                    left -= os.write(fd, bytes(min(left, _CHUNK)))
                sync_file(fd)
            os.unlink(path)
            sync_directory(path.parent)
            return overwrite(fd)
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


def _too_large(path: Path) -> ValueTooLargeError:
    return ValueTooLargeError(
        f"{path} is larger than {MAX_BYTES >> 20} MiB.",
        hint="No file of credentials is: look what it is.",
    )


# -- the lock -------------------------------------------------------------------------------


LOCK_NAME: Final = ".migration.lock"
_POLL: Final = 0.05


@asynccontextmanager
async def exclusive(home: Path, *, wait: float = 0.0) -> AsyncIterator[None]:
    """Holds the vault's migration lock for the block.

    Raises:
        StorageLockedError: Another process (or task) is migrating.
    """
    path, left = home / SECURITY / LOCK_NAME, int(wait / _POLL)
    while (lock := take_lock(path)) is None and left:
        left -= 1
        await anyio.sleep(_POLL)
    if lock is None:
        raise StorageLockedError(
            "Another process is migrating into this vault.", hint="Wait for it to finish."
        )
    try:
        yield
    finally:
        release(lock)


# -- what a file is -------------------------------------------------------------------------


OURS: Final = b"apex-creds/document"

_FERNET: Final = re.compile(rb"gAAAAA[A-Za-z0-9_-]{60,}={0,2}")
_BOX_OVERHEAD: Final = 24 + 16
_TEXT: Final = frozenset(b"\t\n\r" + bytes(range(0x20, 0x7F)))
_TEXT_SHARE: Final = 0.7
"""Of random bytes, 38 in 100 are printable; of a damaged document nearly all."""


def is_ours(data: bytes) -> bool:
    """Whether this is a document of this project, or what is left of one."""
    return OURS in data or is_text(data)


def is_text(data: bytes) -> bool:
    """Whether most of it is printable ASCII."""
    sample = data[: 64 * 1024]
    return bool(sample) and sum(byte in _TEXT for byte in sample) > _TEXT_SHARE * len(sample)


def detect(data: bytes) -> Format | None:
    """The format of a file's bytes; None for one that is not known.

    A vault's document is ``VAULT``; a ``SECRETBOX`` is only what can be one.
    """
    stripped = data.strip()
    if not stripped:
        return Format.EMPTY
    if OURS in data[:4096]:
        return Format.VAULT
    if _FERNET.fullmatch(stripped):
        return Format.FERNET
    if is_dotenv(data):
        return Format.DOTENV
    if len(data) >= _BOX_OVERHEAD and not is_text(data):
        return Format.SECRETBOX
    return None


def is_dotenv(data: bytes) -> bool:
    """Whether it reads as a .env file: UTF-8, and more assignments than mistakes."""
    from dotenv.parser import parse_stream

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    if "\0" in text or text.lstrip().startswith(("{", "[", "<")):
        return False
    good = bad = 0
    for binding in parse_stream(io.StringIO(text)):
        good += binding.key is not None and binding.value is not None
        bad += binding.error
    return good > bad


# -- beside a vault -------------------------------------------------------------------------


FERNET_NAME: Final = ".apex_agent_api_keys.enc"
"""Beside the vault's directory, as ``~/.apex_agent`` and the old file are."""
LEGACY: Final = "legacy"
"""In the vault's directory: where ``set_aside`` puts files of the SecretBox format."""
KEYSTORE_FILE: Final = "keystore.enc"
_HEAD: Final = 4096


def automatic_paths(home: Path) -> list[Path]:
    """Where old files would be that belong to this vault; those that are there."""
    candidates = (home / LEGACY / KEYSTORE_FILE, home.parent / FERNET_NAME)
    return [path for path in candidates if present(path)]


def is_due(vault: Vault) -> bool:
    """Whether there is anything to migrate without being asked, or to go on with."""
    found = automatic_paths(vault.home)
    return bool(found) or vault.store.storage.change_token(DOCUMENT) is not None


def is_legacy(home: Path) -> bool:
    """Whether the key store in a vault's place is an older program's, by its first bytes.

    Raises:
        StorageError: It can't be read safely.
    """
    path = home / SECURITY / KEYSTORE_FILE
    if not os.path.lexists(path):
        return False
    head = read_head(path, _HEAD)
    return bool(head) and not is_ours(head)
