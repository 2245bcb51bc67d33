"""Where a vault's anchor is kept: a small signed text outside the vault's directory.

Guarantee: an anchor is read back as it was written or not at all; a file of one is private,
replaced whole and durably. Its content is signed, not secret, and checked by the vault.
It is as strong as its place: an attacker who can put back an older anchor with an older copy of
the vault is not noticed. The keyring protects its entry as well as the
master key; a file is protected less.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import platformdirs

from apex_creds.errors import MasterKeyUnavailableError, UnsafePathError
from apex_creds.fs.private_files import make_directories, open_small, remove_file, replace_file

__all__ = [
    "MAX_ANCHOR",
    "AnchorFile",
    "AnchorRemover",
    "AnchorStore",
    "PinStore",
    "state_anchor",
    "state_folder",
    "state_pin",
]

MAX_ANCHOR: Final = 64 * 1024


@runtime_checkable
class AnchorStore(Protocol):
    """What a master key provider may offer besides keys. Both calls may block."""

    def read_anchor(self, *, vault_id: str) -> str | None:
        """Returns what was written last; None if nothing was.

        Raises:
            MasterKeyUnavailableError: It can't be read.
        """

    def write_anchor(self, *, vault_id: str, text: str) -> None:
        """Keeps ``text`` instead of what was written before.

        Raises:
            MasterKeyUnavailableError: It could not be kept.
        """


@runtime_checkable
class AnchorRemover(Protocol):
    """What an ``AnchorStore`` may offer besides; may block."""

    def delete_anchor(self, *, vault_id: str) -> None:
        """Takes away what was written; nothing happens if nothing was.

        Only for a vault that is not there any more: without its anchor, an older copy that
        is put back is not noticed.

        Raises:
            MasterKeyUnavailableError: It could not be taken away.
        """


@runtime_checkable
class PinStore(Protocol):
    """What a master key provider may offer besides keys: which vault a home has.

    ``home`` names a home by 32 hexadecimal digits. All calls may block.
    """

    def read_pin(self, *, home: str) -> str | None:
        """Returns what was written last; None if nothing was.

        Raises:
            MasterKeyUnavailableError: It can't be read.
        """

    def write_pin(self, *, home: str, text: str) -> None:
        """Keeps ``text`` instead of what was written before.

        Raises:
            MasterKeyUnavailableError: It could not be kept.
        """

    def delete_pin(self, *, home: str) -> None:
        """Takes away what was written, of a home that is not there any more.

        Raises:
            MasterKeyUnavailableError: It could not be taken away.
        """


class AnchorFile:
    """An anchor in a separate file.

    Args:
        path: The file; its directory is made, 0700, when absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> str | None:
        """Returns the text; None if there is no file.

        Raises:
            MasterKeyUnavailableError: It can't be read, is not ours, or is too long.
        """
        try:
            fd = open_small(self.path, limit=MAX_ANCHOR)
        except FileNotFoundError:
            return None
        except UnsafePathError:
            raise self.unusable("not a small file") from None
        except OSError as error:
            raise self.unusable(error.strerror or "an error") from None
        try:
            with open(fd, "rb") as file:
                status = os.fstat(fd)
                if os.name == "posix" and (
                    status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022
                ):
                    raise self.unusable("others may write it")
                return file.read(MAX_ANCHOR).decode("utf-8", errors="replace")
        except OSError as error:
            raise self.unusable(error.strerror or "an error") from None

    def write(self, text: str) -> None:
        """Replaces the text, durably.

        Raises:
            NotDurableError: It is replaced, but the disk may not keep that.
            OSError: It could not be written; then what was there still is.
        """
        make_directories(self.path.parent)
        replace_file(self.path, [text.encode()])

    def write_or_refuse(self, text: str) -> None:
        """As ``write``.

        Raises:
            MasterKeyUnavailableError: It could not be written.
        """
        try:
            self.write(text)
        except OSError as error:
            raise self.unusable(error.strerror or "an error") from None

    def delete_or_refuse(self) -> None:
        """Removes the file, if there is one.

        Raises:
            MasterKeyUnavailableError: It could not be removed.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                remove_file(self.path)
        except OSError as error:
            raise self.unusable(error.strerror or "an error") from None

    def unusable(self, why: str) -> MasterKeyUnavailableError:
        """The error that says why it can't be used."""
        return MasterKeyUnavailableError(
            f"The anchor {self.path} can't be used ({why}).",
            hint="Make it a file of yours that nobody else can write.",
        )


def state_anchor(vault_id: str) -> AnchorFile:
    """The anchor in the user's state directory, for providers that have no better place.

    Raises:
        MasterKeyUnavailableError: This user has none.
    """
    return AnchorFile(state_folder() / "anchors" / vault_id)


def state_pin(home: str) -> AnchorFile:
    """As ``state_anchor``, for a home's pin."""
    return AnchorFile(state_folder() / "homes" / home)


def state_folder() -> Path:
    """The directory for what this user's programs keep.

    Raises:
        MasterKeyUnavailableError: This user has none.
    """
    try:
        return Path(platformdirs.user_state_path("apex-creds"))
    except RuntimeError:  # no HOME, and no entry in the list of users
        raise MasterKeyUnavailableError(
            "This user has no directory for state: HOME is not set.",
            hint="Set HOME, or XDG_STATE_HOME, to a directory of this user that is kept.",
        ) from None
