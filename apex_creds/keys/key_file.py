"""``file:PATH``: master keys in a file, for containers and systemd credentials.

Guarantee: the file is read only when it is a regular file, no link, owned by us or root and
closed to everybody else (or a credential that systemd gave to this service alone), was not
being replaced meanwhile, and has the one format to the byte. Its text is wiped from memory;
no message repeats any of it. It changes only as a whole: complete before or complete after,
durable on return, one writer at a time; nothing is followed, overwritten or left behind when
a write fails, and a key that was dropped is overwritten on disk, as far as the file system
lets us. A version in it is never overwritten, nor taken for one that was just made, and the
newest is deleted only by the provider that made it.

The format is text: one line ``v<N> <base64 of 32 bytes>`` per version in rising order; a
bare base64 line is ``v1``. Every line ends with a line feed, the last one may lack it.
One file serves one vault: rotation deletes old versions from it. Where a vault adopted keys
that were there already, a file beside it says so, and nothing is deleted any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Final

import anyio.to_thread
import filelock

from apex_creds.concurrency import in_thread
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    ApexCredsError,
    InvalidInputError,
    MasterKeyExistsError,
    MasterKeyNotFoundError,
    MasterKeyReadOnlyError,
    MasterKeyUnavailableError,
    StorageFullError,
    StorageLockedError,
    StorageUncertainError,
    UnsafePathError,
    UnsafePermissionsError,
    WrongMasterKeyError,
)
from apex_creds.fs.home import guard
from apex_creds.fs.lock import lock_at, release
from apex_creds.fs.private_files import (
    OPEN_FLAGS,
    NotDurableError,
    closing_hint,
    create_exclusive,
    erase,
    expanded,
    overwrite,
    remove_file,
    replace_file,
    sweep,
)
from apex_creds.keys.head_anchor import AnchorFile, state_anchor, state_pin
from apex_creds.keys.provider import (
    ADOPTED,
    MASTER_KEY_BYTES,
    Prompt,
    check_reference,
    decode_key,
    encode_key,
    wipe,
)

_FIRST: Final = 1
_ADOPTED: Final = ".adopted"


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
        self._path = expanded(text)
        guard(self._path)
        self._made: set[int] = set()

    @property
    def uri(self) -> str:
        """See ``MasterKeyProvider``."""
        return f"file:{self._path}"

    async def create(
        self, *, vault_id: str, version: int
    ) -> tuple[SecretBytes, dict[str, str]]:
        """See ``MasterKeyProvider``; version 1 only where the file has no keys at all.

        Raises also the errors of ``load``, StorageFullError and StorageLockedError.
        """
        check_reference(vault_id, version)
        key = SecretBytes.random(MASTER_KEY_BYTES)
        try:
            await anyio.to_thread.run_sync(self._place, version, key, False)
        except BaseException:
            key.close()
            raise
        return key, {}

    async def place(self, *, vault_id: str, version: int, key: SecretBytes) -> dict[str, str]:
        """See ``MasterKeyPlacer``; raises as ``create``."""
        check_reference(vault_id, version)
        await anyio.to_thread.run_sync(self._place, version, key, True)
        return {}

    async def adopt(self, *, vault_id: str, version: int) -> tuple[SecretBytes, dict[str, str]]:
        """See ``MasterKeyAdopter``."""
        key = await self.load(vault_id=vault_id, version=version, params={})
        # Where nothing can be written beside the keys, none can be deleted either.
        with contextlib.suppress(MasterKeyUnavailableError):
            await self.share(vault_id=vault_id)
        return key, {ADOPTED: "yes"}

    @in_thread
    def share(self, *, vault_id: str) -> bool:
        """See ``SharedPlace``."""
        check_reference(vault_id, _FIRST)
        if not _versions(self._path):
            return False
        mark = self._beside(f"{vault_id}{_ADOPTED}")
        mark.write_or_refuse("No key is deleted from here: several vaults may need it.\n")
        return True

    @in_thread
    def load(
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
        clean(self._path)
        found = pick(read_keys(self._path), version)
        if found is not None:
            return found
        raise MasterKeyNotFoundError(
            f"{self._path} has no master key v{version}.",
            hint="Use the file that the vault was initialised with, or its backup.",
        )

    @in_thread
    def discard(self, *, vault_id: str, version: int) -> None:
        """See ``MasterKeyProvider``; keeps the newest version, unless it made that itself.

        The file does not know whose keys it holds: where a vault adopted them, all stay.
        """
        check_reference(vault_id, version)
        if not self._may_go(version):
            return
        with exclusive(self._path):
            if not self._may_go(version):
                return
            keys = read_keys(self._path)
            try:
                keys.pop(version).close()
                with shredding(self._path):
                    if keys:
                        write_keys(self._path, keys, new=False)
                    else:
                        remove_keys(self._path)
                self._made.discard(version)
            finally:
                close_keys(keys)

    @in_thread
    def receive(self, *, vault_id: str, version: int, key: SecretBytes) -> None:
        """See ``MasterKeyReceiver``; the file is made when absent.

        Raises also StorageFullError and StorageLockedError.
        """
        check_reference(vault_id, version)
        with exclusive(self._path):
            keys = read_or_nothing(self._path)
            try:
                if version not in keys:
                    self._append(keys, version, SecretBytes.copy_of(key))
                elif not keys[version].equals(key):
                    raise WrongMasterKeyError(
                        f"{self._path} has another master key v{version}; it was left alone.",
                        hint="Name another file, or use apex-creds recovery reset-master.",
                    )
            finally:
                close_keys(keys)

    def read_anchor(self, *, vault_id: str) -> str | None:
        """See ``AnchorStore``: a file beside the keys, else in the state directory."""
        check_reference(vault_id, 1)
        return _read(self._anchor(vault_id), lambda: state_anchor(vault_id))

    def write_anchor(self, *, vault_id: str, text: str) -> None:
        """See ``AnchorStore``; where the keys lie read-only, in the state directory."""
        check_reference(vault_id, 1)
        _write(self._anchor(vault_id), lambda: state_anchor(vault_id), text)

    def delete_anchor(self, *, vault_id: str) -> None:
        """See ``AnchorRemover``."""
        check_reference(vault_id, 1)
        _delete(self._anchor(vault_id), lambda: state_anchor(vault_id))

    def read_pin(self, *, home: str) -> str | None:
        """See ``PinStore``: as for anchors."""
        return _read(self._pin(home), lambda: state_pin(home))

    def write_pin(self, *, home: str, text: str) -> None:
        """See ``PinStore``."""
        _write(self._pin(home), lambda: state_pin(home), text)

    def delete_pin(self, *, home: str) -> None:
        """See ``PinStore``."""
        _delete(self._pin(home), lambda: state_pin(home))

    def _pin(self, home: str) -> AnchorFile:
        return self._beside(f"{home}.home")

    def _anchor(self, vault_id: str) -> AnchorFile:
        return self._beside(f"{vault_id}.anchor")

    def _beside(self, suffix: str) -> AnchorFile:
        return AnchorFile(self._path.with_name(f"{self._path.name}.{suffix}"))

    def _place(self, version: int, key: SecretBytes, again: bool) -> None:
        if not again:  # before anything else can fail
            self._refuse(version, _versions(self._path))
        with exclusive(self._path):
            keys = read_or_nothing(self._path)
            try:
                if not (again and version in keys and keys[version].equals(key)):
                    self._refuse(version, frozenset(keys))
                    self._append(keys, version, SecretBytes.copy_of(key))
                self._made.add(version)
            finally:
                close_keys(keys)

    def _refuse(self, version: int, there: frozenset[int]) -> None:
        """A new key is never one that is there, nor the first beside somebody else's."""
        if version in there or (version == _FIRST and there):
            raise MasterKeyExistsError(
                f"{self._path} has master keys already.",
                hint="Name another file. To use a key that was provisioned: "
                "apex-creds init --use-existing-key.",
            )

    def _append(self, keys: Keys, version: int, key: SecretBytes) -> None:
        new = not keys
        keys[version] = key
        write_keys(self._path, keys, new=new)
        back = pick(read_keys(self._path), version)
        if back is not None:
            with back:
                if back.equals(key):
                    return
        raise MasterKeyUnavailableError(
            f"{self._path} did not keep the master key.", hint="Use another file system."
        )

    def _may_go(self, version: int) -> bool:
        there = _versions(self._path)
        if version not in there or (version == max(there) and version not in self._made):
            return False
        prefix = f"{self._path.name}."
        return not any(
            name.startswith(prefix) and name.endswith(_ADOPTED)
            for name in os.listdir(self._path.parent)
        )


