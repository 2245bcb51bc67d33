"""What a plugin says about itself, and whether its code is what it says: files and checksum.

Guarantee: a metadata file is read only if it is a regular file in its folder, of at most
256 KiB, and one strict JSON object; a manifest is never older than the metadata that it was
read from: the content is compared each time, not the object. A checksum that is stated is
compared with the files as they are at a plugin's first use; one that is malformed, of a weak
algorithm, or not of these files never passes for a right one. Oversized trees, special files
and links that leave the folder are no code that matches, nor is bytecode that Python would run
in place of a source beside it.

Links are followed where they end inside the folder, as all of a Kubernetes volume do (a
ConfigMap or Secret shows each file as a link through ``..data`` into a folder with a date in
its name); what leaves the folder, runs in a circle, or is no regular file is refused. A
volume's own entries (``..data``, the dated folders) are left out: what is in them is seen under
its visible name, so a refresh that changes nothing changes nothing here.

What is hashed: of a plugin with one file beside its metadata, that file's bytes. Otherwise,
and for that as well, the tree: for each file, in the order of the paths' UTF-8 bytes, the
path (with ``/``), a NUL byte, the file's length as 8 bytes big-endian, and its bytes. The
metadata file is not part of it, nor are the caches in ``__pycache__`` that hold just what
Python makes of the sources, or that it does not read.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from apex_creds.errors import (
    ApexCredsError,
    InvalidInputError,
    InvalidManifestError,
    UnsafePathError,
)
from apex_creds.integrations.bytecode import cache_of, is_of_source
from apex_creds.policy.decide import UNVERIFIED
from apex_creds.policy.manifest import Manifest, parse_manifest

# -- the files of a folder ------------------------------------------------------------------


METADATA: Final = ("plugin.json", "metadata.json", "manifest.json")
"""Where metadata is searched, in this order."""
ALWAYS_METADATA: Final = frozenset(METADATA[:2])
"""Not part of the code even where another is the one that is read."""

_VOLUME: Final = "..data"
_HINT: Final = (
    "Links may only lead to files in the same folder; copy what is elsewhere into it, "
    "or give the folder that it is in."
)


def metadata_file(folder: str | os.PathLike[str]) -> Path | None:
    """Where a plugin's metadata is, or would be if it were a file; None: nowhere."""
    places = (Path(folder) / name for name in METADATA)
    return next((place for place in places if os.path.lexists(place)), None)


def regular(folder: str | os.PathLike[str], path: Path) -> Path:
    """The regular file that ``path``, in the folder, is or links to.

    Raises:
        UnsafePathError: It leads out of the folder, or to what is no regular file.
        OSError: It can't be examined.
    """
    found, kind = _inside(os.path.realpath(folder), path)
    if not stat.S_ISREG(kind):
        raise _unsafe(path, "is not a regular file")
    return found


def files(folder: str | os.PathLike[str]) -> Iterator[tuple[str, Path]]:
    """All files below a folder: the visible path, with ``/``, and the file that it is.

    Raises:
        UnsafePathError: As ``regular``; or a link leads back to a folder that it is in.
        OSError: A folder can't be read.
    """
    root = os.path.realpath(folder)
    names = os.listdir(root)
    if os.path.islink(os.path.join(root, _VOLUME)):
        names = [name for name in names if not name.startswith("..")]
    yield from _below(Path(root), names, "", (root,))


def _below(
    place: Path, names: list[str], prefix: str, above: tuple[str, ...]
) -> Iterator[tuple[str, Path]]:
    root = above[0]
    for name in names:
        found, kind = _inside(root, place / name)
        if stat.S_ISREG(kind):
            yield prefix + name, found
        elif not stat.S_ISDIR(kind):
            raise _unsafe(place / name, "is a special file")
        elif str(found) in above:
            raise _unsafe(place / name, "links to a folder that it is in")
        else:
            inner = (*above, str(found))
            yield from _below(found, os.listdir(found), f"{prefix}{name}/", inner)


def _inside(root: str, path: Path) -> tuple[Path, int]:
    """Where a path leads, and what kind of file is there."""
    found = os.path.realpath(path)
    if os.path.commonpath((root, found)) != root:
        raise _unsafe(path, "is a link that leaves the folder")
    try:
        return Path(found), os.lstat(found).st_mode
    except FileNotFoundError:
        raise _unsafe(path, "is a link to nothing") from None


def _unsafe(path: Path, what: str) -> UnsafePathError:
    return UnsafePathError(f"{path} {what}.", hint=_HINT)


# -- the checksum ---------------------------------------------------------------------------


