"""Where a vault lies on disk: the directories of its home, and how they are made.

Guarantee: made 0700 from their first instant, durably, and never loosened or tightened
afterwards: one that others may use is refused, not changed. They may look into the home itself
where it was made before (0755, as ApexAgent does), since all that lies in it is closed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from apex_creds.errors import StorageReadOnlyError
from apex_creds.fs.private_files import (
    Folder,
    expanded,
    make_directories,
    make_directory,
    translated,
)

HOME_VARIABLE: Final = "APEX_CREDS_HOME"
SECURITY: Final = "security"
AUDIT: Final = "audit"
"""Inside ``SECURITY``."""
CREDENTIALS: Final = "credentials"


def resolve_home(home: str | os.PathLike[str] | None = None) -> Path:
    """``home``, else ``$APEX_CREDS_HOME``, else ``~/.apex_agent``; absolute.

    The last component is not resolved, so that a symbolic link there is refused later.

    Raises:
        InvalidInputError: It needs a home directory that this user does not have.
    """
    chosen = home or os.environ.get(HOME_VARIABLE) or "~/.apex_agent"
    return expanded(os.fspath(chosen))


_GUARDED: Final[set[Path]] = set()


def guard(*places: Path) -> None:
    """Has this process show these to nothing that it starts behind a wall."""
    _GUARDED.update(places)


def guarded_at(place: Path) -> Path | None:
    """What is guarded of a folder: it lies in there, or around it; None: nothing."""
    for each in sorted(_GUARDED):
        real = Path(os.path.realpath(each))
        if real.is_relative_to(place) or place.is_relative_to(real):
            return each
    return None


def audit_directory(home: Path) -> Path:
    """Where the log's segments lie."""
    return home / SECURITY / AUDIT


def make_folders(root: Path) -> None:
    """Makes the missing ones of ``root``, its parents, and the three in it.

    Raises:
        UnsafePathError: One is a link, not a directory, or somebody else's.
        UnsafePermissionsError: One is open to others.
        StorageReadOnlyError: They can't be made there.
    """
    with translated(root, writing=True):
        make_directories(root)
        with Folder(root, outer=True) as home:
            _make(root / CREDENTIALS)
            _make(root / SECURITY)
            with Folder(root / CREDENTIALS, within=home):
                pass
            with Folder(root / SECURITY, within=home) as security:
                _make(root / SECURITY / AUDIT)
                with Folder(root / SECURITY / AUDIT, within=security):
                    pass
                security.sync()
            home.sync()


def make_home(root: Path) -> None:
    """Makes ``root`` and its parents where they are missing; raises as ``make_folders``."""
    try:
        with translated(root, writing=True):
            make_directories(root)
            with Folder(root, outer=True):
                pass
    except StorageReadOnlyError as error:
        raise StorageReadOnlyError(
            error.message, hint=f"{error.hint} Or name another: --home DIR, or APEX_CREDS_HOME."
        ) from error


def _make(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        make_directory(path)
