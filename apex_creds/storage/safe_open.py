"""Files and directories opened without being led astray.

Guarantee: what is opened here is a regular file (or a directory), ours, closed to
everybody else, and was reached through no symbolic link from the storage root down. The
checks are made on the open descriptor, so nothing can be swapped in between.
"""

from __future__ import annotations

import logging
import os
import shlex
import stat
import sys
from typing import TYPE_CHECKING, Final, Self

from apex_creds.errors import UnsafePathError, UnsafePermissionsError

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "darwin":
    import fcntl

_BASE: Final = (
    getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO put in place of a file must not block the open
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)
_DIRECTORY: Final = getattr(os, "O_DIRECTORY", 0)
_RELATIVE: Final = sys.platform != "win32" and _DIRECTORY != 0 and os.open in os.supports_dir_fd
_NEW_FILE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL

_log = logging.getLogger(__name__)
_warned = False


def check(
    path: str | Path, status: os.stat_result, *, directory: bool = False, outer: bool = False
) -> None:
    """Refuses what another user may have made, or may read or write.

    Args:
        path: For the messages.
        status: Of what was opened.
        directory: Whether it must be a directory.
        outer: Others may see which names are in it: all that lies in it is checked itself.

    Raises:
        UnsafePathError: Not a regular file (a directory), or owned by somebody else.
        UnsafePermissionsError: Group or others may use it at all, or write to it (``outer``).
    """
    right_kind = stat.S_ISDIR if directory else stat.S_ISREG
    if not right_kind(status.st_mode):
        raise UnsafePathError(
            f"{path} is not a {'directory' if directory else 'regular file'}.",
            hint="Look who put it there, and move it away.",
        )
    if sys.platform == "win32":
        _warn_unprotected()
        return
    if status.st_uid != os.geteuid():
        raise UnsafePathError(
            f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()}.",
            hint="Run as its owner, or restore it from a copy that you trust.",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & (0o022 if outer else 0o077):
        wanted = "700" if directory else "600"
        raise UnsafePermissionsError(
            f"{path} is open to other users (mode {mode:04o}).",
            hint=f"Run: chmod {wanted} {shlex.quote(str(path))}",
        )


class Folder:
    """A checked directory, held open; names in it are resolved relative to it.

    A context manager that closes it. Where the platform can't resolve relative to a
    descriptor, paths are used and the checks are as good as the platform's.
    """

    __slots__ = ("_fd", "path")

    def __init__(
        self, path: Path, *, within: Folder | None = None, outer: bool = False
    ) -> None:
        """Opens ``path``; ``within`` is its parent, if that was checked too.

        Args:
            path: The directory.
            within: Its parent.
            outer: It is a vault's home, in which everything is in folders that are checked
                themselves: others may look into it, as ApexAgent makes it, and not write.

        Raises:
            UnsafePathError: A symbolic link, not a directory, or somebody else's.
            UnsafePermissionsError: Open to others.
            OSError: Anything else, such as a directory that does not exist.
        """
        self.path = path
        self._fd = -1
        if not _RELATIVE:
            check(path, os.lstat(path), directory=True, outer=outer)
            return
        at = None if within is None else within._fd
        name = str(path) if within is None else path.name
        self._fd = os.open(name, os.O_RDONLY | _DIRECTORY | _BASE, dir_fd=at)
        try:
            check(path, os.fstat(self._fd), directory=True, outer=outer)
        except BaseException:
            self.close()
            raise

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Opens an existing file in here, checked; the caller closes it.

        Raises:
            UnsafePathError: Not a regular file, or somebody else's.
            UnsafePermissionsError: Open to others.
            OSError: Anything else; a symbolic link is ``ELOOP``.
        """
        path = self.path / name
        if not _RELATIVE:
            check(path, os.lstat(path))  # no O_NOFOLLOW here: look before opening
        fd = self._open(name, flags)
        try:
            check(path, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def create(self, name: str) -> int:
        """Creates a file that must not exist, 0600 from its first instant."""
        return self._open(name, _NEW_FILE)

    def _open(self, name: str, flags: int) -> int:
        at = self._fd if _RELATIVE else None
        return os.open(name if _RELATIVE else self.path / name, flags | _BASE, 0o600, dir_fd=at)

    def status(self, name: str) -> os.stat_result:
        """``lstat`` of an entry."""
        if _RELATIVE:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        return os.lstat(self.path / name)

    def replace(self, source: str, target: str) -> None:
        """Renames one entry over another, atomically."""
        if _RELATIVE:
            os.replace(source, target, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        else:
            os.replace(self.path / source, self.path / target)

    def unlink(self, name: str) -> None:
        """Removes an entry that is not a directory."""
        if _RELATIVE:
            os.unlink(name, dir_fd=self._fd)
        else:
            os.unlink(self.path / name)

    def entries(self) -> list[str]:
        """The names in here."""
        return os.listdir(self._fd if _RELATIVE else self.path)

    def sync(self) -> None:
        """Makes the names in here durable (a no-op where directories can't be synced)."""
        if _RELATIVE:
            os.fsync(self._fd)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sync_file(fd: int) -> None:
    """Makes a file's bytes durable, past the drive's cache on macOS too."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError:  # not every file system there has it
            os.fsync(fd)
    else:
        os.fsync(fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Writes every byte, however few the kernel takes at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _warn_unprotected() -> None:
    global _warned
    if not _warned:
        _warned = True
        _log.warning("This platform has no POSIX permissions: owners and modes go unchecked.")
