"""What other processes revoked, passed on in this one as soon as it is known.

Guarantee: each revocation of another process is passed on once, after the key store that
has it is in memory; what this process revokes is passed on where it is revoked. Nothing
depends on it but how long a lease outlives its revocation unused: a redeem checks again.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress

from apex_creds.concurrency import soon
from apex_creds.documents.keystore import Keystore, KeystoreBody
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ApexCredsError
from apex_creds.storage.base import KEYSTORE, SharedStorage

Notify = Callable[[str | None, str | None], object]


class PeerRevocations:
    """The revocations of other processes.

    Args:
        store: The documents of an unsealed vault.
        storage: Where they are, shared with those processes.
        notify: Called with plugin and credential; None for all.
    """

    def __init__(self, store: DocumentStore, storage: SharedStorage, notify: Notify) -> None:
        self._store = store
        self._storage = storage
        self._notify = notify
        self._passed_on = store.unsealed().grants.mark
        self._own: set[int] = set()
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._again = False
        store.on_keystore_commit.append(self._own_revocations)
        self._end = storage.subscribe(self._moved)

    def close(self) -> None:
        """Passes nothing on any more."""
        self._end()
        task, self._task = self._task, None
        if task is not None:
            soon(task.get_loop(), task.cancel)

    def _own_revocations(self, before: Keystore, body: KeystoreBody) -> None:
        """What this process is about to write, it passes on itself."""
        mark = before.grants.mark
        with self._lock:
            self._own.update(item.seq for item in body.revocations if item.seq > mark)

    # -- in the storage's loop -----------------------------------------------------

    def _moved(self) -> None:
        with suppress(ApexCredsError):
            token = self._store.unsealed().token
            if self._storage.change_token(KEYSTORE) == token:
                return
            self._again = True
            if self._task is None or self._task.done():
                self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        while self._again:
            self._again = False
            with suppress(ApexCredsError):
                self._pass_on(await self._store.keystore())

    def _pass_on(self, keystore: Keystore) -> None:
        new = [item for item in keystore.body.revocations if item.seq > self._passed_on]
        for item in new:
            self._passed_on = item.seq
            if item.seq not in self._own:
                self._notify(item.plugin or None, item.credential or None)
        with self._lock:
            self._own = {seq for seq in self._own if seq > self._passed_on}
