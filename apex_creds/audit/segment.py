"""The log's file: opened safely, locked between processes, cut clean after a failure.

Guarantee: the file is a regular one of ours, 0600 or stricter, reached through no
symbolic link below the audit directory; ``append`` adds all of its bytes or, as far as
the disk obeys, none; bytes are removed from it only after they are safe beside it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from apex_creds.audit.chain import MAX_LINE
from apex_creds.errors import (
    AuditTamperedError,
    AuditUnavailableError,
    UnsafePathError,
    UnsafePermissionsError,
)

if sys.platform != "win32":
    import fcntl

    _flock: Final = fcntl.flock
    _TRY_LOCK: Final = fcntl.LOCK_EX | fcntl.LOCK_NB
    _TRY_SHARED: Final = fcntl.LOCK_SH | fcntl.LOCK_NB
    _UNLOCK: Final = fcntl.LOCK_UN
else:  # pragma: no cover
    _TRY_LOCK, _TRY_SHARED, _UNLOCK = 1, 2, 3

    def _flock(fd: int, operation: int) -> None:  # noqa: ARG001 - the shape of fcntl's
        _warn_unlocked()


__all__ = [
    "SEGMENT",
    "Segment",
    "end_of_lines",
    "lines",
    "missing",
    "open_to_read",
    "settled_size",
    "unavailable",
]

SEGMENT: Final = "000001.jsonl"

_LOCK_PATIENCE: Final = 0.25
_LOOK_EVERY: Final = 0.001
# Bound once: they are on the path of every append.
_monotonic: Final = time.monotonic
_lseek: Final = os.lseek
_SEEK_END: Final = os.SEEK_END
_CHUNK: Final = 1 << 20
_FLAGS: Final = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
)
_POSIX: Final = hasattr(os, "geteuid")
_log = logging.getLogger("apex_creds.audit")


class Segment:
    """One open log file."""

    __slots__ = ("_inode", "_look_again", "directory", "fd", "path")

    def __init__(self, directory: Path, *, create: bool = True) -> None:
        """Opens ``SEGMENT`` in ``directory``; makes both, 0700 and 0600, when absent.

        Raises:
            UnsafePathError: A symbolic link, a foreign owner, not a regular file.
            UnsafePermissionsError: Others may read or write it.
            AuditTamperedError: It is not there and ``create`` is false.
            AuditUnavailableError: It can't be opened for another reason.
        """
        self.fd = -1
        self._look_again = 0.0
        self.directory = directory
        self.path = directory / SEGMENT
        if create:
            _make_directory(directory)
        _check(directory, _lstat(directory), directory=True)
        self.fd = _open(self.path, create=create)
        status = os.fstat(self.fd)
        try:
            _check(self.path, status, directory=False)
        except BaseException:
            self.close()
            raise
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
            _flock(self.fd, _TRY_LOCK)
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
        try:
            _flock(self.fd, _TRY_LOCK)
        except BlockingIOError:
            if not _wait_for_lock(self.fd, _TRY_LOCK):
                raise AuditUnavailableError(
                    "Another process keeps the audit log locked.",
                    hint=f"See who has {self.path} open.",
                ) from None
        except OSError as error:
            raise unavailable("locked", error) from None

    def unlock(self) -> None:
        """Gives the lock back; harmless when it is not held."""
        _flock(self.fd, _UNLOCK)

    def size(self) -> int:
        """Returns the length in bytes."""
        return os.fstat(self.fd).st_size

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
            end = os.fstat(self.fd).st_size
            name, digest = self._save(start, end, f"torn-{seq}-{int(now * 1000)}")
            os.ftruncate(self.fd, start)
        except OSError as error:
            raise unavailable("repaired", error) from None
        return f"{end - start} bytes set aside in {name}, SHA-256 {digest}"

    def _save(self, start: int, end: int, stem: str) -> tuple[str, str]:
        fd, name = _create_new(self.directory, stem)
        digest = hashlib.sha256()
        try:
            for chunk in _chunks(self.fd, start, end):
                digest.update(chunk)
                _write_all(fd, chunk)
            os.fsync(fd)
        except BaseException:
            os.unlink(self.directory / name)
            raise
        finally:
            os.close(fd)
        _sync_directory(self.directory)
        return name, digest.hexdigest()

    def close(self) -> None:
        """Closes the file; again does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _wait_for_lock(fd: int, mode: int) -> bool:
    deadline = time.monotonic() + _LOCK_PATIENCE
    pause = 0.00002
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(pause * 2, 0.002)
        with suppress(BlockingIOError):
            _flock(fd, mode)
            return True
    return False


