"""The log's files: opened safely, locked between processes, written whole.

Guarantee: a file that is opened for writing is a regular one of ours, 0600 or stricter, with
one name, reached through no symbolic link below the audit directory; one that
``create_whole`` makes is there with all of its bytes, durably, or not at all.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from apex_creds.audit.line import MAX_LINE
from apex_creds.errors import (
    AuditTamperedError,
    AuditUnavailableError,
    UnsafePathError,
    UnsafePermissionsError,
)
from apex_creds.fs.private_files import (
    create_exclusive,
    erase,
    replace_file,
    sync_directory,
    touch,
)
from apex_creds.fs.private_files import make_directory as make_private

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    TRY_LOCK, TRY_SHARED, UNLOCK = 1, 2, 3

    def flock(fd: int, operation: int) -> None:  # noqa: ARG001 - the shape of fcntl's
        """Warns once."""
        if not _warned:
            _warned.append(True)
            _log.warning(
                "No file locks on this system: let one process use the vault at a time."
            )
else:
    flock = fcntl.flock  # type: ignore[assignment]
    TRY_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
    TRY_SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
    UNLOCK = fcntl.LOCK_UN


__all__ = [
    "TRY_LOCK",
    "TRY_SHARED",
    "UNLOCK",
    "check",
    "create_whole",
    "end_of_lines",
    "exists",
    "flock",
    "lines",
    "lock",
    "lstat",
    "make_directory",
    "missing",
    "open_directory",
    "open_private",
    "open_to_read",
    "read_between",
    "read_file",
    "remove_unfinished",
    "save_new",
    "split_lines",
    "stable_size",
    "status_of",
    "sync_directory",
    "try_lock",
    "unavailable",
    "unlock",
    "wait_for_lock",
]

_UNFINISHED: Final = (".*.tmp", ".*.new")
"""The second is an older program's."""
_PATIENCE: Final = 0.25
_CHUNK: Final = 1 << 20
_FLAGS: Final = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
)
_POSIX: Final = hasattr(os, "geteuid")
_log = logging.getLogger("apex_creds.audit")


# -- errors ------------------------------------------------------------------------------


def unavailable(what: str, error: OSError) -> AuditUnavailableError:
    """Returns the error for a log that can't be ``what`` because of ``error``."""
    return AuditUnavailableError(
        f"The audit log can't be {what} ({os.strerror(error.errno or 0)}).",
        hint="Nothing was released. Free space or make it writable, then try again.",
    )


def missing(path: Path) -> AuditTamperedError:
    """Returns the error for a log that is missing."""
    return AuditTamperedError(f"{path} is missing.", hint="Restore it from a backup.")


def _wrong_kind(path: Path) -> UnsafePathError:
    return UnsafePathError(
        f"{path} is a symbolic link or of the wrong type.", hint="Put the real one there."
    )


def _open_error(path: Path, error: OSError) -> UnsafePathError | AuditUnavailableError:
    if not path.is_symlink() and not path.is_dir():
        return unavailable("opened", error)
    return _wrong_kind(path)


# -- locks -------------------------------------------------------------------------------


def lock(fd: int, path: Path) -> None:
    """Takes the exclusive lock of an open file; waits at most 250 ms.

    Raises:
        AuditUnavailableError: Another process keeps it.
    """
    try:
        flock(fd, TRY_LOCK)
    except BlockingIOError:
        if not wait_for_lock(fd, TRY_LOCK):
            raise AuditUnavailableError(
                "Another process keeps the audit log locked.",
                hint=f"See who has {path} open.",
            ) from None
    except OSError as error:
        raise unavailable("locked", error) from None


def try_lock(fd: int) -> bool:
    """Takes the exclusive lock of an open file if that is free; whether it was."""
    try:
        flock(fd, TRY_LOCK)
    except OSError:
        return False
    return True


def unlock(fd: int) -> None:
    """Gives a lock back; harmless when it is not held."""
    try:
        flock(fd, UNLOCK)
    except OSError:  # the kernel lets go of it at the latest when the file is closed
        return


def wait_for_lock(fd: int, mode: int) -> bool:
    """Tries for 250 ms to take a lock of that mode; whether it could.

    Raises:
        AuditUnavailableError: There are no locks there.
    """
    deadline = time.monotonic() + _PATIENCE
    pause = 0.00002
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(pause * 2, 0.002)
        try:
            flock(fd, mode)
        except BlockingIOError:
            continue
        except OSError as error:
            raise unavailable("locked", error) from None
        return True
    return False


def stable_size(fd: int) -> int:
    """Returns the length at a moment when no writer is in the middle of a line.

    If one stays there for 250 ms it is taken as it is.
    """
    if not wait_for_lock(fd, TRY_SHARED):
        return status_of(fd).st_size
    try:
        return status_of(fd).st_size
    finally:
        unlock(fd)


def status_of(fd: int) -> os.stat_result:
    """Returns the status of an open file.

    Raises:
        AuditUnavailableError: It can't be seen.
    """
    try:
        return os.fstat(fd)
    except OSError as error:
        raise unavailable("read", error) from None


_warned: list[bool] = []


# -- opening -----------------------------------------------------------------------------


