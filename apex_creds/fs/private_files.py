"""Private files: opened, created, replaced and erased, each checked on its open descriptor.

Guarantee: what a ``Folder`` opens is a regular file (or a directory), ours, closed to
everybody else, and was reached through no symbolic link from the storage root down. The
checks are made on the open descriptor, so nothing can be swapped in between. What is made
here is 0600 (a directory 0700) whatever the umask.

A file that is replaced is, after a crash at any instant, what it was or what it was to be, and
durable on return. What a killed writer left beside it is removed, and overwritten as far as
the file system lets us, by the next one; a writer that lives is not disturbed. ``overwritten``
is said only when zeros were written over the very blocks, made durable and read back, on a
file system that overwrites in place; what the drive itself keeps (wear levelling) nobody
above it can see. No ``OSError`` leaves ``translated``: each becomes the ``StorageError`` that
names the path and what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shlex
import shutil
import stat
import sys
import threading
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from apex_creds.errors import (
    InvalidInputError,
    StorageError,
    StorageFullError,
    StorageReadOnlyError,
    StorageUncertainError,
    UnsafePathError,
    UnsafePermissionsError,
)
from apex_creds.model import Closes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "OPEN_FLAGS",
    "Folder",
    "NotDurableError",
    "Pieces",
    "at_once",
    "check",
    "closing_hint",
    "create_exclusive",
    "create_file",
    "durable_name",
    "erase",
    "expanded",
    "make_directories",
    "make_directory",
    "name_new",
    "open_small",
    "overwrite",
    "overwrites_in_place",
    "read_small",
    "remove_file",
    "remove_tree",
    "replace_file",
    "storage_error",
    "sweep",
    "sync_directory",
    "sync_file",
    "sync_files",
    "touch",
    "translated",
    "try_lock",
    "write_all",
]

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl


OPEN_FLAGS: Final = (
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


class NotDurableError(OSError):
    """The new version is in its place, but may be lost if the machine stops now."""


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
        global _warned
        if not _warned:
            _warned = True
            _log.warning(
                "This platform has no POSIX permissions: owners and modes go unchecked."
            )
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
            hint=closing_hint(path, status, mode=wanted),
        )


def closing_hint(path: str | Path, status: os.stat_result, *, mode: str) -> str:
    """How to close ``path`` to others, where it lies: not every file can be changed."""
    name = shlex.quote(str(path))
    read_only = False
    with contextlib.suppress(OSError, AttributeError):
        read_only = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    if status.st_uid == os.geteuid() and not read_only:
        return f"Run: chmod {mode} {name}"
    return (
        "It can't be changed from here. Copy it to a directory that only you can enter (in "
        f"memory, say): install -m 600 {name} DIR/, and name the copy."
    )


class Folder(Closes):
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
        self._fd = os.open(name, os.O_RDONLY | _DIRECTORY | OPEN_FLAGS, dir_fd=at)
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
        at = self._fd if _RELATIVE else None
        fd = os.open(name if _RELATIVE else path, flags | OPEN_FLAGS, dir_fd=at)
        try:
            check(path, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def create(self, name: str) -> int:
        """Creates a file that must not exist, 0600 from its first instant."""
        if _RELATIVE:
            return create_file(name, at=self._fd)
        return create_file(self.path / name)

    def status(self, name: str) -> os.stat_result:
        """``lstat`` of an entry."""
        if _RELATIVE:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        return os.lstat(self.path / name)

    def replace(self, source: str, target: str) -> None:
        """Renames one entry over another, atomically.

        Raises:
            NotDurableError: It failed, and yet was done.
            OSError: It was not done.
        """
        with self._leaving(source):
            if _RELATIVE:
                os.replace(source, target, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            else:
                os.replace(self.path / source, self.path / target)

    def unlink(self, name: str) -> None:
        """Removes an entry that is not a directory; raises as ``replace``."""
        with self._leaving(name):
            if _RELATIVE:
                os.unlink(name, dir_fd=self._fd)
            else:
                os.unlink(self.path / name)

    @contextlib.contextmanager
    def _leaving(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            try:
                self.status(name)
            except FileNotFoundError:
                raise NotDurableError(error.errno, error.strerror) from error
            raise

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


# -- single files ------------------------------------------------------------------------


def create_file(path: str | Path, *, at: int | None = None) -> int:
    """Creates a file that must not exist, 0600 from its first instant; the caller closes it.

    Args:
        path: The file.
        at: An open directory that a relative ``path`` is relative to.
    """
    fd = os.open(path, _NEW_FILE | OPEN_FLAGS, 0o600, dir_fd=at)
    try:
        if sys.platform != "win32" and os.fstat(fd).st_mode & 0o600 != 0o600:
            os.fchmod(fd, 0o600)  # the umask took away what its owner needs
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(path, dir_fd=at)
        raise
    return fd


def touch(path: Path) -> None:
    """Makes an empty file, such as a lock, where there is nothing yet."""
    with contextlib.suppress(FileExistsError):
        os.close(create_file(path))


def make_directory(path: Path) -> None:
    """Makes a directory that must not exist, 0700."""
    os.mkdir(path, 0o700)
    if sys.platform != "win32" and os.lstat(path).st_mode & 0o700 != 0o700:
        os.chmod(path, 0o700)  # as in create_file; there is no descriptor without a right


def make_directories(path: Path) -> None:
    """Makes a directory and those above it that are missing, 0700 and durable."""
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            make_directory(directory)
        # The parent is not ours to check, and perhaps not to read; then it can't be synced.
        with contextlib.suppress(PermissionError):
            sync_directory(directory.parent)


def expanded(path: str | Path) -> Path:
    """An absolute path, ``~`` replaced; its last component may be a link still.

    Raises:
        InvalidInputError: It begins with ``~``, and this user has no home directory.
    """
    try:
        return Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError:
        raise InvalidInputError(
            f"{path} can't be found: HOME is not set, and the system does not know this user.",
            hint="Name the vault's directory with --home or APEX_CREDS_HOME, or set HOME.",
        ) from None


def open_small(path: Path, *, limit: int, follow: bool = False) -> int:
    """Opens a regular file to read; the caller closes it.

    Args:
        path: The file; a pipe, a device or a directory is refused, not waited for.
        limit: Bytes that it may have.
        follow: Whether it may be a symbolic link.

    Raises:
        UnsafePathError: It is something else, or longer.
        OSError: It can't be opened.
    """
    flags = OPEN_FLAGS & ~getattr(os, "O_NOFOLLOW", 0) if follow else OPEN_FLAGS
    fd = os.open(path, os.O_RDONLY | flags)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_size <= limit:
        return fd
    os.close(fd)
    if stat.S_ISREG(status.st_mode):
        what, hint = (
            f"is longer than {limit} bytes",
            "Look what it is: that is too long for it.",
        )
    else:
        what, hint = (
            "is not a regular file",
            "Name a file (or -, where that is standard input).",
        )
    raise UnsafePathError(f"{path} {what}.", hint=hint)


def read_small(path: Path, *, limit: int, follow: bool = False) -> bytes:
    """All of a file; arguments and errors as ``open_small``."""
    with open(open_small(path, limit=limit, follow=follow), "rb") as file:
        return file.read(limit)


def sync_directory(path: Path, *, renamed: bool = False) -> None:
    """Makes the names in a directory durable (a no-op where that can't be done).

    Args:
        path: The directory.
        renamed: A new version has just got its name in there.

    Raises:
        NotDurableError: It failed, with ``renamed``.
        OSError: It failed.
    """
    if not _DIRECTORY:
        return
    with durable_name() if renamed else contextlib.nullcontext():
        fd = os.open(path, os.O_RDONLY | _DIRECTORY | getattr(os, "O_CLOEXEC", 0))
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def durable_name() -> Iterator[None]:
    """For what makes a name durable after it was given: its failure is ``NotDurableError``."""
    try:
        yield
    except OSError as error:
        raise NotDurableError(error.errno, error.strerror) from error


def sync_file(fd: int) -> None:
    """Makes a file's bytes durable, past the drive's cache on macOS too."""
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError:  # not every file system there has it
            os.fsync(fd)
    else:
        os.fsync(fd)


_FLUSHERS: Final = 16
"""Flushes that are waited for at the same time."""


def sync_files(fds: Iterable[int]) -> None:
    """As ``sync_file``, for several at once."""
    at_once([partial(sync_file, fd) for fd in fds])


def at_once(flushes: Sequence[Callable[[], object]]) -> None:
    """Waits for several flushes at the same time, which a file system does in one.

    One after another, each costs as much as all of them. (That writing has begun already is
    no help: each still has the journal of the file system, and the drive, to wait for.)

    Raises:
        OSError: One failed; the others were waited for.
    """
    failures: list[OSError] = []

    def flush(some: Iterable[Callable[[], object]]) -> None:
        for each in some:
            try:
                each()
            except OSError as error:
                failures.append(error)

    parts = [flushes[start::_FLUSHERS] for start in range(min(_FLUSHERS, len(flushes)))]
    threads: list[threading.Thread] = []
    for part in parts[1:]:
        thread = threading.Thread(target=flush, args=(part,), name="apex-creds flush")
        try:
            thread.start()
        except RuntimeError:  # no thread can be had, as while the interpreter ends
            flush(part)
        else:
            threads.append(thread)
    flush(chain.from_iterable(parts[:1]))
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Writes every byte, however few the kernel takes at a time."""
    with memoryview(data) as rest:
        done = 0
        while done < len(rest):
            done += os.write(fd, rest[done:])


_IN_PLACE: Final = frozenset({"ext2", "ext3", "ext4", "xfs"})
_CHUNK: Final = bytes(1 << 20)


def overwrite(fd: int) -> Literal["overwritten", "unverifiable"]:
    """Overwrites an unlinked file with zeros; ``fd`` must be open for reading and writing.

    Never raises for a failing file system: its caller's new version is durable already,
    so the answer is then ``unverifiable``. A file that still has a name (a hard link,
    which may be somebody's backup) is left alone.
    """
    try:
        status = os.fstat(fd)
        if status.st_nlink != 0:
            return "unverifiable"
        os.lseek(fd, 0, os.SEEK_SET)
        left = status.st_size
        while left:
            left -= os.write(fd, memoryview(_CHUNK)[: min(left, len(_CHUNK))])
        sync_file(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        left, zero = status.st_size, True
        while left and zero:
            chunk = os.read(fd, min(left, len(_CHUNK)))
            zero = bool(chunk) and not chunk.strip(b"\0")
            left -= len(chunk)
        sure = zero and overwrites_in_place(status.st_dev)
    except OSError:
        return "unverifiable"
    return "overwritten" if sure else "unverifiable"


def overwrites_in_place(device: int, *, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether the file system on ``device`` is known to write data over data.

    Copy-on-write, log-structured, compressing and stacked file systems are not; neither
    is ext3/ext4 with ``data=journal``, which keeps a copy in the journal. Unknown is no.
    """
    if sys.platform == "win32":
        return False
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return False
    number = f"{os.major(device)}:{os.minor(device)}"
    found = [line for line in lines if line.split(" ", 3)[2:3] == [number]]
    # proc(5): file system type, source, options of the super block
    tails = [line.partition(" - ")[2].split(" ") for line in found]
    return bool(tails) and all(
        len(tail) >= 3 and tail[0] in _IN_PLACE and "data=journal" not in tail[2].split(",")
        for tail in tails
    )


Pieces: TypeAlias = "Iterable[bytes | bytearray | memoryview]"
_TRIES: Final = 100


def replace_file(
    path: Path, pieces: Pieces, *, mode: int = 0o600, durable: bool = True
) -> None:
    """Puts a whole new version in place, durably; what killed writers left beside it goes.

    Args:
        path: The file.
        pieces: What is in it.
        mode: Its permissions.
        durable: False for what can be made again: a crash of the machine may leave any bytes.

    Raises:
        NotDurableError: It is in place, but may not be durable.
        OSError: It could not be written; then what was there still is.
    """
    sweep(path)
    with _temporary(path, pieces, mode=mode, durable=durable) as temporary:
        os.replace(temporary, path)
    if durable:
        sync_directory(path.parent, renamed=True)


def create_exclusive(path: Path, pieces: Pieces) -> None:
    """As ``replace_file``, but there must be nothing.

    Raises:
        FileExistsError: There is something, or another process was first.
        NotDurableError, OSError: As ``replace_file``.
    """
    sweep(path)
    with _temporary(path, pieces) as temporary:
        name_new(temporary, path)
    sync_directory(path.parent, renamed=True)


def name_new(temporary: Path, path: Path) -> None:
    """Renames a file where there is nothing yet.

    Raises:
        FileExistsError: There is something.
        OSError: It could not be done.
    """
    try:
        os.link(temporary, path)  # fails when something is there, unlike a rename
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # no links there
        if os.path.lexists(path):
            raise FileExistsError(17, "exists") from None
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def remove_file(path: Path) -> None:
    """Removes a name, durably.

    Raises:
        NotDurableError: It is gone, but may come back.
        OSError: It could not be removed.
    """
    os.unlink(path)
    sync_directory(path.parent, renamed=True)


def remove_tree(path: Path) -> None:
    """Removes a directory and what is in it; says in the log what is still there then."""
    for _ in range(2):
        with contextlib.suppress(OSError):  # of its fstat it lets one pass
            shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            return
    _log.warning("%s could not be removed: remove it, it has a copy of a vault in it.", path)


@contextlib.contextmanager
def _temporary(
    path: Path, pieces: Pieces, *, mode: int = 0o600, durable: bool = True
) -> Iterator[Path]:
    """A durable file beside ``path``, locked while its writer lives; gone if that fails."""
    temporary, fd = _beside(path)
    try:
        if mode != 0o600 and sys.platform != "win32":
            os.fchmod(fd, mode)
        for piece in pieces:
            write_all(fd, piece)
        if durable:
            sync_file(fd)
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _beside(path: Path) -> tuple[Path, int]:
    for _ in range(_TRIES):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        fd = create_file(temporary)
        try:
            if try_lock(fd) is not False and os.fstat(fd).st_nlink > 0:
                return temporary, fd
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        os.close(fd)  # somebody sweeps, and took it for a dead writer's
    raise FileExistsError(17, "exists")


def sweep(path: Path) -> None:
    """Removes what dead writers left; a living one has its file locked."""
    left = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.tmp")
    for name in os.listdir(path.parent):
        if left.fullmatch(name):
            with contextlib.suppress(OSError):
                erase(path.with_name(name), if_dead=True)


def erase(path: Path, *, if_dead: bool = False) -> None:
    """Removes a file, and overwrites it as far as the file system lets us.

    Args:
        path: The file.
        if_dead: Only one that no living writer has locked.

    Raises:
        OSError: It could not be removed.
    """
    try:
        fd = os.open(path, os.O_RDWR | OPEN_FLAGS)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        os.unlink(path)  # a link that somebody put there
        return
    try:
        if if_dead and not try_lock(fd):
            return
        os.unlink(path)
        overwrite(fd)
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool | None:
    """Takes the lock of an open file, unless another has it; None where there are no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, NameError):
        return None
    return True


_FULL: Final = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NOT_A_FILE: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.EISDIR})


