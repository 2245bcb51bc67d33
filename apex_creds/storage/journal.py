"""Several files replaced as one: the steps are written down before the first is taken.

Guarantee: of a commit that was cut off anywhere, either every step is taken, by the next
holder of the write lock, or none is. Before the first is taken, the journal and all new
versions that it names are durable, each with the version that it replaces. Where a file is
neither of the two, another program has written it meanwhile, and no further step is taken.
Where a new version is in neither place, none is: the machine stopped before all was durable, or
it is a copy of the folders from the middle of a commit, which keeps what the commit would have
removed. Steps are taken in their order, and what is to be removed goes last. Specified in
docs/FORMAT.md, "Journal".

Everything here is called with the write lock held.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from apex_creds.errors import CorruptDocumentError
from apex_creds.fs.home import SECURITY
from apex_creds.fs.private_files import (
    Folder,
    at_once,
    durable_name,
    sync_files,
    translated,
    write_all,
)

JOURNAL: Final = ".commit"
FORMAT: Final = "apex-creds/commit"
NEW: Final = re.compile(r"\.[a-z0-9_]{1,64}\.(?:enc|json)\.[0-9a-f]{16}\.next", re.ASCII)
"""A new version that a journal names, or is about to."""
_FILE: Final = re.compile(r"[a-z0-9_]{1,64}\.(?:enc|json)", re.ASCII)
_LARGEST: Final = 1 << 20

Folders = Mapping[str, Folder]
"""The vault's folders by name, open and checked."""
Version = tuple[int, int]
"""Modification time in nanoseconds, and size: two versions never share them."""


class Step(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One file that is replaced, or removed.

    Attributes:
        folder: Where it is.
        file: Its name.
        new: The name of the new version; empty: it is removed.
        was: The version that is replaced; None where there was none.
    """

    folder: Literal["security", "credentials"]
    file: str
    new: str
    was: Version | None


class _Journal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: str = FORMAT
    version: int = 1
    steps: tuple[Step, ...]


def new_name(file: str) -> str:
    """A name for the new version of a file."""
    return f".{file}.{secrets.token_hex(8)}.next"


def version_of(status: os.stat_result) -> Version:
    """What a step knows a version by."""
    return status.st_mtime_ns, status.st_size


def begin(folders: Folders, steps: Sequence[Step], files: Iterable[int]) -> None:
    """Writes the steps down; from here on they are taken, whatever happens.

    Args:
        folders: The vault's.
        steps: All of them.
        files: The new versions, open.

    Raises:
        NotDurableError: They may be taken.
        OSError: They are not.
    """
    security = folders[SECURITY]
    temporary = f"{JOURNAL}.json.{secrets.token_hex(8)}.tmp"  # as a document's: it is swept
    fd = security.create(temporary)
    try:
        write_all(fd, msgspec.json.encode(_Journal(steps=tuple(steps))))
        sync_files([*files, fd])
    finally:
        os.close(fd)
    security.replace(temporary, JOURNAL)
    _sync(folders, steps)


def finish(folders: Folders, steps: Sequence[Step]) -> None:
    """Takes the steps that are left of a commit that was cut off, unless a part is missing."""
    _sync(folders, steps)  # its writer may not have come to that
    missing = any(  # it was not taken, and its new version is not there
        step.new
        and _version(folders[step.folder], step.new) is None
        and _version(folders[step.folder], step.file) == step.was
        for step in steps
    )
    _end(folders, steps, left=list(steps) if missing else _untaken(folders, steps))


def take(folders: Folders, steps: Sequence[Step]) -> bool:
    """Takes the steps, makes them durable, and removes the journal.

    Returns:
        Whether all are taken.
    """
    left = _untaken(folders, steps)
    _end(folders, steps, left=left)
    return not left


def give_up(folders: Folders, steps: Sequence[Step]) -> None:
    """Removes new versions that are not to be taken; what can't be is swept later."""
    for step in steps:
        with contextlib.suppress(OSError):
            if step.new:
                folders[step.folder].unlink(step.new)


def unfinished(security: Folder) -> tuple[Step, ...]:
    """The steps of a commit that was cut off.

    Raises:
        CorruptDocumentError: The journal is not one that this program wrote.
        StorageError: It can't be read, or not safely.
    """
    with translated(security.path / JOURNAL):
        try:
            fd = security.open(JOURNAL)
        except FileNotFoundError:
            return ()
    with open(fd, "rb") as file:
        data = file.read(_LARGEST)
    try:
        made = msgspec.json.decode(data, type=_Journal)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        made = None
    if made is None or (made.format, made.version) != (FORMAT, 1) or not _usual(made.steps):
        raise CorruptDocumentError(
            f"{security.path / JOURNAL} is no journal that this program wrote.",
            hint="Look who put it there, and move it away: the documents themselves are whole.",
        )
    return made.steps


def _usual(steps: Sequence[Step]) -> bool:
    """Whether there are any, each about a document and its new version, and nothing else."""
    return bool(steps) and all(
        _FILE.fullmatch(step.file)
        and (
            not step.new or (NEW.fullmatch(step.new) and step.new.startswith(f".{step.file}."))
        )
        for step in steps
    )


def _sync(folders: Folders, steps: Sequence[Step]) -> None:
    """Makes the names of the new versions, and of the journal, durable."""
    with durable_name():
        at_once([folders[name].sync for name in {SECURITY, *(step.folder for step in steps)}])


def _untaken(folders: Folders, steps: Sequence[Step]) -> list[Step]:
    """Takes steps as far as they can be; what is left then."""
    left = list(steps)
    while left and _take(folders[left[0].folder], left[0]):
        del left[0]
    return left


def _end(folders: Folders, steps: Sequence[Step], *, left: Sequence[Step]) -> None:
    give_up(folders, left)
    at_once([folders[name].sync for name in {step.folder for step in steps}])
    folders[SECURITY].unlink(JOURNAL)


def _take(folder: Folder, step: Step) -> bool:
    """Takes a step, unless it was taken; False where it can't be."""
    now = _version(folder, step.file)
    if step.new and _version(folder, step.new) is None:
        return now != step.was
    if not step.new and now is None:
        return True
    if now != step.was:
        return False
    if step.new:
        folder.replace(step.new, step.file)
    else:
        folder.unlink(step.file)
    return True


def _version(folder: Folder, file: str) -> Version | None:
    try:
        status = folder.status(file)
    except FileNotFoundError:
        return None
    return version_of(status) if stat.S_ISREG(status.st_mode) else (-1, -1)
