"""What stands in the way of a new vault: a restore that goes on, or what a vault left.

Guarantee: no vault is made where one lost its key store (rule 6), or where a restore was
interrupted, nor while a restore goes on in any process.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio
import filelock

from apex_creds.errors import StorageLockedError, VaultExistsError
from apex_creds.fs.lock import lock_at, release
from apex_creds.fs.oserrors import translated
from apex_creds.storage.layout import make_home
from apex_creds.vault.home import audit_directory

__all__ = ["ASIDE", "STAGE", "alone", "making", "refuse_remains"]

STAGE: Final = ".restoring"
ASIDE: Final = ".before-restore"
_LOCK: Final = ".restore.lock"
_KEYSTORE: Final = "security/keystore.enc"
_WAIT: Final = 10.0
_POLL: Final = 0.02


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """Holds the lock of those that put a whole vault in place; makes the home when absent.

    Raises:
        StorageLockedError: Another process (or task) has it.
        StorageError: The home or the lock can't be used, or not safely.
    """
    lock = _lock_in(home)
    if not _taken(lock, home):
        raise _locked()
    try:
        yield
    finally:
        release(lock)


@asynccontextmanager
async def making(home: Path, *, elsewhere: bool = False) -> AsyncIterator[None]:
    """Holds the same lock while a new vault is made; waits some seconds for others.

    Where there is a key store already, which whoever makes one finds, nothing is touched.

    Args:
        home: Its home.
        elsewhere: Its documents are not to be in the home.

    Raises:
        VaultExistsError: There is no key store, but something else of a vault; or the
            home has the documents of another vault.
        StorageLockedError, StorageError: As ``alone``.
    """
    if _has_keystore(home):
        if elsewhere:
            raise VaultExistsError(
                "That home has the documents of a vault.", hint="Choose another with --home."
            )
        yield
        return
    lock = _lock_in(home)
    for _ in range(int(_WAIT / _POLL)):
        if _taken(lock, home):
            break
        await anyio.sleep(_POLL)
    else:
        raise _locked()
    try:
        refuse_remains(home)
        yield
    finally:
        release(lock)


def _lock_in(home: Path) -> filelock.BaseFileLock:
    make_home(home)
    with translated(home / _LOCK, writing=True):
        return lock_at(home / _LOCK)


def _taken(lock: filelock.BaseFileLock, home: Path) -> bool:
    with translated(home / _LOCK, writing=True):
        try:
            lock.acquire()
        except filelock.Timeout:  # an OSError, too
            return False
    return True


def _locked() -> StorageLockedError:
    return StorageLockedError(
        "Another restore is going on there, or a vault is being made.",
        hint="Let it finish.",
    )


def _has_keystore(home: Path) -> bool:
    return os.path.lexists(home / _KEYSTORE)


def refuse_remains(home: Path) -> None:
    """Refuses a place where a vault was; for whoever holds the lock.

    Raises:
        VaultExistsError: There is no key store, but something else of a vault.
    """
    if _has_keystore(home):
        return
    interrupted = [*home.glob(f"{ASIDE}-*"), *home.glob(f"{STAGE}-*")]
    if interrupted:
        raise VaultExistsError(
            f"A restore was interrupted: there is no key store, but {interrupted[0]}.",
            hint="Run apex-creds restore again, or choose another directory.",
        )
    remains = [*home.glob("credentials/*.enc"), *audit_directory(home).glob("*.jsonl*")]
    if remains:
        raise VaultExistsError(
            f"There is no key store, but {remains[0]} is what a vault left.",
            hint="Restore security/keystore.enc from a backup, or choose another directory.",
        )
