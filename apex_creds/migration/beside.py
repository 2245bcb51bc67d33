"""Whether an older program's files lie beside a vault: the look that every command takes.

Guarantee: finds files by where they are and by what is in their first bytes; reads nothing
else, changes nothing, and loads nothing of what a migration needs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from apex_creds.fs.home import SECURITY
from apex_creds.migration.detect import is_ours
from apex_creds.migration.files import present, read_head
from apex_creds.migration.state import DOCUMENT
from apex_creds.vault import Vault

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
    """Whether there is anything to migrate by itself, or to go on with."""
    found = automatic_paths(vault.home)
    return bool(found) or vault.store.storage.change_token(DOCUMENT) is not None


def is_legacy(home: Path) -> bool:
    """Whether the key store in a vault's place is an older program's, by its looks.

    Raises:
        StorageError: It can't be read safely.
    """
    path = home / SECURITY / KEYSTORE_FILE
    if not os.path.lexists(path):
        return False
    head = read_head(path, _HEAD)
    return bool(head) and not is_ours(head)
