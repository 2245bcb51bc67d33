"""Copies of a vault while they are made: useless, and soon gone, when their maker is killed.

Guarantee: a copy that is not in its place has no key store until the moment before, so that
nothing in it can be read, with any master key; and the next copy that is made beside it
removes it. One whose maker lives is not disturbed: it has its directory locked.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apex_creds.errors import ConflictError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import make_directory
from apex_creds.fs.replacing import remove_tree, try_lock
from apex_creds.keys.hierarchy import KEYSTORE
from apex_creds.storage.base import Stored, Token
from apex_creds.storage.file_storage import FileStorage

__all__ = ["KeystoreInMemory", "left_copies", "partial_copy"]

_NAME: Final = re.compile(r"\..+\.[0-9a-f]{12}\.partial(?:\.tar)?")
_TRIES: Final = 10


class KeystoreInMemory(FileStorage):
    """The files of a copy whose key store is not written yet.

    Args:
        root: The copy.
        keystore: The key store's bytes.
    """

    def __init__(self, root: Path, keystore: bytes) -> None:
        super().__init__(root)
        self._stored = Stored(keystore, Token(("in memory",)))

    def change_token(self, name: str) -> Token | None:
        """See ``Storage``."""
        return self._stored.token if name == KEYSTORE else super().change_token(name)

    async def read(self, name: str) -> Stored | None:
        """See ``Storage``."""
        return self._stored if name == KEYSTORE else await super().read(name)


@contextlib.contextmanager
def partial_copy(destination: Path) -> Iterator[Path]:
    """A private directory beside ``destination``, to make a copy in; removed afterwards.

    Raises:
        StorageError: It can't be made.
    """
    for left in left_copies(destination.parent):
        with contextlib.suppress(OSError):
            _remove(left)
    path, fd = _make(destination)
    try:
        yield path
    finally:
        remove_tree(path)
        if fd >= 0:
            os.close(fd)


def left_copies(folder: Path) -> list[Path]:
    """Copies in a folder that their makers left unfinished, and that are ours to remove."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = (folder / name for name in sorted(names) if _NAME.fullmatch(name))
    return [path for path in found if _is_dead(path)]


def _make(destination: Path) -> tuple[Path, int]:
    with translated(destination, writing=True):
        for _ in range(_TRIES):
            name = f".{destination.name}.{os.urandom(6).hex()}.partial"
            path = destination.with_name(name)
            make_directory(path)
            fd = _open(path)
            if fd < 0 or (try_lock(fd) is not False and os.fstat(fd).st_nlink > 0):
                return path, fd
            os.close(fd)  # somebody sweeps, and took it for a dead maker's
    raise ConflictError("Copies are removed as they are made there.", hint="Try again.")


def _open(path: Path) -> int:
    if os.name != "posix":
        return -1  # a directory can't be opened there, nor locked
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _is_dead(path: Path) -> bool:
    """Whether nobody makes it any more; an earlier program's tar file was never locked."""
    try:
        if not path.is_dir():
            return os.lstat(path).st_uid == os.geteuid()
        with _opened(path) as fd:
            return fd >= 0 and os.fstat(fd).st_uid == os.geteuid() and bool(try_lock(fd))
    except OSError:
        return False


def _remove(path: Path) -> None:
    if not path.is_dir():
        path.unlink()
        return
    with _opened(path) as fd:
        if try_lock(fd):  # held while it is removed: two that sweep don't disturb each other
            remove_tree(path)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = _open(path)
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)
