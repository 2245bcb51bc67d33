"""Where a vault's documents are: in its home, or in a storage that several homes share.

Guarantee: a storage that is shared works in a thread of its own, so that code in any event
loop, or in none, may use the vault; the home of such a vault has its audit log, its policy
and its configuration, and no documents.
"""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread

from apex_creds.model import Clock
from apex_creds.storage.base import Storage, shared
from apex_creds.storage.file import FileStorage
from apex_creds.storage.layout import make_folders
from apex_creds.storage.threaded import ThreadedStorage
from apex_creds.vault.masters import Masters
from apex_creds.vault.shared import SharedStore
from apex_creds.vault.store import DocumentStore

__all__ = ["open_documents", "storage_at"]


def storage_at(home: Path, storage: Storage | None = None) -> Storage:
    """The storage of the vault at ``home``: ``storage``, or the home's own files."""
    if storage is None:
        return FileStorage(home)
    several = shared(storage)
    if several is None or isinstance(storage, ThreadedStorage):
        return storage
    return ThreadedStorage(several)


async def open_documents(
    home: Path, storage: Storage, *, clock: Clock, masters: Masters
) -> DocumentStore:
    """The documents of one vault, still sealed; see ``DocumentStore``.

    Raises:
        StorageError: The home of a vault elsewhere can't be made.
    """
    several = shared(storage)
    if several is None:
        return DocumentStore(storage, clock=clock, masters=masters)
    await anyio.to_thread.run_sync(make_folders, home)
    return SharedStore(several, clock=clock, masters=masters)