def _read(beside: AnchorFile, elsewhere: Callable[[], AnchorFile]) -> str | None:
    found = beside.read()
    if found is None:
        # Of a user without a state directory nothing can have been kept there.
        with contextlib.suppress(MasterKeyUnavailableError):
            found = elsewhere().read()
    return found


def _write(beside: AnchorFile, elsewhere: Callable[[], AnchorFile], text: str) -> None:
    try:
        beside.write(text)
    except OSError as error:
        # One that is there would be read before the one in the state directory.
        if error.errno not in READ_ONLY or os.path.lexists(beside.path):
            raise beside.unusable(error.strerror or "an error") from None
        elsewhere().write_or_refuse(text)


def _delete(beside: AnchorFile, elsewhere: Callable[[], AnchorFile]) -> None:
    beside.delete_or_refuse()
    try:
        other = elsewhere()
    except MasterKeyUnavailableError:  # as for reading
        return
    other.delete_or_refuse()


def _versions(path: Path) -> frozenset[int]:
    keys = read_or_nothing(path)
    close_keys(keys)
    return frozenset(keys)


Keys = dict[int, SecretBytes]
"""The master keys of a file by version."""

_MAX_BYTES: Final = 64 * 1024
_REREADS: Final = 5
_LINE: Final = re.compile(rb"(?:v([1-9][0-9]{0,9}) )?([A-Za-z0-9+/]{43}=)")


