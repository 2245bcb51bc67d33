"""Where an SQLite database is, and whether anybody else could have put it there.

Guarantee: the file and those that SQLite keeps beside it are ours and closed to others, and
nobody else can make or replace one in their directory; of two files that were at one path
it is known which is which, while one of them is open.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path
from typing import Final, NamedTuple

from apex_creds.errors import (
    StorageUnreachableError,
    UnsafePathError,
    UnsafePermissionsError,
)
from apex_creds.fs.oserrors import storage_error
from apex_creds.fs.private_files import check

_BESIDE: Final = ("-wal", "-shm", "-journal")


class Place(NamedTuple):
    """Which file it is, whatever its name."""

    device: int
    inode: int


def place_of(path: Path) -> Place:
    """Which file is at ``path`` now.

    Raises:
        StorageUnreachableError: None.
        UnsafePathError, UnsafePermissionsError: It is not only ours.
        StorageError: It can't be told.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        raise StorageUnreachableError(
            f"The SQLite database {path} is not there.",
            hint="Put it back, or create the vault: apex-creds init.",
        ) from None
    except OSError as error:
        raise storage_error(error, path) from error
    check(path, status)
    return Place(status.st_dev, status.st_ino)


def check_place(path: Path) -> None:
    """Refuses a database that others could have made, or could replace; see ``place_of``."""
    place_of(path)
    _check_folder(path.parent)
    for ending in _BESIDE:
        beside = path.with_name(path.name + ending)
        try:
            check(beside, os.lstat(beside))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_error(error, beside) from error


def _check_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        status = os.stat(folder)
    except OSError as error:
        raise storage_error(error, folder) from error
    if status.st_uid not in (os.geteuid(), 0):
        raise UnsafePathError(
            f"{folder} belongs to user {status.st_uid}, who can replace the database in it.",
            hint="Move the database to a directory of yours.",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafePermissionsError(
            f"Other users can write to {folder}, and replace the database in it.",
            hint=f"Run: chmod 700 {shlex.quote(str(folder))}, or move the database away.",
        )
