"""``file:PATH`` - master keys in a file, for containers and systemd credentials.

Guarantee: the file is read only when it is a regular file, no link, owned by us or root,
and closed to everybody else. It changes only as a whole: complete before or complete after,
durable on return, one writer at a time. A version in it is never overwritten, and the
newest is never deleted.

The format is text: one line ``v<N> <base64 of 32 bytes>`` per version in rising order; a
bare base64 line is ``v1``. Every line ends with a line feed, the last one may lack it.
One file serves one vault: rotation deletes old versions from it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

import anyio.to_thread
import filelock

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    ApexCredsError,
    InvalidInputError,
    MasterKeyNotFoundError,
    MasterKeyReadOnlyError,
    MasterKeyUnavailableError,
    StorageFullError,
    StorageLockedError,
    UnsafePathError,
    UnsafePermissionsError,
    WrongMasterKeyError,
)
from apex_creds.keys.base import (
    MASTER_KEY_BYTES,
    check_reference,
    decode_key,
    encode_key,
    wipe,
)

__all__ = ["FileProvider"]

_MAX_BYTES: Final = 64 * 1024
_LOCK_SECONDS: Final = 10.0
_REREADS: Final = 5
_LINE: Final = re.compile(rb"(?:v([1-9][0-9]{0,9}) )?([A-Za-z0-9+/]{43}=)")
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_NONBLOCK: Final = getattr(os, "O_NONBLOCK", 0)
_READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)

_NO_LINKS: Final = (errno.EPERM, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS))

_Keys = dict[int, SecretBytes]


class FileProvider:
    """Master keys in one text file.

    Args:
        path: The file; ``~`` is expanded, and a relative path is made absolute.

    Raises:
        InvalidInputError: The path is empty or has characters that are not printable.
    """

    scheme: ClassVar[str] = "file"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        if not text or not text.isprintable():
            raise InvalidInputError(
                "The path of the master key file is empty or not printable.",
                hint="Write file:PATH, like file:/etc/apex-creds/master.key.",
            )
        self._path = Path(os.path.abspath(os.path.expanduser(text)))

    @property
    def uri(self) -> str:
        """See ``MasterKeyProvider``."""
        return f"file:{self._path}"

    async def create(
        self, *, vault_id: str, version: int
    ) -> tuple[SecretBytes, dict[str, str]]:
        """See ``MasterKeyProvider``; a version that the file has already is used.

        Raises also the errors of ``load``, StorageFullError and StorageLockedError.
        """
        check_reference(vault_id, version)
        return await anyio.to_thread.run_sync(self._create, version), {}

    async def load(
        self,
        *,
        vault_id: str,
        version: int,
        params: Mapping[str, str],  # noqa: ARG002
    ) -> SecretBytes:
        """See ``MasterKeyProvider``.

        Raises also UnsafePathError and UnsafePermissionsError.
        """
        check_reference(vault_id, version)
        return await anyio.to_thread.run_sync(self._load, version)

    async def discard(self, *, vault_id: str, version: int) -> None:
        """See ``MasterKeyProvider``; keeps the newest version, which may be in use.

        The file does not know whose key it holds, so a failed ``init`` leaves it behind,
        and the next one uses it.
        """
        check_reference(vault_id, version)
        await anyio.to_thread.run_sync(self._discard, version)

    def _load(self, version: int) -> SecretBytes:
        found = _pick(_read(self._path), version)
        if found is not None:
            return found
        raise MasterKeyNotFoundError(
            f"{self._path} has no master key v{version}.",
            hint="Use the file that the vault was initialised with, or its backup.",
        )

    def _create(self, version: int) -> SecretBytes:
        existing = _pick(_read_or_nothing(self._path), version)
        if existing is not None:
            return existing
        with _exclusive(self._path):
            return self._add(version)

    def _add(self, version: int) -> SecretBytes:
        keys = _read_or_nothing(self._path)
        try:
            if version not in keys:
                self._append(keys, version)
            return keys.pop(version)
        finally:
            _close(keys)

    def _append(self, keys: _Keys, version: int) -> None:
        new = not keys
        keys[version] = SecretBytes.random(MASTER_KEY_BYTES)
        _replace(self._path, keys, new=new)
        with _reread(self._path, version) as back:
            if back is not None and back.equals(keys[version]):
                return
        raise MasterKeyUnavailableError(
            f"{self._path} did not keep the master key.", hint="Use another file system."
        )

    def _discard(self, version: int) -> None:
        if not _superseded(self._path, version):
            return
        with _exclusive(self._path):
            self._remove(version)

    def _remove(self, version: int) -> None:
        if not _superseded(self._path, version):
            return
        keys = _read(self._path)
        try:
            keys.pop(version).close()
            with _shredding(self._path):
                _replace(self._path, keys, new=False)
        finally:
            _close(keys)


def _superseded(path: Path, version: int) -> bool:
    keys = _read_or_nothing(path)
    _close(keys)
    return version in keys and version != max(keys)


@contextlib.contextmanager
def _reread(path: Path, version: int) -> Iterator[SecretBytes | None]:
    back = _pick(_read(path), version)
    try:
        yield back
    finally:
        if back is not None:
            back.close()


def _pick(keys: _Keys, version: int) -> SecretBytes | None:
    found = keys.pop(version, None)
    _close(keys)
    return found


def _close(keys: _Keys) -> None:
    for key in keys.values():
        key.close()


# -- reading -----------------------------------------------------------------------


def _read_or_nothing(path: Path) -> _Keys:
    try:
        return _read(path)
    except MasterKeyNotFoundError:
        return {}


def _read(path: Path) -> _Keys:
    for _ in range(_REREADS):
        text = _read_once(path)
        if text is not None:
            try:
                return _parse(path, text)
            finally:
                wipe(text)
    raise MasterKeyUnavailableError(f"{path} keeps changing.", hint="Try again.")


def _read_once(path: Path) -> bytearray | None:
    """The file's bytes; None when it was replaced meanwhile (old versions are shredded)."""
    fd = _open(path)
    try:
        _check(path, os.fstat(fd))
        text = _read_all(path, fd)
        if os.fstat(fd).st_nlink > 0:
            return text
        wipe(text)
        return None
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | _NOFOLLOW | _NONBLOCK)
    except OSError as error:
        failure = _cannot_open(path, error)
    raise failure


