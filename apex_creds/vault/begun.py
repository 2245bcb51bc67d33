"""An init that is under way, as the next one finds it: which vault it makes, with which key.

Guarantee: the note is durable before there is a master key, and goes when the vault has been
opened for the first time. It holds no secret, and tells a key that this init made from one
that somebody else put in the same place.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

from apex_creds.errors import StorageError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import read_small
from apex_creds.fs.replacing import remove_file, replace_file

__all__ = ["Begun", "BegunNote"]

NAME: Final = ".init"
_LONGEST: Final = 64 * 1024


class BegunNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of it.

    Attributes:
        vault_id: Of the vault.
        uri: Where its master key is to be.
        check: Of that key; see ``hierarchy.master_check``.
        hashed_names: As the vault is to be made.
    """

    vault_id: str
    uri: str
    check: str
    hashed_names: bool


class Begun:
    """The note in one home; its methods are for who holds the lock of ``remains.making``.

    Args:
        home: The home; None for a vault that is made without one, of which nothing is noted.
    """

    def __init__(self, home: Path | None) -> None:
        self._path = None if home is None else home / NAME

    def is_there(self) -> bool:
        """Whether there is one at all."""
        return self._path is not None and os.path.lexists(self._path)

    def read(self) -> BegunNote | None:
        """The note; None where there is none, or none that was written here.

        Raises:
            StorageError: It can't be read.
        """
        if self._path is None:
            return None
        with translated(self._path), contextlib.suppress(FileNotFoundError):
            data = read_small(self._path, limit=_LONGEST)
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                return msgspec.json.decode(data, type=BegunNote)
        return None

    def write(self, note: BegunNote) -> None:
        """Replaces the note, durably.

        Raises:
            StorageError: It could not be written.
        """
        if self._path is None:
            return
        with translated(self._path, writing=True):
            replace_file(self._path, [msgspec.json.encode(note), b"\n"])

    def clear(self) -> None:
        """Removes the note, as far as that can be done: one too many does no harm."""
        with contextlib.suppress(OSError, StorageError):
            if self._path is not None:
                remove_file(self._path)
