"""What a plugin says about itself: read from its folder, or from its runtime's records.

Guarantee: a metadata file is read only if it is a regular file in its folder (see
``folder`` for links), of at most 256 KiB, and one strict JSON object. A manifest is never
older than the metadata that it was read from: every look compares the content, not the
object.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NoReturn

import msgspec

from apex_creds.errors import InvalidManifestError, UnsafePathError
from apex_creds.integrations.checksum import is_stated
from apex_creds.integrations.folder import METADATA, metadata_file, regular
from apex_creds.policy.manifest import Manifest, parse_manifest

MAX_BYTES: Final = 256 * 1024

_FIELDS: Final = ("id", "version", "credentials", "checksum")
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
        return _decode(_read(regular(folder, path)), path)
    except OSError as error:
        raise InvalidManifestError(
            f"{path} can't be read: {error.strerror}.", hint="Check its permissions."
        ) from None


def _read(path: Path) -> bytes:
    with os.fdopen(os.open(path, _FLAGS), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnsafePathError(f"{path} is not a regular file.")  # since it was looked at
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _invalid(path, f"is larger than {MAX_BYTES // 1024} KiB")
    return data


def _decode(data: bytes, path: Path) -> dict[str, object]:
    try:
        decoded = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError):
        raise _invalid(path, "is not strict JSON (UTF-8, no field twice)") from None
    if not isinstance(decoded, dict):
        raise _invalid(path, "is not a JSON object")
    return decoded


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is there twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


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
        metadata = _metadata_in(record, plugin_id)
        declared = metadata.get("credentials", _NOTHING)
        if declared is _NOTHING or declared == []:
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


def _metadata_in(record: object, plugin_id: str) -> Mapping[str, object]:
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
