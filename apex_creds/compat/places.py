"""The old managers' directories, and the vault's directory that goes with them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from apex_creds.fs.home import CREDENTIALS, SECURITY, resolve_home

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the vault is, and where an older program's files may be besides.

    Attributes:
        old_keystore: The directory of an old key store, if it is not in the vault's place.
        old_credentials: The directory of its credentials, if it is not beside it.
    """

    home: Path
    old_keystore: Path | None = None
    old_credentials: Path | None = None


def places(config_dir: AnyPath | None, credentials_dir: AnyPath | None) -> Places:
    """Where everything is for a manager that was given these directories.

    ``…/security`` and ``…/credentials`` are the vault's own folders: the vault is what they
    are in. Any other directory is the vault's itself.
    """
    if config_dir is None and credentials_dir is None:
        return Places(resolve_home())
    config = None if config_dir is None else resolve_home(config_dir)
    credentials = None if credentials_dir is None else resolve_home(credentials_dir)
    home = _home_of(config, SECURITY) or _home_of(credentials, CREDENTIALS) or resolve_home()
    elsewhere = credentials if credentials not in (None, home / CREDENTIALS) else None
    in_place = config in (None, home / SECURITY)
    return Places(home, None if in_place else config, elsewhere)


def _home_of(directory: Path | None, folder: str) -> Path | None:
    if directory is None:
        return None
    return directory.parent if directory.name == folder else directory
