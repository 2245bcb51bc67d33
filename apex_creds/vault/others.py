"""What other processes revoked, told in this one as soon as it is known.

Guarantee: each revocation of another process is told once, after the key store that has it
is in memory; what this process revokes is told by whoever revokes it. Nothing depends on
it but how long a lease outlives its revocation unused: a redeem looks for itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from apex_creds.concurrency import soon
from apex_creds.errors import ApexCredsError
from apex_creds.storage.base import KEYSTORE, SharedStorage
from apex_creds.vault.keystore import Keystore, KeystoreBody

__all__ = ["Others"]

Tell = Callable[[str | None, str | None], object]


class _Store(Protocol):
    @property
    def shared(self) -> SharedStorage: ...

    def unsealed(self) -> Keystore: ...

    async def keystore(self) -> Keystore: ...


class Others:
    """The revocations of other processes.

    Args:
        store: The documents of an unsealed vault.
        tell: Called with plugin and credential; None for all.
    """

    def __init__(self, store: _Store, tell: Tell) -> None:
        self._store = store
        self._tell = tell
        self._told = store.unsealed().grants.mark
        self._own: set[int] = set()
        self._lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._end = store.shared.watch(self._moved)

    def wrote(self, before: Keystore, body: KeystoreBody) -> None:
        """This process is about to write what it revoked itself."""
        mark = before.grants.mark
        with self._lock:
            self._own.update(item.seq for item in body.revocations if item.seq > mark)

    def close(self) -> None:
        """Tells nothing any more."""
        self._end()
        task, self._task = self._task, None
        if task is not None:
            soon(task.get_loop(), task.cancel)

    # -- in the storage's loop -----------------------------------------------------

    def _moved(self) -> None:
        with suppress(ApexCredsError):
            token = self._store.unsealed().token
            if self._store.shared.change_token(KEYSTORE) == token:
                return
            self._again = True
            if self._task is None or self._task.done():
                self._task = asyncio.ensure_future(self._follow())

    async def _follow(self) -> None:
        while self._again:
            self._again = False
            with suppress(ApexCredsError):
                self._look(await self._store.keystore())

    def _look(self, keystore: Keystore) -> None:
        new = [item for item in keystore.body.revocations if item.seq > self._told]
        for item in new:
            self._told = item.seq
            if item.seq not in self._own:
                self._tell(item.plugin or None, item.credential or None)
        with self._lock:
            self._own = {seq for seq in self._own if seq > self._told}
