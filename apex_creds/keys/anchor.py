"""Where a vault's anchor is kept: a small signed text outside the vault's directory.

Guarantee: an anchor is read back as it was written or not at all; a file of one is private,
replaced whole and durably. What it says is the vault's business: it is signed, not secret.
As strong as its place: whoever can put back an older anchor with an older copy of the vault
is not noticed. The keyring's entry is as well kept as the master key; a file is less so.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import platformdirs

from apex_creds.errors import MasterKeyUnavailableError

__all__ = ["MAX_ANCHOR", "AnchorFile", "AnchorRemover", "AnchorStore", "state_anchor"]

MAX_ANCHOR: Final = 64 * 1024
_FLAGS: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
# Opening a pipe that somebody put there must not wait for its writer.
_READ: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS


@runtime_checkable
class AnchorStore(Protocol):
    """What a master key provider may offer besides keys. Both calls may block."""

    def read_anchor(self, *, vault_id: str) -> str | None:
        """Returns what was written last; None if nothing was.

        Raises:
            MasterKeyUnavailableError: It can't be told.
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


class AnchorFile:
    """An anchor in a file of its own.

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
            fd = os.open(self.path, _READ)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error.strerror or "an error") from None
        try:
            self._check(os.fstat(fd))
            return os.read(fd, MAX_ANCHOR).decode("utf-8", errors="replace")
        except OSError as error:
            raise self._unusable(error.strerror or "an error") from None
        finally:
            os.close(fd)

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_ANCHOR:
            raise self._unusable("not a small file")
        if os.name != "posix":
            return
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise self._unusable("others may write it")

    def write(self, text: str) -> None:
        """Replaces the text, durably.

        Raises:
            OSError: It could not be written; then what was there still is.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.urandom(6).hex()}")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600)
        try:
            with open(fd, "wb", 0) as raw:
                raw.write(text.encode())
                os.fsync(fd)
            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_directory(self.path.parent)

    def write_or_refuse(self, text: str) -> None:
        """As ``write``.

        Raises:
            MasterKeyUnavailableError: It could not be written.
        """
        try:
            self.write(text)
        except OSError as error:
            raise self._unusable(error.strerror or "an error") from None

    def delete_or_refuse(self) -> None:
        """Removes the file, if there is one.

        Raises:
            MasterKeyUnavailableError: It could not be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unusable(error.strerror or "an error") from None

    def _unusable(self, why: str) -> MasterKeyUnavailableError:
        return MasterKeyUnavailableError(
            f"The anchor {self.path} can't be used ({why}).",
            hint="Make it a file of yours that nobody else can write.",
        )


def state_anchor(vault_id: str) -> AnchorFile:
    """The anchor in the user's state directory, for providers that have no better place."""
    return AnchorFile(Path(platformdirs.user_state_path("apex-creds")) / "anchors" / vault_id)


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