def pick(keys: Keys, version: int) -> SecretBytes | None:
    """The key of one version, if it is there; closes the others."""
    found = keys.pop(version, None)
    close_keys(keys)
    return found


def close_keys(keys: Keys) -> None:
    """Wipes all of them."""
    for key in keys.values():
        key.close()


def read_or_nothing(path: Path) -> Keys:
    """As ``read_keys``; no key when there is no file."""
    try:
        return read_keys(path)
    except MasterKeyNotFoundError:
        return {}


def read_keys(path: Path) -> Keys:
    """All keys of the file, 32 bytes each; the caller closes them.

    Raises:
        MasterKeyNotFoundError: There is no file.
        MasterKeyUnavailableError: It can't be read.
        UnsafePathError: A link, a foreign owner, or not a regular file.
        UnsafePermissionsError: Others may read or write it.
        WrongMasterKeyError: It does not have the format.
    """
    for _ in range(_REREADS):
        text = _read_once(path)
        if text is None:
            continue
        body = text.removesuffix(b"\n")
        lines = body.split(b"\n") if len(text) <= _MAX_BYTES else [bytearray()]
        keys: Keys = {}
        try:
            bad = next((n for n, each in enumerate(lines, 1) if not _parse_line(each, keys)), 0)
        finally:
            for secret in (text, body, *lines):
                wipe(secret)
        if not bad:
            return keys
        close_keys(keys)
        raise WrongMasterKeyError(
            f"Line {bad} of {path} is not a master key; the file was left as it is.",
            hint="Each line is 'v<N> <base64 of 32 bytes>', in rising order; restore the "
            "backup.",
        )
    raise MasterKeyUnavailableError(f"{path} keeps changing.", hint="Try again.")


def _read_once(path: Path) -> bytearray | None:
    """The file's bytes; None when it was replaced meanwhile (old versions are shredded)."""
    text: bytearray | None = None
    failure: ApexCredsError | None = None
    try:
        fd = os.open(path, os.O_RDONLY | OPEN_FLAGS)
        try:
            _check(path, os.fstat(fd))
            text = _read_all(path, fd)
            if os.fstat(fd).st_nlink > 0:
                return text
        finally:
            os.close(fd)
    except OSError as error:
        failure = _cannot_open(path, error)
    if text is not None:
        wipe(text)
    if failure is not None:
        raise failure
    return None


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
    # A credential of systemd's, which only this service and root can read: it is root's, and
    # the service may read it by an access list, whose mask shows as the permission of a group
    # that is root's as well.
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    handed = bool(folder) and path.parent == Path(folder) and not info.st_mode & 0o037
    if info.st_mode & 0o077 and not (handed and info.st_uid == info.st_gid == 0):
        raise UnsafePermissionsError(
            f"{path} is open to other users (mode {stat.S_IMODE(info.st_mode):04o}).",
            hint=f"{closing_hint(path, info, mode='600')} (If others could log in, rotate the "
            "master key then.)",
        )


def _read_all(path: Path, fd: int) -> bytearray:
    buffer = bytearray(min(os.fstat(fd).st_size, _MAX_BYTES) + 1)
    filled = 0
    try:
        with open(fd, "rb", 0, closefd=False) as raw, memoryview(buffer) as view:
            while count := raw.readinto(view[filled:]):
                filled += count
    except OSError as error:
        failure = _cannot_open(path, error)
        wipe(buffer)
    else:
        text = buffer[:filled]  # a copy: shrinking could leave the old bytes behind
        wipe(buffer)
        return text
    raise failure


