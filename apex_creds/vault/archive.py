"""Files of a backup: written whole, packed into one file, and unpacked with suspicion.

Guarantee: every file is made 0600 and made durable; what is unpacked is regular files with
names of a vault's layout, as large as they may be, below the directory given and nowhere
else. Nothing that exists is overwritten.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from apex_creds.errors import CorruptDocumentError, InvalidInputError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import (
    Folder,
    check,
    create_file,
    make_directory,
    sync_file,
    write_all,
)
from apex_creds.fs.replacing import name_new

__all__ = ["copy_tree", "pack", "put_file", "unpack"]

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
"""What ``tarfile`` raises for headers that somebody wrote on purpose."""
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
                _add(tar, folder / name, name)
        raw.flush()
        sync_file(raw.fileno())
    name_new(temporary, file)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    with path.open("rb") as file:
        member = tarfile.TarInfo(name)
        member.size = os.fstat(file.fileno()).st_size
        member.mode = 0o600
        tar.addfile(member, file)


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
                _extract(tar, member, target)
    except _NO_TAR:
        wrong = True
    if wrong:
        raise CorruptDocumentError(f"{source.name} is no whole tar file.")


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    plain = member.isreg() and not member.issparse()
    data = tar.extractfile(member) if plain else None
    if (
        data is None
        or not _NAME.fullmatch(member.name)
        or os.path.lexists(target / member.name)
    ):
        raise CorruptDocumentError("The backup has something that no vault has.")
    put_file(target / member.name, _pieces(data))


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
