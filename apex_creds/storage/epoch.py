"""A counter in shared memory that moves with every write, so that readers need no stat.

Guarantee: while the counter stands at an even value, no cooperating writer has replaced a
document since it got there. It is odd while a writer replaces one, and stays odd if that
writer dies, so that readers look at the files themselves until the next write.

It only says whether to look; what is read is always checked. If the file is missing,
foreign or unusable, there is no counter, and every read looks. A file that has another
name too (a hard link), or another size, is not the counter: it is never written into.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
from typing import TYPE_CHECKING, Final

from apex_creds.storage.safe_open import Folder, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

EPOCH_NAME: Final = ".epoch"
_SIZE: Final = 8
_WRAP: Final = 1 << 63


class Epoch:
    """The counter of one storage, mapped into this process."""

    __slots__ = ("_cell", "_inode", "_map", "_writable")

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        self._cell: memoryview | None = None
        self._inode = (0, 0)
        self._writable = False

    def standing(self) -> int | None:
        """The counter's value if no write is going on; None: look at the files."""
        cell = self._cell
        if cell is None:
            return None
        value: int = cell[0]
        return None if value & 1 else value

    def attach(self, security: Folder, *, write: bool = False) -> None:
        """Maps the counter, anew where the file was replaced; makes it for a writer.

        Raises:
            UnsafePathError: A link or somebody else's file is in its place.
            UnsafePermissionsError: It is open to others.
            OSError: It can't be made or mapped.
        """
        try:
            status = security.status(EPOCH_NAME)
        except FileNotFoundError:
            self.detach()
            if not write:
                return
            status = _create(security)
        # What is no file at all gets its error from ``open``.
        if stat.S_ISREG(status.st_mode) and not _may_be_ours(status):
            self.detach()
            return
        inode = (status.st_dev, status.st_ino)
        if self._cell is not None and inode == self._inode and self._writable >= write:
            return
        self.detach()
        self._open(security, write=write)

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """Marks the block in which a writer that holds the lock replaces a document."""
        cell = self._cell
        if cell is None:
            yield
            return
        begun = (cell[0] | 1) + 2 * (cell[0] & 1)
        cell[0] = begun % _WRAP
        try:
            yield
        finally:
            cell[0] = (begun + 1) % _WRAP

    def detach(self) -> None:
        """Unmaps it; idempotent."""
        cell, self._cell = self._cell, None
        held, self._map = self._map, None
        if cell is not None:
            cell.release()
        if held is not None:
            held.close()

    def _open(self, security: Folder, *, write: bool) -> None:
        fd = security.open(EPOCH_NAME, os.O_RDWR if write else os.O_RDONLY)
        try:
            status = os.fstat(fd)
            if not _may_be_ours(status) or not (status.st_size or write):
                return
            if not status.st_size:
                write_all(fd, bytes(_SIZE))  # its maker died before it had a size
            access = mmap.ACCESS_WRITE if write else mmap.ACCESS_READ
            self._map = mmap.mmap(fd, _SIZE, access=access)
        finally:
            os.close(fd)
        self._inode = (status.st_dev, status.st_ino)
        self._writable = write
        self._cell = memoryview(self._map).cast("Q")


def _may_be_ours(status: os.stat_result) -> bool:
    return status.st_nlink <= 1 and status.st_size in (0, _SIZE)


def _create(security: Folder) -> os.stat_result:
    with contextlib.suppress(FileExistsError):
        fd = security.create(EPOCH_NAME)
        try:
            write_all(fd, bytes(_SIZE))
        finally:
            os.close(fd)
    return security.status(EPOCH_NAME)