def _parse_line(line: bytearray, keys: Keys) -> bool:
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


_LOCK_SECONDS: Final = 10.0
READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL: Final = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@contextlib.contextmanager
def exclusive(path: Path, *, seconds: float | None = None) -> Iterator[None]:
    """Holds the lock of the file, beside it, against other threads and processes.

    Raises:
        MasterKeyReadOnlyError: The file or its directory can't be written.
        MasterKeyUnavailableError: The directory does not exist.
        StorageFullError: There is no space for the lock.
        StorageLockedError: Another process holds it for longer than ``seconds``.
    """
    beside = path.with_name(f".{path.name}.lock")
    failure: ApexCredsError = StorageLockedError(
        f"{path} is locked by another process.", hint="Try again."
    )
    lock: filelock.BaseFileLock | None = None
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such directory")
        # A file that its owner closed to writing is not replaced behind the owner's back.
        info = path.lstat() if os.path.lexists(path) and os.name == "posix" else None
        if info and (info.st_uid != os.geteuid() or not info.st_mode & stat.S_IWUSR):
            raise PermissionError(errno.EACCES, "read-only")
        lock = lock_at(beside)
        lock.acquire(timeout=_LOCK_SECONDS if seconds is None else seconds)
    except filelock.Timeout:
        lock = None
    except OSError as error:
        failure, lock = _cannot_write(path, error), None
    if lock is None:
        raise failure
    try:
        yield
    finally:
        release(lock)


def _cannot_write(path: Path, error: OSError) -> ApexCredsError:
    if isinstance(error, NotDurableError):
        return StorageUncertainError(
            f"{path} was changed, but the disk may not keep it ({error.strerror}).",
            hint="Copy the file to a safe place, and check the disk.",
        )
    if error.errno in READ_ONLY:
        return MasterKeyReadOnlyError(
            f"{path} can't be written ({error.strerror}).",
            hint="Make it writable (chmod 600), or provision the new version from outside; for "
            "a new vault, name another file.",
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


def write_keys(path: Path, keys: Keys, *, new: bool) -> None:
    """Writes the whole file anew beside the old one, then puts it in its place."""
    failure: ApexCredsError | None = None
    try:
        _erase_earlier(path)
        if new:
            create_exclusive(path, _lines(keys))
        else:
            replace_file(path, _lines(keys))
    except OSError as error:
        failure = _cannot_write(path, error)
    if failure is not None:
        raise failure


def remove_keys(path: Path) -> None:
    """Removes the whole file, durably."""
    failure: ApexCredsError | None = None
    try:
        remove_file(path)
    except OSError as error:
        failure = _cannot_write(path, error)
    if failure is not None:
        raise failure


def _lines(keys: Keys) -> Iterator[bytes | bytearray]:
    # Piece by piece: joining them would leave copies of the key in memory.
    for version in sorted(keys):
        text = encode_key(keys[version])
        try:
            yield b"v%d " % version
            yield text
            yield b"\n"
        finally:
            wipe(text)


def clean(path: Path) -> None:
    """Removes, and overwrites, what killed writers left beside the file: keys in clear.

    Does nothing where that can't be done, or while another process writes.
    """
    with contextlib.suppress(OSError):
        sweep(path)
    if os.path.lexists(_earlier(path)):
        with contextlib.suppress(OSError, ApexCredsError), exclusive(path, seconds=0):
            _erase_earlier(path)


def _erase_earlier(path: Path) -> None:
    """For who holds the lock: what an earlier program's killed writer left."""
    with contextlib.suppress(FileNotFoundError):
        erase(_earlier(path))


def _earlier(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


@contextlib.contextmanager
def shredding(path: Path) -> Iterator[None]:
    """Overwrites the replaced file's blocks, as far as the file system lets us."""
    if os.name != "posix":
        yield
        return
    try:
        fd = os.open(path, os.O_RDWR | OPEN_FLAGS)
    except OSError as error:
        failure = _cannot_write(path, error)
    else:
        try:
            yield
            overwrite(fd)
        finally:
            os.close(fd)
        return
    raise failure


def from_uri(rest: str, _: Prompt | None) -> FileProvider | None:
    """``file:PATH``; see ``provider.FromUri``."""
    return FileProvider(rest) if rest else None
