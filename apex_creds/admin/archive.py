"""Files of a copy of a vault: written whole, packed into one file, unpacked with suspicion.

Guarantee: every file is made 0600 and made durable; what is unpacked is regular files with
names of a vault's layout, as large as they may be, below the directory given and nowhere
else. Nothing that exists is overwritten.

The copy of an audit log is a beginning of the log, at least up to what was in it when the copy
began, and to every checkpoint that is copied. The original is only read.

A copy that is not in its place has no key store until the moment before, so that nothing in it
can be read, with any master key; the next copy that is made beside it removes it, if its maker
was killed. One whose maker lives is not disturbed: it has its directory locked.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from apex_creds.audit import log_files
from apex_creds.audit.checkpoint import CHECKPOINTS, COSIGNED, VKEYS, LogKey, read_keys
from apex_creds.audit.segment import segments
from apex_creds.audit.verify import check as check_log
from apex_creds.errors import (
    AuditTamperedError,
    ConflictError,
    CorruptDocumentError,
    InvalidInputError,
)
from apex_creds.fs.private_files import (
    Folder,
    check,
    create_file,
    make_directory,
    name_new,
    remove_tree,
    sync_file,
    translated,
    try_lock,
    write_all,
)
from apex_creds.keys.hierarchy import KEYSTORE
from apex_creds.storage.base import Stored, Token
from apex_creds.storage.file_storage import FileStorage

_NAME: Final = re.compile(
    r"(?:security/(?:audit/)?|credentials/)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,150}", re.ASCII
)
_LARGEST: Final = 1 << 31
_CHUNK: Final = 1 << 20
_NO_TAR: Final = (
    tarfile.TarError,
    EOFError,
    ValueError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""What ``tarfile`` raises for headers that were forged."""
_FOLDERS: Final = ("security", "security/audit", "credentials")


