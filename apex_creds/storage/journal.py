"""Several files replaced as one: the steps are written down before the first is taken.

Guarantee: of a commit that was cut off anywhere, either every step is taken, by whoever
holds the write lock next, or none is. A journal that is there names new versions that are
durable, each with the version that it replaces; where a file is neither of the two, another
program has written it meanwhile, and no further step is taken. Nor is one after a new version
that is in neither place: a copy of the folders that was made in the middle of a commit has not
all of it, and keeps what the commit would have removed. Steps are taken in their order, and
what is to be removed goes last. Specified in docs/FORMAT.md, "Journal".

Everything here is called with the write lock held, but for ``is_there``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from apex_creds.errors import CorruptDocumentError
from apex_creds.fs.home import SECURITY
from apex_creds.fs.private_files import Folder, durable_name, sync_file, translated, write_all

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


def is_there(security: Folder) -> bool:
    """Whether a commit goes on, or was cut off."""
    with contextlib.suppress(FileNotFoundError):
        security.status(JOURNAL)
        return True
    return False


def begin(folders: Folders, steps: Sequence[Step]) -> None:
    """Writes the steps down; from here on they are taken, whatever happens.

    Raises:
        NotDurableError: They may be taken.
        OSError: They are not.
    """
    for name in {step.folder for step in steps}:  # the names of the new versions
        folders[name].sync()
    security = folders[SECURITY]
    temporary = f"{JOURNAL}.json.{secrets.token_hex(8)}.tmp"  # as a document's: it is swept
    fd = security.create(temporary)
    try:
        write_all(fd, msgspec.json.encode(_Journal(steps=tuple(steps))))
        sync_file(fd)
    finally:
        os.close(fd)
    security.replace(temporary, JOURNAL)
    with durable_name():
        security.sync()


def take(folders: Folders, steps: Sequence[Step]) -> bool:
    """Takes the steps that are left, makes them durable, and removes the journal.

    Returns:
        Whether all are taken.
    """
    left = list(steps)
    while left and _take(folders[left[0].folder], left[0]):
        del left[0]
    give_up(folders, left)  # another program has written: what was begun here is void
    for name in {step.folder for step in steps}:
        folders[name].sync()
    folders[SECURITY].unlink(JOURNAL)
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


def _take(folder: Folder, step: Step) -> bool:
    """Takes a step, unless it was taken; False where it can't be."""
    now = _version(folder, step.file)
    if step.new and _version(folder, step.new) is None:
        return now != step.was  # else its new version is not in this copy of the folder
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