def make_directory(directory: Path) -> None:
    """Makes the log's directory, 0700, where it is not there yet.

    Raises:
        AuditUnavailableError: It can't be made.
    """
    try:
        make_private(directory)
        sync_directory(directory.parent)
    except FileExistsError:
        pass
    except OSError as error:
        raise unavailable("made", error) from None


def open_directory(directory: Path) -> int:
    """Opens the log's directory, to lock it or to make it durable.

    Raises:
        UnsafePathError: See ``check``, as for UnsafePermissionsError.
        AuditTamperedError: It is not there.
        AuditUnavailableError: It can't be opened.
    """
    check(directory, lstat(directory), directory=True)
    if not _POSIX:  # pragma: no cover - Windows
        return -1
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    except OSError as error:
        raise unavailable("opened", error) from None


def lstat(path: Path) -> os.stat_result:
    """Returns the status of what is at a path, not following a link.

    Raises:
        AuditTamperedError: There is nothing.
        AuditUnavailableError: It can't be seen.
    """
    try:
        return os.lstat(path)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise unavailable("opened", error) from None


def exists(path: Path) -> bool:
    """Whether there is anything at a path, be it a link.

    Raises:
        AuditUnavailableError: It can't be seen.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unavailable("read", error) from None
    return True


def check(path: Path, status: os.stat_result, *, directory: bool) -> None:
    """Returns if what was opened may hold the log.

    Raises:
        UnsafePathError: Of the wrong type, a foreign owner, or a second name.
        UnsafePermissionsError: Others may read or write it.
    """
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


def open_private(path: Path, *, create: bool = True) -> int:
    """Opens a file to append to and to read; makes it, 0600, when absent.

    Raises:
        UnsafePathError: See ``check``, as for UnsafePermissionsError.
        AuditTamperedError: It is not there and ``create`` is false.
        AuditUnavailableError: It can't be opened.
    """
    flags = os.O_RDWR | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | _FLAGS
    try:
        if not create or path.exists():
            fd = os.open(path, flags)
        else:
            touch(path)
            fd = os.open(path, flags)
            sync_directory(path.parent)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise _open_error(path, error) from None
    try:
        check(path, status_of(fd), directory=False)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_to_read(path: Path) -> int:
    """Opens a file of the log for reading only, whatever its owner.

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
    try:
        status = status_of(fd)
    except AuditUnavailableError:
        os.close(fd)
        raise
    if stat.S_ISREG(status.st_mode):
        return fd
    os.close(fd)
    raise _wrong_kind(path)


# -- reading -----------------------------------------------------------------------------


def lines(fd: int, start: int, end: int) -> Iterator[bytes]:
    """Yields the lines between two offsets, each with its newline, in bounded memory.

    The last one has none if it is torn; nor has one that is longer than ``MAX_LINE``,
    after which nothing more is yielded.
    """
    yield from split_lines(_chunks(fd, start, end))


def split_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yields the lines that chunks make up, as ``lines`` does."""
    rest = b""
    for chunk in chunks:
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


def read_between(fd: int, start: int, end: int) -> bytes:
    """Returns the bytes between two offsets, as far as they are there."""
    return b"".join(_chunks(fd, start, end))


def read_file(path: Path) -> bytes:
    """Returns all bytes of a file; raises as ``open_to_read``."""
    fd = open_to_read(path)
    try:
        return read_between(fd, 0, status_of(fd).st_size)
    finally:
        os.close(fd)


def _chunks(fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        data = _pread(fd, min(_CHUNK, end - start), start)
        if not data:
            return
        start += len(data)
        yield data


def _pread(fd: int, count: int, offset: int) -> bytes:
    try:
        if hasattr(os, "pread"):
            return os.pread(fd, count, offset)
        os.lseek(fd, offset, os.SEEK_SET)  # pragma: no cover - Windows
        return os.read(fd, count)  # pragma: no cover - Windows
    except OSError as error:
        raise unavailable("read", error) from None


# -- writing -----------------------------------------------------------------------------


def create_whole(
    path: Path, data: bytes, *, replace: bool = False, mode: int = 0o600, durable: bool = True
) -> None:
    """Makes a file with its content, in one step.

    Without ``replace`` callers hold a lock, so that no two make the same file. What can be
    made again need not be ``durable``: a crash of the machine may leave any bytes of it.

    Raises:
        AuditUnavailableError: It could not be made, or there is one and not ``replace``.
    """
    try:
        if not replace and os.path.lexists(path):
            raise FileExistsError(17, "exists")
        # Not by a link: for a moment the file would have a second name, which is refused.
        replace_file(path, [data], mode=mode, durable=durable)
    except OSError as error:
        raise unavailable("written", error) from None


def remove_unfinished(directory: Path) -> None:
    """Removes what killed writers left of ``create_whole``; callers are alone.

    Raises:
        OSError: It can't be removed.
    """
    for pattern in _UNFINISHED:
        for path in directory.glob(pattern):
            with suppress(FileNotFoundError):
                erase(path, if_dead=True)


def save_new(directory: Path, stem: str, data: bytes) -> str:
    """Keeps bytes in a file of a new name, durably; returns the name.

    Raises:
        OSError: They could not be kept; then nothing is there.
    """
    for attempt in range(1000):
        name = f"{stem}-{attempt}.bin" if attempt else f"{stem}.bin"
        with suppress(FileExistsError):
            create_exclusive(directory / name, [data])
            return name
    raise FileExistsError(17, "too many files of that name")
