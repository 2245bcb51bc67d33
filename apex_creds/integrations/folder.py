"""The files of a plugin's folder, whatever it is mounted from.

Guarantee: links are followed where they end inside the folder, as all of a Kubernetes volume
do (a ConfigMap or Secret shows each file as a link through ``..data`` into a folder with a
date in its name); what leaves the folder, runs in a circle, or is no regular file is refused.
A volume's own entries (``..data``, the dated folders) are left out: what is in them is seen
under its visible name, so a refresh that changes nothing changes nothing here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from apex_creds.errors import UnsafePathError

METADATA: Final = ("plugin.json", "metadata.json", "manifest.json")
"""Where metadata is looked for, in this order."""
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
        OSError: It can't be looked at.
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