def _cannot_open(path: Path, error: OSError) -> ApexCredsError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return MasterKeyNotFoundError(
            f"There is no master key file {path}.",
            hint="Check the path; apex-creds init makes the file, its directory must exist.",
        )
    if error.errno in (errno.ELOOP, errno.EMLINK):
        return UnsafePathError(
            f"{path} is a symbolic link.", hint="Name the file that it points to."
        )
    return MasterKeyUnavailableError(
        f"{path} can't be read ({error.strerror}).", hint="Check its owner and permissions."
    )


def _check(path: Path, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise UnsafePathError(f"{path} is not a regular file.", hint="Name a regular file.")
    if os.name != "posix":
        return
    if info.st_uid not in (os.geteuid(), 0):
        raise UnsafePathError(
            f"{path} belongs to another user.",
            hint=f"Check it, then chown {os.geteuid()} {path}",
        )
    if info.st_mode & 0o077:
        raise UnsafePermissionsError(
            f"{path} is open to other users (mode {stat.S_IMODE(info.st_mode):04o}).",
            hint=f"Run: chmod 600 {path} (and rotate the master key if others could log in).",
        )


def _read_all(path: Path, fd: int) -> bytearray:
    buffer = bytearray(_MAX_BYTES + 1)
    filled = 0
    try:
        with memoryview(buffer) as view, os.fdopen(fd, "rb", 0, closefd=False) as raw:
            while count := raw.readinto(view[filled:]):
                filled += count
    except OSError as error:
        failure = _cannot_open(path, error)
        wipe(buffer)
    else:
        del buffer[filled:]
        return buffer
    raise failure


def _parse(path: Path, text: bytearray) -> _Keys:
    body = text.removesuffix(b"\n")
    lines = body.split(b"\n") if len(text) <= _MAX_BYTES else [bytearray()]
    keys: _Keys = {}
    bad = next((n for n, line in enumerate(lines, 1) if not _parse_line(line, keys)), 0)
    for secret in (body, *lines):
        wipe(secret)
    if not bad:
        return keys
    _close(keys)
    raise _malformed(path, bad)


def _parse_line(line: bytearray, keys: _Keys) -> bool:
    match = _LINE.fullmatch(line)
    version = int(match[1] or 1) if match else 0
    with memoryview(line) as view:
        key = decode_key(view[match.start(2) :]) if match else None
    if key is None:
        return False
    if not max(keys, default=0) < version < 2**32:
        key.close()
        return False
    keys[version] = key
    return True


def _malformed(path: Path, line: int) -> WrongMasterKeyError:
    return WrongMasterKeyError(
        f"Line {line} of {path} is not a master key; the file was left as it is.",
        hint="Each line is 'v<N> <base64 of 32 bytes>', in rising order; restore the backup.",
    )


# -- writing -----------------------------------------------------------------------


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(
        path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS, mode=0o600
    )
    failure: ApexCredsError | None = None
    try:
        _check_writable(path)
        lock.acquire()
    except filelock.Timeout:
        failure = StorageLockedError(f"{path} is locked by another process.", hint="Try again.")
    except OSError as error:
        failure = _cannot_write(path, error)
    if failure is not None:
        raise failure
    try:
        yield
    finally:
        lock.release()


def _check_writable(path: Path) -> None:
    """A file that its owner closed to writing is not replaced behind the owner's back."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory")
    if os.path.lexists(path) and os.name == "posix":
        info = path.lstat()
        if info.st_uid != os.geteuid() or not info.st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "read-only")


def _cannot_write(path: Path, error: OSError) -> ApexCredsError:
    if error.errno in _READ_ONLY:
        return MasterKeyReadOnlyError(
            f"{path} can't be written.",
            hint="Make it writable (chmod 600), or provision the new version from outside.",
        )
    if error.errno in _FULL:
        return StorageFullError(f"There is no space left for {path}.", hint="Free some space.")
    if error.errno == errno.ENOENT:
        return MasterKeyUnavailableError(
            f"The directory of {path} does not exist.", hint=f"mkdir -m 700 {path.parent}"
        )
    return MasterKeyUnavailableError(
        f"{path} can't be written ({error.strerror}).", hint="Check the path."
    )


def _replace(path: Path, keys: _Keys, *, new: bool) -> None:
    """Writes the whole file anew beside the old one, then puts it in its place."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)  # of a writer that was killed; we hold the lock
        _write(temporary, keys)
        _put_in_place(temporary, path, new=new)
        _sync_directory(path.parent)
    except OSError as error:
        failure = _cannot_write(path, error)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    else:
        return
    raise failure


def _write(path: Path, keys: _Keys) -> None:
    text = bytearray()
    for version in sorted(keys):
        line = encode_key(keys[version])
        text += b"v%d " % version + line + b"\n"
        wipe(line)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb", 0, closefd=False) as raw, memoryview(text) as view:
            written = 0
            while written < len(view):
                written += raw.write(view[written:]) or 0
        os.fsync(fd)
    finally:
        os.close(fd)
        wipe(text)


def _put_in_place(temporary: Path, path: Path, *, new: bool) -> None:
    if new and hasattr(os, "link"):
        try:
            os.link(temporary, path)  # fails when something is there, unlike a rename
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            temporary.unlink()
            return
    if new and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, "appeared meanwhile")
    os.replace(temporary, path)


def _sync_directory(directory: Path) -> None:
    if os.name != "posix":
        return
    fd = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def _shredding(path: Path) -> Iterator[None]:
    """Overwrites the replaced file's blocks, as far as the file system lets us."""
    if os.name != "posix":
        yield
        return
    fd = _open_to_shred(path)
    try:
        yield
        with contextlib.suppress(OSError):
            _zero(fd)
    finally:
        os.close(fd)


def _open_to_shred(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | _NOFOLLOW)
    except OSError as error:
        failure = _cannot_write(path, error)
    raise failure


def _zero(fd: int) -> None:
    info = os.fstat(fd)
    if info.st_nlink == 0:
        os.pwrite(fd, bytes(info.st_size), 0)
        os.fsync(fd)
