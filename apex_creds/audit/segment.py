"""The segment that is written to: locked between processes, cut clean after a failure.

Guarantee: ``append`` adds all of its bytes or, as far as the disk obeys, none; bytes are
removed from it only after they are safe beside it.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from apex_creds.audit import files
from apex_creds.audit.archive import file_name
from apex_creds.audit.files import TRY_LOCK, flock, unavailable

__all__ = ["Segment"]

_LOOK_EVERY: Final = 0.001
# Bound once: they are on the path of every append.
_monotonic: Final = time.monotonic
_lseek: Final = os.lseek
_SEEK_END: Final = os.SEEK_END


class Segment:
    """One open segment.

    Args:
        directory: The log's.
        number: Which segment; it is there already.

    Raises:
        UnsafePathError: See ``files.check``, as for UnsafePermissionsError.
        AuditTamperedError: It is not there.
        AuditUnavailableError: It can't be opened for another reason.
    """

    __slots__ = ("_inode", "_look_again", "directory", "fd", "number", "path")

    def __init__(self, directory: Path, number: int) -> None:
        self.fd = -1
        self._look_again = 0.0
        self.directory = directory
        self.number = number
        self.path = directory / file_name(number)
        self.fd = files.open_private(self.path, create=False)
        status = files.status_of(self.fd)
        self._inode = (status.st_dev, status.st_ino)

    def begin(self) -> int:
        """Takes the lock like ``lock``; returns the length, -1 if the file was taken away.

        Whether the path still leads here is asked at most once a millisecond, because it
        costs as much as the write; so a file taken away is noticed within that time.

        Raises:
            AuditUnavailableError: Another process keeps the lock.
            OSError: The file can't be examined.
        """
        try:
            flock(self.fd, TRY_LOCK)
        except OSError:
            self.lock()
        now = _monotonic()
        if now > self._look_again:
            if not self.in_place():
                return -1
            self._look_again = now + _LOOK_EVERY
        return _lseek(self.fd, 0, _SEEK_END)

    def lock(self) -> None:
        """Takes the lock that all writers take; waits at most 250 ms.

        Raises:
            AuditUnavailableError: Another process keeps it.
        """
        files.lock(self.fd, self.path)

    def unlock(self) -> None:
        """Gives the lock back; harmless when it is not held."""
        files.unlock(self.fd)

    def size(self) -> int:
        """Returns the length in bytes."""
        return files.status_of(self.fd).st_size

    def in_place(self) -> bool:
        """Tells whether the path still leads to this file."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._inode

    def append(self, data: bytes, *, end: int) -> None:
        """Adds ``data`` at ``end``, the file's length; takes back what was added if it fails.

        Raises:
            AuditUnavailableError: Not all of it could be written.
        """
        try:
            done = os.write(self.fd, data)
            while done < len(data):
                done += os.write(self.fd, data[done:])
        except OSError as error:
            # If even this fails, the next writer finds a torn line and sets it aside.
            with suppress(OSError):
                os.ftruncate(self.fd, end)
            raise unavailable("written", error) from None

    def sync(self) -> None:
        """Makes what was written durable.

        Raises:
            OSError: The disk did not take it.
        """
        os.fsync(self.fd)

    def set_aside(self, start: int, *, seq: int, now: float) -> str:
        """Moves the bytes from ``start`` on to a file of their own; returns its name and hash.

        Raises:
            AuditUnavailableError: They could not be saved; then they stay where they are.
        """
        try:
            data = files.read_between(self.fd, start, self.size())
            stem = f"torn-{seq}-{int(now * 1000)}"
            name = files.save_new(self.directory, stem, data)
            os.ftruncate(self.fd, start)
        except OSError as error:
            raise unavailable("repaired", error) from None
        digest = hashlib.sha256(data).hexdigest()
        return f"{len(data)} bytes set aside in {name}, SHA-256 {digest}"

    def close(self) -> None:
        """Closes the file; again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
