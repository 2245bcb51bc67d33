"""Making room where an older program's files lie at the paths of this project's own.

Guarantee: files are renamed, never changed. They are moved only if the key store opens
under an old master key, which a document of this project, however damaged, can't. The key
store goes last, so that after a crash the next call sees what it has to go on with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import anyio.to_thread

from apex_creds.errors import UnsafePathError, VaultExistsError
from apex_creds.fs.home import AUDIT, CREDENTIALS, SECURITY
from apex_creds.fs.lock import WriteLock
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import Folder, make_directory
from apex_creds.migration.beside import KEYSTORE_FILE, LEGACY, is_legacy
from apex_creds.migration.detect import is_ours
from apex_creds.migration.files import move, read_file, sync_directory
from apex_creds.migration.masters import find_masters
from apex_creds.migration.secretbox import open_keystore
from apex_creds.migration.sources import CONFIG_FILE, section_paths

_SECONDS: Final = 10.0


async def set_aside(home: Path, *, environ: Mapping[str, str] | None = None) -> bool:
    """Moves the files of the SecretBox format into ``legacy/``; to be called before ``init``.

    Args:
        home: The vault's directory.
        environ: Instead of the process's environment, for the old master key.

    Returns:
        Whether there were any.

    Raises:
        DecryptionError: The key store does not open; nothing was moved.
        VaultExistsError: Files of a vault of this project lie among them.
        StorageError: They can't be read or moved.
    """
    if not await anyio.to_thread.run_sync(is_legacy, home):
        return False
    masters = await find_masters(environ)
    return await anyio.to_thread.run_sync(partial(_set_aside, home, masters.keys))


def _set_aside(home: Path, keys: tuple[bytes, ...]) -> bool:
    with (
        translated(home, writing=True),
        Folder(home, outer=True) as root,
        Folder(home / SECURITY, within=root) as security,
        WriteLock(timeout=_SECONDS).held(security),
    ):
        if not is_legacy(home):
            return False  # another process was first
        keystore = home / SECURITY / KEYSTORE_FILE
        open_keystore(read_file(keystore).data, keys)
        _refuse_ours(home)
        _move_all(home)
    return True


def _refuse_ours(home: Path) -> None:
    """A vault whose key store was replaced by an old one is not to be taken apart."""
    remains = list((home / SECURITY / AUDIT).glob("*.jsonl"))
    for path in section_paths(home / CREDENTIALS):
        data = read_file(path).data
        if data and is_ours(data):
            remains.append(path)
    if remains:
        raise VaultExistsError(
            f"The key store is an old program's, but {remains[0]} is of a vault.",
            hint="Restore security/keystore.enc from a backup, or choose another directory.",
        )


def _move_all(home: Path) -> None:
    folder = home / LEGACY
    if not os.path.lexists(folder):
        make_directory(folder)
        sync_directory(home)
    if folder.is_symlink() or not folder.is_dir():
        raise UnsafePathError(f"{folder} is not a directory.", hint="Move it away.")
    for path in (*section_paths(home / CREDENTIALS), *section_paths(home / SECURITY)):
        move(path, folder / path.name)
    move(home / SECURITY / CONFIG_FILE, folder / CONFIG_FILE)
    move(home / SECURITY / KEYSTORE_FILE, folder / KEYSTORE_FILE)
