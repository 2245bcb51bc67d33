"""Where a vault's documents are: in its home, or in a storage that several homes share.

Guarantee: a storage that is shared works in a thread of its own, so that code in any event
loop, or in none, may use the vault; the home of such a vault has its audit log, its policy
and its configuration, and no documents.
"""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from apex_creds.documents.keystore import MasterKeySource
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import VaultExistsError
from apex_creds.fs.home import make_folders
from apex_creds.model import Clock
from apex_creds.storage.base import KEYSTORE, Storage, shared
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.portal import StoragePortal
from apex_creds.storage.storage_factory import Located, remember_storage, storage_for

__all__ = ["note_place", "open_documents", "storage_at"]


def storage_at(home: Path, storage: Storage | str | None = None) -> Storage:
    """The storage of the vault at ``home``: ``storage``, or what the home says, or its files.

    Raises:
        InvalidInputError, NotInstalledError: It is in a database that can't be used.
    """
    if storage is None or isinstance(storage, str):
        storage = storage_for(home, url=storage)
    several = shared(storage)
    if several is None or isinstance(storage, StoragePortal):
        return storage
    return StoragePortal(several)


async def note_place(home: Path, storage: Storage) -> None:
    """Before a vault is made: its home is there, and is to know where its documents are.

    Raises:
        VaultExistsError: There is a vault in that place already; nothing was noted.
        StorageError: The database or the home can't be used.
    """
    inner = storage.inner if isinstance(storage, StoragePortal) else storage
    if not isinstance(inner, FileStorage):
        await anyio.to_thread.run_sync(make_folders, home)
    if not isinstance(inner, Located):
        return
    await storage.prepare()
    if await storage.read(KEYSTORE) is not None:
        raise VaultExistsError(
            f"There is a vault in {inner.url} already.",
            hint="Share it with apex-creds init --join, or make another one with ?space=new.",
        )
    await remember_storage(home, inner)


async def open_documents(
    home: Path, storage: Storage, *, clock: Clock, masters: MasterKeySource
) -> DocumentStore:
    """The documents of one vault, still sealed; see ``DocumentStore``.

    Raises:
        StorageError: The home of a vault elsewhere can't be made.
    """
    if not isinstance(storage, FileStorage):
        await anyio.to_thread.run_sync(make_folders, home)
    return DocumentStore(storage, clock=clock, masters=masters)