@contextlib.contextmanager
def translated(path: str | os.PathLike[str], *, writing: bool = False) -> Iterator[None]:
    """Turns an ``OSError`` from the block into a ``StorageError`` about ``path``."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path, writing=writing) from error


def storage_error(
    error: OSError, path: str | os.PathLike[str], *, writing: bool = False
) -> StorageError:
    """The ``StorageError`` that says what ``error`` means for ``path``."""
    code = error.errno
    reason = error.strerror or type(error).__name__
    if isinstance(error, NotDurableError):
        return StorageUncertainError(
            f"{path} was changed, but the disk may not keep it ({reason}).",
            hint="Check it and the disk before you try again.",
        )
    if code in _NOT_A_FILE:
        return UnsafePathError(
            f"{path} is a symbolic link or not what belongs there ({reason}).",
            hint="Look who put it there; replace it by the real file or directory.",
        )
    if code in _FULL:
        return StorageFullError(
            f"No space left to write {path} ({reason}).",
            hint="Free some space and retry; the previous version is intact.",
        )
    if writing and code in _REFUSED:
        return StorageReadOnlyError(
            f"{path} can't be written ({reason}).",
            hint="Check the mount and that the directory is yours and writable.",
        )
    return _other(code, reason, path)


def _other(code: int | None, reason: str, path: str | os.PathLike[str]) -> StorageError:
    if code == errno.ENOENT and os.path.isdir(os.path.dirname(path) or "."):
        return StorageError(
            f"There is no {path}.",
            hint="Check its name. A file of the vault: put it back from a backup "
            "(apex-creds restore).",
        )
    if code == errno.ENOENT:
        return StorageError(
            f"The directory of {path} is missing.",
            hint="Put it back, from a backup if need be (apex-creds restore). Where no vault "
            "was, make one: apex-creds init.",
        )
    if code in _REFUSED:
        return StorageError(
            f"{path} can't be read ({reason}).", hint="Check that it is yours and readable."
        )
    return StorageError(
        f"The storage failed at {path} ({reason}).", hint="Try apex-creds doctor."
    )
