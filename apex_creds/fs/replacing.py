"""Whole files put in place: the old version or the new one, never a part of one.

Guarantee: after a crash at any instant the file is what it was or what it was to be, 0600
and durable on return. What a killed writer left beside it is removed, and overwritten as
far as the file system lets us, by the next one; a writer that lives is not disturbed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, Final, TypeAlias

from apex_creds.fs.private_files import (
    OPEN_FLAGS,
    create_file,
    sync_directory,
    sync_file,
    write_all,
)
from apex_creds.fs.shred import overwrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl


__all__ = [
    "Pieces",
    "create_exclusive",
    "erase",
    "name_new",
    "remove_file",
    "remove_tree",
    "replace_file",
    "sweep",
    "try_lock",
]

Pieces: TypeAlias = "Iterable[bytes | bytearray | memoryview]"
_TRIES: Final = 100

_log = logging.getLogger(__name__)


def replace_file(path: Path, pieces: Pieces) -> None:
    """Puts a whole new version in place, durably; what killed writers left beside it goes.

    Raises:
        NotDurableError: It is in place, but may not be durable.
        OSError: It could not be written; then what was there still is.
    """
    sweep(path)
    with _temporary(path, pieces) as temporary:
        os.replace(temporary, path)
    sync_directory(path.parent, renamed=True)


def create_exclusive(path: Path, pieces: Pieces) -> None:
    """As ``replace_file``, but there must be nothing.

    Raises:
        FileExistsError: There is something, or another process was first.
        NotDurableError, OSError: As ``replace_file``.
    """
    sweep(path)
    with _temporary(path, pieces) as temporary:
        name_new(temporary, path)
    sync_directory(path.parent, renamed=True)


def name_new(temporary: Path, path: Path) -> None:
    """Renames a file where there is nothing yet.

    Raises:
        FileExistsError: There is something.
        OSError: It could not be done.
    """
    try:
        os.link(temporary, path)  # fails when something is there, unlike a rename
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # no links there
        if os.path.lexists(path):
            raise FileExistsError(17, "exists") from None
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def remove_file(path: Path) -> None:
    """Removes a name, durably.

    Raises:
        NotDurableError: It is gone, but may come back.
        OSError: It could not be removed.
    """
    os.unlink(path)
    sync_directory(path.parent, renamed=True)


def remove_tree(path: Path) -> None:
    """Removes a directory and what is in it; says in the log what is still there then."""
    for _ in range(2):
        with contextlib.suppress(OSError):  # of its fstat it lets one pass
            shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
    _log.warning("%s could not be removed: remove it, it has a copy of a vault in it.", path)


@contextlib.contextmanager
def _temporary(path: Path, pieces: Pieces) -> Iterator[Path]:
    """A durable file beside ``path``, locked while its writer lives; gone if that fails."""
    temporary, fd = _beside(path)
    try:
        for piece in pieces:
            write_all(fd, piece)
        sync_file(fd)
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _beside(path: Path) -> tuple[Path, int]:
    for _ in range(_TRIES):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        fd = create_file(temporary)
        try:
            if try_lock(fd) is not False and os.fstat(fd).st_nlink > 0:
                return temporary, fd
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        os.close(fd)  # somebody sweeps, and took it for a dead writer's
    raise FileExistsError(17, "exists")


def sweep(path: Path) -> None:
    """Removes what dead writers left; a living one has its file locked."""
    left = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.tmp")
    for name in os.listdir(path.parent):
        if left.fullmatch(name):
            with contextlib.suppress(OSError):
                _erase(path.with_name(name), if_dead=True)


def erase(path: Path) -> None:
    """Removes a file, and overwrites it as far as the file system lets us.

    Raises:
        OSError: It could not be removed.
    """
    _erase(path, if_dead=False)


def _erase(path: Path, *, if_dead: bool) -> None:
    try:
        fd = os.open(path, os.O_RDWR | OPEN_FLAGS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        os.unlink(path)  # a link that somebody put there
        return
    try:
        if if_dead and not try_lock(fd):
            return
        os.unlink(path)
        overwrite(fd)
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool | None:
    """Takes the lock of an open file, unless another has it; None where there are no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, NameError):
        return None
    return True