def put_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Makes a new file, 0600, durable with all its bytes; at most 2 GiB.

    Raises:
        StorageError: It could not be made.
        CorruptDocumentError: There is more than that.
    """
    with translated(path, writing=True):
        fd = create_file(path)
        try:
            left = _LARGEST
            for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise CorruptDocumentError(f"{path.name} is larger than any vault's.")
                write_all(fd, piece)
            sync_file(fd)
        finally:
            os.close(fd)


def pack(folder: Path, file: Path, names: Iterable[str]) -> None:
    """Puts files of a folder into a new tar file beside it, durably and in one step.

    Raises:
        OSError: It could not be made, or there is something already.
    """
    temporary = folder / ".copy.tar"
    with open(create_file(temporary), "wb") as raw:
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name in names:
                with (folder / name).open("rb") as source:
                    member = tarfile.TarInfo(name)
                    member.size = os.fstat(source.fileno()).st_size
                    member.mode = 0o600
                    tar.addfile(member, source)
        raw.flush()
        sync_file(raw.fileno())
    name_new(temporary, file)


def unpack(source: Path, target: Path) -> None:
    """Copies a backup (a tar file or a directory) into an empty directory.

    Raises:
        InvalidInputError: There is nothing of the kind.
        CorruptDocumentError: It has something that a backup has not.
        StorageError: It can't be read safely, or written.
    """
    with translated(target, writing=True):
        for folder in _FOLDERS:
            make_directory(target / folder)
    with translated(source):
        is_folder, is_file = source.is_dir(), source.is_file()
    if is_folder:
        copy_tree(source, target)
        return
    if not is_file:
        raise InvalidInputError(f"There is no backup {source}.")
    wrong = False
    try:
        with (
            translated(source),
            source.open("rb") as raw,
            tarfile.open(fileobj=raw, mode="r:") as tar,
        ):
            for member in tar:
                path, plain = target / member.name, member.isreg() and not member.issparse()
                data = tar.extractfile(member) if plain else None
                if data is None or not _NAME.fullmatch(member.name) or os.path.lexists(path):
                    raise CorruptDocumentError("The backup has something that no vault has.")
                put_file(path, _pieces(data))
    except _NO_TAR:
        wrong = True
    if wrong:
        raise CorruptDocumentError(f"{source.name} is no whole tar file.")


def copy_tree(source: Path, target: Path) -> None:
    """Copies the files of a vault's layout; others are left out.

    Raises:
        StorageError: One is a link, somebody else's, or open to others.
    """
    with translated(source), Folder(source) as root:
        _copy_folder(root, source, target, "")
        with Folder(source / "credentials", within=root) as folder:
            _copy_folder(folder, source, target, "credentials/")
        with Folder(source / "security", within=root) as security:
            _copy_folder(security, source, target, "security/")
            with Folder(source / "security/audit", within=security) as folder:
                _copy_folder(folder, source, target, "security/audit/")


def _copy_folder(folder: Folder, source: Path, target: Path, prefix: str) -> None:
    for entry in sorted(folder.entries()):
        name = prefix + entry
        if not _NAME.fullmatch(name) or (source / name).is_dir():
            continue
        fd = folder.open(entry)
        with open(fd, "rb") as file:
            check(source / name, os.fstat(file.fileno()))
            put_file(target / name, _pieces(file))


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(_CHUNK):
        yield piece


_ATTEMPTS: Final = 10
_OTHERS: Final = re.compile(r"(torn|rolled-back)-[\w.-]{1,100}", re.ASCII)


def copy_log(source: Path, target: Path) -> None:
    """Copies a log into an empty directory.

    Checkpoints go first, so that the segments, read later, have what they state; and the
    keys after the signatures that they check.

    Raises:
        AuditUnavailableError: It can't be read.
        StorageError: It can't be written.
        ConflictError: Its segments kept being renamed.
    """
    for name in (CHECKPOINTS, COSIGNED, VKEYS):
        if log_files.exists(source / name):
            put_file(target / name, _lines(source / name))
    done: set[int] = set()
    for _ in range(_ATTEMPTS):
        try:
            for number, path in segments(source).items():
                if number not in done:
                    read = _whole(path) if path.suffix == ".gz" else _lines(path)
                    put_file(target / path.name, read)
                    done.add(number)
            break
        except AuditTamperedError:
            continue  # compressed meanwhile, under another name
    else:
        raise ConflictError("The audit log keeps changing.", hint="Try again.")
    for path in sorted(source.iterdir()):
        if _OTHERS.fullmatch(path.name):
            put_file(target / path.name, _whole(path))


def _lines(path: Path) -> Iterator[bytes]:
    """All whole lines that are there now."""
    fd = log_files.open_to_read(path)
    try:
        end = log_files.end_of_lines(fd, log_files.stable_size(fd))
        yield from _between(fd, end)
    finally:
        os.close(fd)


def _whole(path: Path) -> Iterator[bytes]:
    fd = log_files.open_to_read(path)
    try:
        yield from _between(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _between(fd: int, end: int) -> Iterator[bytes]:
    for start in range(0, end, _CHUNK):
        yield log_files.read_between(fd, start, min(start + _CHUNK, end))


def verified_log(directory: Path, *, key: LogKey) -> tuple[int, str]:
    """How many events a log has, and its tree's root; after checking all of it.

    Raises:
        AuditTamperedError: It does not verify with the vault's own key.
    """
    witnesses = read_keys(directory)[1:]
    report = check_log(directory, vault_id=key.vault_id, keys=(key.verifier, *witnesses))
    if report.ok:
        return report.count, report.head
    raise AuditTamperedError(
        report.wrong,
        hint="The copy was not used.",
    )


_PARTIAL: Final = re.compile(r"\..+\.[0-9a-f]{12}\.partial(?:\.tar)?")
_TRIES: Final = 10


class KeystoreInMemory(FileStorage):
    """The files of a copy whose key store is not written yet.

    Args:
        root: The copy.
        keystore: The key store's bytes.
    """

    def __init__(self, root: Path, keystore: bytes) -> None:
        super().__init__(root)
        self._stored = Stored(keystore, Token(("in memory",)))

    def change_token(self, name: str) -> Token | None:
        """See ``Storage``."""
        return self._stored.token if name == KEYSTORE else super().change_token(name)

    async def read(self, name: str) -> Stored | None:
        """See ``Storage``."""
        return self._stored if name == KEYSTORE else await super().read(name)


@contextlib.contextmanager
def partial_copy(destination: Path) -> Iterator[Path]:
    """A private directory beside ``destination``, to make a copy in; removed afterwards.

    Raises:
        StorageError: It can't be made.
    """
    for left in left_copies(destination.parent):
        with contextlib.suppress(OSError):
            if not left.is_dir():
                left.unlink()
                continue
            with _opened(left) as fd:
                if try_lock(fd):  # held meanwhile: two that sweep don't disturb each other
                    remove_tree(left)
    with translated(destination, writing=True):
        for _ in range(_TRIES):
            name = f".{destination.name}.{os.urandom(6).hex()}.partial"
            path = destination.with_name(name)
            make_directory(path)
            fd = _open(path)
            if fd < 0 or (try_lock(fd) is not False and os.fstat(fd).st_nlink > 0):
                break
            os.close(fd)  # another process sweeps, and took it for a dead maker's
        else:
            raise ConflictError("Copies are removed as they are made there.", hint="Try again.")
    try:
        yield path
    finally:
        remove_tree(path)
        if fd >= 0:
            os.close(fd)


def left_copies(folder: Path) -> list[Path]:
    """Copies in a folder that their makers left unfinished, and that are ours to remove."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = (folder / name for name in sorted(names) if _PARTIAL.fullmatch(name))
    return [path for path in found if _is_dead(path)]


def _open(path: Path) -> int:
    if os.name != "posix":
        return -1  # a directory can't be opened there, nor locked
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _is_dead(path: Path) -> bool:
    """Whether its maker is dead; an earlier program's tar file was never locked."""
    try:
        if not path.is_dir():
            return os.lstat(path).st_uid == os.geteuid()
        with _opened(path) as fd:
            return fd >= 0 and os.fstat(fd).st_uid == os.geteuid() and bool(try_lock(fd))
    except OSError:
        return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = _open(path)
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)
