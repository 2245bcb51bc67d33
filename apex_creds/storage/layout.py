"""The directories of a vault's home, and how they come to be.

Guarantee: made 0700 from their first instant, durably, and never loosened or tightened
afterwards: one that others may use is refused, not mended. They may look into the home itself
where it was made before (0755, as ApexAgent does), since all that lies in it is closed.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import Folder, make_directories, make_directory

SECURITY: Final = "security"
AUDIT: Final = "audit"
"""Inside ``SECURITY``."""
CREDENTIALS: Final = "credentials"


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
    with translated(root, writing=True):
        make_directories(root)
        with Folder(root, outer=True):
            pass


def _make(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        make_directory(path)
