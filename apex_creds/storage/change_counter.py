"""A counter in a shared file that moves with every write, so that readers need no stat.

Guarantee: while the counter stands at an even value, no cooperating writer has replaced a
document since it got there. It is odd while a writer replaces one, and stays odd if that
writer dies, so that readers check the files themselves until the next write.

It only says whether to check again; what is read is always verified. If the file is missing,
foreign or unusable, there is no counter, and every read checks. A file that has another
name too (a hard link), or another size, is not the counter: it is never written into.
It is read by system calls, not mapped: others may cut it or copy over it at any instant.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from apex_creds.fs.private_files import Folder, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

COUNTER_NAME: Final = ".epoch"
_SIZE: Final = 8
_WRAP: Final = 1 << 63
_USABLE: Final = hasattr(os, "pread")  # elsewhere an open file can't be replaced either


class Moved(NamedTuple):
    """A move of the counter: its value before and after; odd before: a writer had died."""

    before: int
    after: int


class ChangeCounter:
    """The counter of one storage, open in this process."""

    __slots__ = ("_fd", "_inode", "_lock", "_writable")

    def __init__(self) -> None:
        self._fd = -1
        self._inode = (0, 0)
        self._writable = False
        self._lock = threading.Lock()

    def standing(self) -> int | None:
        """The counter's value if no write is going on; None: check the files."""
        if self._fd < 0:
            return None
        try:
            data = os.pread(self._fd, _SIZE + 1, 0)
        except OSError:
            return None
        value = int.from_bytes(data, sys.byteorder) if len(data) == _SIZE else 1
        return None if value & 1 else value

    def attach(self, security: Folder, *, write: bool = False) -> None:
        """Opens the counter, anew where the file was replaced; makes it for a writer.

        Raises:
            UnsafePathError: A link or somebody else's file is in its place.
            UnsafePermissionsError: It is open to others.
            OSError: It can't be made or opened.
        """
        if not _USABLE:
            return
        try:
            status = security.status(COUNTER_NAME)
        except FileNotFoundError:
            self.detach()
            if not write:
                return
            with contextlib.suppress(FileExistsError):
                fd = security.create(COUNTER_NAME)
                try:
                    write_all(fd, bytes(_SIZE))
                finally:
                    os.close(fd)
            status = security.status(COUNTER_NAME)
        # What is no file at all gets its error from ``open``.
        if stat.S_ISREG(status.st_mode) and not _may_be_ours(status):
            self.detach()
            return
        inode = (status.st_dev, status.st_ino)
        if self._fd >= 0 and inode == self._inode and self._writable >= write:
            return
        self.detach()
        self._open(security, write=write)

    @contextlib.contextmanager
    def moving(self) -> Iterator[Moved | None]:
        """Marks the block in which a writer that holds the lock replaces a document.

        A disk that does not take the first mark fails before anything was replaced; one
        that does not take the second leaves the counter odd.

        Returns:
            From where to where it moves; None where there is no counter.
        """
        with self._lock:  # a descriptor of the writer alone: a reader may detach this one
            fd = os.dup(self._fd) if self._fd >= 0 and self._writable else -1
        if fd < 0:
            yield None
            return
        try:
            data = b""
            with contextlib.suppress(OSError):
                data = os.pread(fd, _SIZE + 1, 0)
            if len(data) == _SIZE:
                before = int.from_bytes(data, sys.byteorder)
            else:  # cut or copied over: no value that anybody may have seen
                before = secrets.randbits(62) << 1
            begun = (before | 1) + 2 * (before & 1)
            _write(fd, begun)
            try:
                yield Moved(before, (begun + 1) % _WRAP)
            finally:
                with contextlib.suppress(OSError):
                    _write(fd, begun + 1)
        finally:
            os.close(fd)

    def detach(self) -> None:
        """Closes it; idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def _open(self, security: Folder, *, write: bool) -> None:
        fd = security.open(COUNTER_NAME, os.O_RDWR if write else os.O_RDONLY)
        try:
            status = os.fstat(fd)
            usable = _may_be_ours(status) and bool(status.st_size or write)
            if usable and not status.st_size:
                write_all(fd, bytes(_SIZE))  # its maker died before it had a size
        except BaseException:
            os.close(fd)
            raise
        if not usable:
            os.close(fd)
            return
        with self._lock:
            old, self._fd = self._fd, fd
            self._inode = (status.st_dev, status.st_ino)
            self._writable = write
            if old >= 0:
                os.close(old)


def _write(fd: int, value: int) -> None:
    os.pwrite(fd, (value % _WRAP).to_bytes(_SIZE, sys.byteorder), 0)


def _may_be_ours(status: os.stat_result) -> bool:
    return status.st_nlink <= 1 and status.st_size in (0, _SIZE)