def settled_size(fd: int) -> int:
    """Returns the length at a moment when no writer is in the middle of a line.

    If one stays there for 250 ms it is taken as it is.
    """
    if not _wait_for_lock(fd, _TRY_SHARED):
        return os.fstat(fd).st_size
    try:
        return os.fstat(fd).st_size
    finally:
        _flock(fd, _UNLOCK)


def open_to_read(path: Path) -> int:
    """Opens a log file for reading only, whoever owns it.

    Raises:
        AuditTamperedError: It is not there.
        AuditUnavailableError: It can't be opened.
        UnsafePathError: It is a symbolic link or not a regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FLAGS)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise _open_error(path, error) from None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise _wrong_kind(path)


def lines(fd: int, start: int, end: int) -> Iterator[bytes]:
    """Yields the lines between two offsets, each with its newline, in bounded memory.

    The last one has none if it is torn; nor has one that is longer than ``MAX_LINE``,
    after which nothing more is yielded.
    """
    rest = b""
    for chunk in _chunks(fd, start, end):
        rest += chunk
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line + b"\n"
        if len(rest) >= MAX_LINE:
            break
    if rest:
        yield rest


def end_of_lines(fd: int, size: int) -> int:
    """Returns the offset after the last newline before ``size``; 0 if there is none."""
    while size > 0:
        start = max(0, size - MAX_LINE)
        found = _pread(fd, size - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = start
    return 0


def _chunks(fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        data = _pread(fd, min(_CHUNK, end - start), start)
        if not data:
            return
        start += len(data)
        yield data


def _pread(fd: int, count: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, count, offset)
    os.lseek(fd, offset, os.SEEK_SET)  # pragma: no cover - Windows
    return os.read(fd, count)  # pragma: no cover - Windows


def unavailable(what: str, error: OSError) -> AuditUnavailableError:
    """Returns the error for a log that can't be ``what`` because of ``error``."""
    return AuditUnavailableError(
        f"The audit log can't be {what} ({os.strerror(error.errno or 0)}).",
        hint="Nothing was released. Free space or make it writable, then try again.",
    )


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700)
        _sync_directory(directory.parent)
    except FileExistsError:
        pass
    except OSError as error:
        raise unavailable("made", error) from None


def _lstat(path: Path) -> os.stat_result:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise unavailable("opened", error) from None


def _check(path: Path, status: os.stat_result, *, directory: bool) -> None:
    if not (stat.S_ISDIR if directory else stat.S_ISREG)(status.st_mode):
        raise _wrong_kind(path)
    if not directory and status.st_nlink > 1:
        raise UnsafePathError(
            f"{path} has a second name (a hard link).", hint="Remove that name."
        )
    if not _POSIX:  # pragma: no cover - Windows
        return
    if status.st_uid != os.geteuid():
        raise UnsafePathError(f"{path} belongs to another user.", hint="Run as its owner.")
    if status.st_mode & 0o077:
        mode = "700" if directory else "600"
        raise UnsafePermissionsError(
            f"{path} can be read or written by others.", hint=f"Run: chmod {mode} {path}"
        )


def _open(path: Path, *, create: bool) -> int:
    flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | _FLAGS
    try:
        if not create or path.exists():
            return os.open(path, flags)
        fd = os.open(path, flags | os.O_CREAT, 0o600)
        _sync_directory(path.parent)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise _open_error(path, error) from None
    return fd


def missing(path: Path) -> AuditTamperedError:
    """Returns the error for a log that ought to be there."""
    return AuditTamperedError(f"{path} is missing.", hint="Restore it from a backup.")


def _open_error(path: Path, error: OSError) -> UnsafePathError | AuditUnavailableError:
    if not path.is_symlink() and not path.is_dir():
        return unavailable("opened", error)
    return _wrong_kind(path)


def _wrong_kind(path: Path) -> UnsafePathError:
    return UnsafePathError(
        f"{path} is a symbolic link or of the wrong type.", hint="Put the real one there."
    )


def _create_new(directory: Path, stem: str) -> tuple[int, str]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
    for attempt in range(1000):
        name = f"{stem}-{attempt}.bin" if attempt else f"{stem}.bin"
        with suppress(FileExistsError):
            return os.open(directory / name, flags, 0o600), name
    raise FileExistsError(17, "too many files of that name")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_directory(directory: Path) -> None:
    if not _POSIX:  # pragma: no cover - Windows
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_warned: list[bool] = []


def _warn_unlocked() -> None:  # pragma: no cover - Windows
    if not _warned:
        _warned.append(True)
        _log.warning("No file locks on this system: let one process use the vault at a time.")
