"""Which of the homes that share a vault this is.

Guarantee: a home has one number of 128 bits for good, whichever process comes first; it
names the home's audit log, which no other home writes. It is no secret: a home that gives
itself another number has an empty log of that number, which its vault's database shows.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path
from typing import Final

from apex_creds.errors import CorruptDocumentError
from apex_creds.fs.home import SECURITY
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import Folder, sync_file, write_all

__all__ = ["NODE", "log_id", "make_node", "node_of"]

NODE: Final = "node"
_NUMBER: Final = re.compile(rb"[0-9a-f]{32}\n", re.ASCII)


def node_of(home: Path) -> str | None:
    """The number of a home; None for one whose vault is in its own files.

    Raises:
        CorruptDocumentError: The file that says it was altered.
        UnsafePathError, UnsafePermissionsError: It is not ours alone.
    """
    with translated(home / SECURITY / NODE):
        try:
            with (
                Folder(home, outer=True) as root,
                Folder(home / SECURITY, within=root) as folder,
            ):
                return _read(folder, home)
        except FileNotFoundError:
            return None


def make_node(home: Path) -> str:
    """As ``node_of``, for a vault that is elsewhere; the first process of a home chooses.

    Raises:
        StorageError: It can't be written.
    """
    found = node_of(home)
    if found is not None:
        return found
    with (
        translated(home / SECURITY / NODE, writing=True),
        Folder(home, outer=True) as root,
        Folder(home / SECURITY, within=root) as folder,
    ):
        temporary = f".{NODE}.{secrets.token_hex(8)}.tmp"
        fd = folder.create(temporary)
        try:
            write_all(fd, secrets.token_hex(16).encode() + b"\n")
            sync_file(fd)
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(folder.path / temporary, folder.path / NODE)
        folder.unlink(temporary)
        folder.sync()
        return _read(folder, home)


def log_id(home: Path, vault_id: str) -> str:
    """Whose log is in a home: the vault's, or, where homes share it, the home's own."""
    return node_of(home) or vault_id


def _read(folder: Folder, home: Path) -> str:
    with open(folder.open(NODE), "rb") as file:
        data = file.read(64)
    if not _NUMBER.fullmatch(data):
        raise CorruptDocumentError(
            f"{home / SECURITY / NODE} is not what was written there.",
            hint="Restore it: it has the name of this home's audit log.",
        )
    return data.decode().strip()
