"""Whether a plugin's code is what its metadata says: ``checksum {algorithm, value}``.

Guarantee: a checksum that is stated is compared with the files as they are when the plugin
is first looked at; one that is malformed, of a weak algorithm, or not of these files never
passes for a right one. Oversized trees, special files and links that leave the folder are no
code that matches, nor is bytecode that Python would run in place of a source beside it.

What is hashed: of a plugin with one file beside its metadata, that file's bytes. Otherwise,
and for that as well, the tree: for each file, in the order of the paths' UTF-8 bytes, the
path (with ``/``), a NUL byte, the file's length as 8 bytes big-endian, and its bytes. The
metadata file is not part of it, nor are the caches in ``__pycache__`` that hold just what
Python makes of the sources, or that it does not read.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.integrations.bytecode import cache_of, is_of_source
from apex_creds.integrations.folder import ALWAYS_METADATA, files, metadata_file
from apex_creds.policy.decide import UNVERIFIED

ALGORITHMS: Final = ("sha256", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s")
DEFAULT: Final = "sha256"
MAX_FILES: Final = 2000
MAX_BYTES: Final = 64 << 20

UNREADABLE: Final = f"{UNVERIFIED}unreadable"
"""What ``verified`` says of code that has no digest."""
UNLOCATED: Final = f"{UNVERIFIED}unlocated"
"""What is said of code that states a checksum, and is nowhere to be found."""

_CHUNK: Final = 1 << 20
_log: Final = logging.getLogger(__name__)


def tree_digest(folder: str | os.PathLike[str], *, algorithm: str = DEFAULT) -> str:
    """The digest of a plugin's code, in hexadecimal: what its metadata should state.

    Raises:
        InvalidInputError: It is too large, can't be read, or has bytecode that Python would
            run and that is not of its sources; or the algorithm is not known.
        UnsafePathError: It has a special file, or a link that leaves it.
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
    if not is_stated(metadata) or folder is None:
        return ""
    algorithm, value = _stated(metadata["checksum"])
    try:
        found = _digests(folder, _known(algorithm))
    except ApexCredsError as error:
        _log.warning("the checksum of a plugin can't be compared: %s", error)
        return UNREADABLE
    if any(hmac.compare_digest(value.encode(), one.encode()) for one in found):
        return f"{algorithm}:{found[0]}"
    return f"{UNVERIFIED}{algorithm}:{found[0]}"


def is_stated(metadata: Mapping[str, object]) -> bool:
    """Whether metadata states a checksum; one whose value was left empty is none."""
    stated = metadata.get("checksum")
    value = stated.get("value") if isinstance(stated, Mapping) else stated
    return stated is not None and value != ""


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
    tree, single, count, left = hashlib.new(algorithm), hashlib.new(algorithm), 0, MAX_BYTES
    try:
        for name, path in sorted(_code(folder)):
            size = path.stat().st_size
            count, left = count + 1, left - size
            if left < 0:
                raise InvalidInputError("The plugin's code is too large.")
            tree.update(name + b"\0" + size.to_bytes(8, "big"))
            for chunk in _chunks(path):
                tree.update(chunk)
                single.update(chunk)
    except OSError as error:
        raise InvalidInputError(
            f"The plugin's code can't be read: {error.strerror}.",
            hint="Check that the folder is there, and its permissions.",
        ) from None
    if not count:
        raise InvalidInputError(
            f"There is no code in {folder}.", hint="Give the folder with the plugin's files."
        )
    found = [tree.hexdigest()]
    return [*found, single.hexdigest()] if count == 1 else found


def _code(folder: Path) -> Iterator[tuple[bytes, Path]]:
    """What is hashed: all but the metadata, and caches of what is hashed anyway.

    Raises:
        InvalidInputError: There are too many files, or there is a cache of something else.
        UnsafePathError: See ``files``.
    """
    metadata, found = metadata_file(folder), dict[str, Path]()
    for name, path in files(folder):
        if name not in ALWAYS_METADATA and (metadata is None or name != metadata.name):
            found[name] = path
        if len(found) > MAX_FILES:
            raise InvalidInputError("The plugin's folder has too many files.")
    for name, path in found.items():
        cache = cache_of(name)
        if cache is None:
            yield os.fsencode(name), path
        elif cache.is_read:
            source = found.get(cache.source)
            if source is None or not is_of_source(path, source, level=cache.level):
                raise InvalidInputError(
                    f"{folder / name} is not what Python makes of {cache.source}.",
                    hint="Remove the folders __pycache__ in it; Python writes them again.",
                )


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