ALGORITHMS: Final = ("sha256", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s")
DEFAULT: Final = "sha256"
MAX_FILES: Final = 2000
MAX_CODE_BYTES: Final = 64 << 20

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
        folder: The plugin's; None: not known.
        metadata: Its metadata.

    Returns:
        ``ALGORITHM:DIGEST`` if the code is what the metadata says; ``unverified:…`` if it
        is not; empty if nothing is stated, or there is no folder.
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
    tree, single, count, left = (
        hashlib.new(algorithm),
        hashlib.new(algorithm),
        0,
        MAX_CODE_BYTES,
    )
    try:
        for name, path in sorted(_code(folder)):
            size = path.stat().st_size
            count, left = count + 1, left - size
            if left < 0:
                raise InvalidInputError("The plugin's code is too large.")
            tree.update(name + b"\0" + size.to_bytes(8, "big"))
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
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


# -- metadata -------------------------------------------------------------------------------


MAX_METADATA_BYTES: Final = 256 * 1024

_FIELDS: Final = ("id", "version", "credentials", "isolation", "checksum")
_FLAGS: Final = (
    os.O_RDONLY
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # a FIFO must not block the open
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


def load_metadata(folder: str | os.PathLike[str]) -> dict[str, object]:
    """Reads ``plugin.json``, or else ``metadata.json`` or ``manifest.json``, in a folder.

    Returns:
        The decoded object; ``parse_manifest`` reads the manifest from it.

    Raises:
        InvalidManifestError: There is no such file, or it is not as guaranteed above.
        UnsafePathError: It is a link that leaves the folder, or not a regular file.
    """
    path = metadata_file(folder)
    if path is None:
        raise InvalidManifestError(
            f"There is no plugin metadata in {folder}.",
            hint=f"A plugin's folder has a {' or '.join(METADATA)}.",
        )
    try:
        found = regular(folder, path)
        with os.fdopen(os.open(found, _FLAGS), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # since it was examined
                raise UnsafePathError(f"{found} is not a regular file.")
            data = file.read(MAX_METADATA_BYTES + 1)
    except OSError as error:
        raise InvalidManifestError(
            f"{path} can't be read: {error.strerror}.", hint="Check its permissions."
        ) from None
    if len(data) > MAX_METADATA_BYTES:
        raise _invalid(found, f"is larger than {MAX_METADATA_BYTES // 1024} KiB")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a field is there twice")
        return dict(pairs)

    try:
        # What is no number of JSON's (NaN, Infinity) is none of Python's integers either.
        decoded = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=int)
    except (ValueError, RecursionError):
        raise _invalid(path, "is not strict JSON (UTF-8, no field twice)") from None
    if not isinstance(decoded, dict):
        raise _invalid(path, "is not a JSON object")
    return decoded


def _invalid(path: Path, what: str) -> InvalidManifestError:
    return InvalidManifestError(f"{path} {what}.", hint="See docs/PLUGINS.md.")


class Manifests:
    """The manifests of a runtime's plugins, read again when their metadata changed."""

    __slots__ = ("_known", "unsure")

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes, Manifest]] = {}
        self.unsure: set[str] = set()
        """Plugins that state a checksum with which nothing could be compared yet."""

    def __contains__(self, plugin_id: str) -> bool:
        return plugin_id in self._known

    def forget(self, plugin_id: str) -> None:
        """Has a plugin's code compared again: it may come back as another."""
        self._known.pop(plugin_id, None)

    def find(
        self,
        plugin_id: str,
        record: object,
        *,
        checksum: Callable[[Mapping[str, object]], str] | None = None,
    ) -> Manifest:
        """The manifest of a plugin.

        Args:
            plugin_id: As the runtime calls it.
            record: What the runtime has on it: its metadata, or a mapping that has it as
                ``metadata``; None or anything else: nothing is known, so nothing declared.
            checksum: Says of metadata that is new what ``Manifest.checksum`` should be.

        Raises:
            InvalidManifestError: It declares credentials, but not as specified, or under
                another plugin's id.
        """
        metadata = metadata_in(record, plugin_id)
        declared = metadata.get("credentials", _NOTHING)
        nothing = declared is _NOTHING or declared == []
        if nothing and metadata.get("isolation") is None:
            return Manifest(plugin=plugin_id)
        content = _content(metadata)
        known = self._known.get(plugin_id)
        is_known = known is not None and known[0] == content
        if known is not None and is_known and plugin_id not in self.unsure:
            return known[1]
        manifest = parse_manifest(msgspec.msgpack.decode(content))
        if manifest.plugin != plugin_id:
            raise InvalidManifestError(
                f"The metadata of plugin {plugin_id[:256]!r} names another id.",
                hint="Its id is the one that the runtime knows the plugin by.",
            )
        if checksum is not None:
            manifest = msgspec.structs.replace(manifest, checksum=checksum(metadata))
            open_still = is_stated(metadata) and not manifest.checksum
            (self.unsure.add if open_still else self.unsure.discard)(plugin_id)
            if known is not None and is_known and known[1] == manifest:
                return known[1]
        self._known[plugin_id] = (content, manifest)
        return manifest


_NOTHING: Final = object()


def metadata_in(record: object, plugin_id: str) -> Mapping[str, object]:
    """The metadata in what a runtime has on a plugin; empty: there is none."""
    if not isinstance(record, Mapping):
        return {}
    inner = record.get("metadata")
    if not isinstance(inner, Mapping):
        return record
    # An older record is the metadata itself, and may have a field of that name.
    is_record = record.get("id") == plugin_id and inner.get("id") != plugin_id
    return record if is_record else inner


def _content(metadata: Mapping[str, object]) -> bytes:
    """What the manifest is read from, as bytes: equal if and only if it is the same."""
    fields = {name: metadata[name] for name in _FIELDS if name in metadata}
    try:
        return msgspec.msgpack.encode(fields)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise InvalidManifestError(
            "The plugin's metadata is not valid: it is not JSON.",
            hint='See docs/PLUGINS.md for the fields of "credentials".',
        ) from None
