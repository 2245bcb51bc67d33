"""What an interrupted init or restore left in a home, and the lock while a vault is made.

Guarantee: no vault is made where one lost its key store (rule 6), or where a restore was
interrupted, nor while a restore goes on in any process; and no hint says to make one there.

An init notes which vault it makes, with which key. The note is durable before there is a
master key, and goes when the vault has been opened for the first time. It holds no secret, and
tells a key that this init made from another one in the same place.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
import msgspec

from apex_creds.errors import (
    StorageError,
    StorageLockedError,
    VaultExistsError,
    VaultNotFoundError,
)
from apex_creds.fs.home import audit_directory, make_home
from apex_creds.fs.lock import release, take_lock
from apex_creds.fs.private_files import (
    read_small,
    remove_file,
    remove_tree,
    replace_file,
    translated,
)

STAGE: Final = ".restoring"
_STAGE: Final = re.compile(rf"{re.escape(STAGE)}-[0-9a-f]{{12}}")
ASIDE: Final = ".before-restore"
_LOCK: Final = ".restore.lock"
KEYSTORE_FILE: Final = "security/keystore.enc"
_NEW: Final = "Create one with apex-creds init, or name another directory with --home."
_WAIT: Final = 10.0
_POLL: Final = 0.02


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Holds the lock of those that put a whole vault in place; makes the home when absent.

    Raises:
        StorageLockedError: Another process (or task) has it.
        StorageError: The home or the lock can't be used, or not safely.
    """
    make_home(home)
    lock = take_lock(home / _LOCK)
    if lock is None:
        raise _locked()
    try:
        yield
    finally:
        release(lock)


@asynccontextmanager
async def making(home: Path, *, elsewhere: bool = False) -> AsyncIterator[Begun]:
    """Holds the same lock while a new vault is made; waits some seconds for others.

    Where there is a key store already, nothing is touched,
    unless it was made by an init that was interrupted.

    Yields:
        The note of such an init, and of this one.

    Args:
        home: Its home.
        elsewhere: Its documents are not to be in the home.

    Raises:
        VaultExistsError: There is no key store, but something else of a vault; or the
            home has the documents of another vault.
        StorageLockedError, StorageError: As ``alone``.
    """
    begun = Begun(home)
    if _has_keystore(home):
        if elsewhere:
            raise VaultExistsError(
                "That home has the documents of a vault.", hint="Choose another with --home."
            )
        if not begun.is_there():
            yield begun
            return
    make_home(home)
    left = int(_WAIT / _POLL)
    while (lock := take_lock(home / _LOCK)) is None and left:
        left -= 1
        await anyio.sleep(_POLL)
    if lock is None:
        raise _locked()
    try:
        refuse_remains(home)
        yield begun
    finally:
        release(lock)


def _locked() -> StorageLockedError:
    return StorageLockedError(
        "Another restore is going on there, or a vault is being made.",
        hint="Let it finish.",
    )


def _has_keystore(home: Path) -> bool:
    return os.path.lexists(home / KEYSTORE_FILE)


def refuse_remains(home: Path) -> None:
    """Refuses a place where a vault was; for the holder of the lock.

    Raises:
        VaultExistsError: There is no key store, but something else of a vault.
    """
    if _has_keystore(home):
        return
    left = _left(home)
    if left is not None:
        raise VaultExistsError(left[0], hint=f"{left[1]}, or choose another directory.")


def not_found(home: Path, *, hint: str = _NEW) -> VaultNotFoundError:
    """The error of a home without a key store: it leads to what is left there.

    Args:
        home: The home; its vault is not in a database.
        hint: What to do where nothing is left.
    """
    left = _left(home)
    if left is None:
        return VaultNotFoundError(f"There is no vault in {home}.", hint=hint)
    return VaultNotFoundError(left[0], hint=f"{left[1]}.")


def _left(home: Path) -> tuple[str, str] | None:
    """What there is of a vault without its key store, and what to do about it."""
    with translated(home):
        aside, stages = sorted(home.glob(f"{ASIDE}-*")), sorted(home.glob(f"{STAGE}-*"))
        parts = [*home.glob("credentials/*.enc"), *audit_directory(home).glob("*.jsonl*")]
    if aside or stages:
        was = f"; what was there before is in {aside[-1]}" if aside else ""
        return (
            f"A restore was interrupted: there is no key store in {home}{was}.",
            "Run the same apex-creds restore again",
        )
    if parts:
        return (
            f"There is no key store, but {min(parts)} is what a vault left, or a copy of one.",
            "Restore security/keystore.enc from a backup, or run that apex-creds copy again",
        )
    return None


def clear(home: Path) -> None:
    """Removes what a restore or an init left that was killed when its vault was whole."""
    with contextlib.suppress(OSError, StorageError):
        if any(_STAGE.fullmatch(name) or name == INIT for name in os.listdir(home)):
            with alone(home):
                sweep(home)
                Begun(home).clear()


def sweep(home: Path) -> None:
    """As ``clear``, for the holder of the lock."""
    for path in home.iterdir():
        if _STAGE.fullmatch(path.name):
            remove_tree(path)


INIT: Final = ".init"
_LONGEST: Final = 64 * 1024


class BegunNote(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of it.

    Attributes:
        vault_id: Of the vault.
        uri: Where its master key is to be.
        check: Of that key; see ``hierarchy.master_check``.
        hashed_names: As the vault is to be made.
    """

    vault_id: str
    uri: str
    check: str
    hashed_names: bool


class Begun:
    """The note in one home; its methods are for who holds the lock of ``remains.making``.

    Args:
        home: The home; None for a vault that is made without one, of which nothing is noted.
    """

    def __init__(self, home: Path | None) -> None:
        self._path = None if home is None else home / INIT

    def is_there(self) -> bool:
        """Whether there is one at all."""
        return self._path is not None and os.path.lexists(self._path)

    def read(self) -> BegunNote | None:
        """The note; None where there is none, or none that was written here.

        Raises:
            StorageError: It can't be read.
        """
        if self._path is None:
            return None
        with translated(self._path), contextlib.suppress(FileNotFoundError):
            data = read_small(self._path, limit=_LONGEST)
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                return msgspec.json.decode(data, type=BegunNote)
        return None

    def write(self, note: BegunNote) -> None:
        """Replaces the note, durably.

        Raises:
            StorageError: It could not be written.
        """
        if self._path is None:
            return
        with translated(self._path, writing=True):
            replace_file(self._path, [msgspec.json.encode(note), b"\n"])

    def clear(self) -> None:
        """Removes the note, as far as that can be done: one too many does no harm."""
        with contextlib.suppress(OSError, StorageError):
            if self._path is not None:
                remove_file(self._path)
