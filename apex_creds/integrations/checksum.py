"""Whether a plugin's code is what its metadata says: ``checksum {algorithm, value}``.

Guarantee: a checksum that is stated is compared with the files as they are when the plugin
is first looked at; one that is malformed, of a weak algorithm, or not of these files never
passes for a right one. Links, oversized trees and special files are no code that matches.

What is hashed: of a plugin with one file beside its metadata, that file's bytes. Otherwise,
and for that as well, the tree: for each file, in the order of the paths' UTF-8 bytes, the
path (with ``/``), a NUL byte, the file's length as 8 bytes big-endian, and its bytes. The
metadata file and what Python leaves behind (``__pycache__``) are not part of it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from apex_creds.errors import InvalidInputError
from apex_creds.integrations.metadata import FILE_NAMES
from apex_creds.policy.decide import UNVERIFIED

ALGORITHMS: Final = ("sha256", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s")
DEFAULT: Final = "sha256"
MAX_FILES: Final = 2000
MAX_BYTES: Final = 64 << 20

_FOLDER_KEYS: Final = ("path", "folder", "directory", "plugin_path", "plugin_dir", "location")
_CHUNK: Final = 1 << 20


def tree_digest(folder: str | os.PathLike[str], *, algorithm: str = DEFAULT) -> str:
    """The digest of a plugin's code, in hexadecimal: what its metadata should state.

    Raises:
        InvalidInputError: The folder has a link or special file, is too large, or can't
            be read, or the algorithm is not known.
    """
    return _digests(Path(folder), _known(algorithm))[0]


def verified(folder: Path | None, metadata: Mapping[str, object]) -> str:
    """What ``Manifest.checksum`` says.

    Args:
        folder: The plugin's; None: nobody knows.
        metadata: Its metadata.

    Returns:
        ``ALGORITHM:DIGEST`` if the code is what the metadata says; ``unverified:…`` if it
        is not; empty if nothing is stated, or there is no folder to look at.
    """
    stated = metadata.get("checksum")
    if stated is None or folder is None:
        return ""
    algorithm, value = _stated(stated)
    try:
        found = _digests(folder, _known(algorithm))
    except InvalidInputError:
        return f"{UNVERIFIED}unreadable"
    if any(hmac.compare_digest(value.encode(), one.encode()) for one in found):
        return f"{algorithm}:{found[0]}"
    return f"{UNVERIFIED}{algorithm}:{found[0]}"


def folder_of(record: object, plugin: object | None) -> Path | None:
    """Where a plugin's code is: as the runtime's record says, or where its class is from."""
    if isinstance(record, Mapping):
        for key in _FOLDER_KEYS:
            value = record.get(key)
            if isinstance(value, (str, os.PathLike)):
                return _with_metadata(Path(value))
    module = sys.modules.get(type(plugin).__module__) if plugin is not None else None
    file = getattr(module, "__file__", None)
    return _with_metadata(Path(file)) if isinstance(file, str) else None


def _with_metadata(place: Path) -> Path | None:
    folder = place if place.is_dir() else place.parent
    return folder if any((folder / name).is_file() for name in FILE_NAMES) else None


def _stated(stated: object) -> tuple[str, str]:
    if not isinstance(stated, Mapping):
        return "", ""
    algorithm, value = stated.get("algorithm"), stated.get("value")
    if not isinstance(algorithm, str) or not isinstance(value, str):
        return "", ""
    name = algorithm.lower().replace("-", "").replace("sha3", "sha3_").replace("__", "_")
    return (name if name in ALGORITHMS else algorithm), value.strip().lower()


def _known(algorithm: str) -> str:
    if algorithm not in ALGORITHMS:
        raise InvalidInputError(
            f"{algorithm[:40]!r} is no algorithm for a checksum.",
            hint=f"Use one of {', '.join(ALGORITHMS)}.",
        )
    return algorithm


def _digests(folder: Path, algorithm: str) -> list[str]:
    """The tree's digest, and that of the only file if there is just one."""
    files = sorted(_files(folder), key=lambda path: _name(folder, path))
    if not files or len(files) > MAX_FILES:
        raise InvalidInputError("The plugin's folder has no code, or too many files.")
    tree, single, left = hashlib.new(algorithm), hashlib.new(algorithm), MAX_BYTES
    try:
        for path in files:
            size = path.lstat().st_size
            left -= size
            if left < 0:
                raise InvalidInputError("The plugin's code is too large.")
            tree.update(_name(folder, path) + b"\0" + size.to_bytes(8, "big"))
            for chunk in _chunks(path):
                tree.update(chunk)
                single.update(chunk)
    except OSError as error:
        raise InvalidInputError(f"The plugin's code can't be read: {error.strerror}.") from None
    found = [tree.hexdigest()]
    return [*found, single.hexdigest()] if len(files) == 1 else found


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if name != "__pycache__"]
        here = Path(place)
        metadata = FILE_NAMES if here == folder else ()
        for name in [*names, *folders]:
            path = here / name
            kind = path.lstat().st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
                raise InvalidInputError(f"{path} is a link or a special file.")
        yield from (
            here / name
            for name in names
            if name not in metadata and not name.endswith((".pyc", ".pyo"))
        )


def _name(folder: Path, path: Path) -> bytes:
    return os.fsencode(path.relative_to(folder).as_posix())


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
