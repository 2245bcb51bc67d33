"""When a document store has its keys in memory: not while the vault is locked down.

Guarantee: a store that reads a key store with a lockdown wipes every key before it returns
it, and derives none again until it reads one without. What needs a key meanwhile is a
``LockedDownError``; grants, lockdown and sections in memory need none. The exceptions are
``holding``, and a store that was opened during the lockdown, ``for_operator``.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from apex_creds.keys.hierarchy import Hierarchy
from apex_creds.vault.document import Header
from apex_creds.vault.keystore import Keystore


class KeyHolding:
    """The part of a document store that seals it.

    Attributes:
        for_operator: Whether it keeps its keys in the present lockdown.
        on_sealed: Told right before it wipes them, from any thread.
    """

    def __init__(self) -> None:
        self.for_operator = False
        self.on_sealed: Callable[[], None] | None = None
        self._keystore: Keystore | None = None
        self._bases: dict[str, Keystore] = {}
        self._holds = 0
        self._memory = threading.RLock()
        """Held where what is in memory is compared and replaced: threads do so at once."""

    async def keystore(self) -> Keystore:
        """The key store as stored now."""
        raise NotImplementedError

    def unsealed(self) -> Keystore:
        """The key store in memory."""
        raise NotImplementedError

    async def _derive(self, header: Header) -> Hierarchy:
        raise NotImplementedError

    @property
    def sealed(self) -> bool:
        """Whether the keys were wiped."""
        return self._keystore is None or self._keystore.hierarchy.closed

    def seal(self) -> None:
        """Wipes the keys, unless they are held; they come back with a current key store."""
        keystore = self._keystore
        if keystore is None or self._holds:
            return
        if not keystore.hierarchy.closed and self.on_sealed is not None:
            self.on_sealed()
        with self._memory:
            self._wipe()

    def _wipe(self) -> None:
        if self._keystore is None or self._holds:
            return
        for each in (self._keystore, *self._bases.values()):
            each.hierarchy.close(locked_down=True)
        self._bases = {}

    def seal_if_locked(self) -> None:
        """Wipes the keys, if what was read last is a lockdown that this store must heed."""
        if self._keystore is None or self._keystore.body.lockdown is None:
            self.for_operator = False
        elif not self.for_operator:
            self.seal()

    @asynccontextmanager
    async def holding(self, *, reload: bool = True) -> AsyncIterator[None]:
        """Keeps the keys in memory within it, also in a lockdown.

        Args:
            reload: Derive them again where they were wiped.
        """
        with self._memory:
            self._holds += 1
        try:
            if reload:
                await self.keystore()
                await self._open_again()
            yield
        finally:
            with self._memory:
                self._holds -= 1
            self.seal_if_locked()

    async def _open_again(self) -> None:
        while (keystore := self.unsealed()).hierarchy.closed:
            hierarchy = await self._derive(keystore.header)
            with self._memory:
                ours = self._keystore is keystore
                if ours:
                    self._keystore = dataclasses.replace(keystore, hierarchy=hierarchy)
            if not ours:
                hierarchy.close()
