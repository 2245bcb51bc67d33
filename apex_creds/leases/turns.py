"""Turns for what a client can be asked at once: uses wait for each other, and do not fail.

Guarantee: at most ``PER_CLIENT`` uses of this process ask a client at a time, at most
``PER_PLUGIN`` of them for one plugin; the rest wait in order. Of a plugin that waits, only
those few stand in the client's queue, so that it keeps no other from its turn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

import anyio
from anyio.lowlevel import RunVar

from apex_creds.policy.challenge import MAX_OPEN

PER_CLIENT: Final = MAX_OPEN // 2
"""Other processes ask the same client."""
PER_PLUGIN: Final = PER_CLIENT // 2

_Queues = WeakValueDictionary[tuple[str, str], anyio.Semaphore]


class Turns:
    """The turns of one gate; each event loop has its own."""

    def __init__(self) -> None:
        self._queues: RunVar[_Queues] = RunVar("apex_creds_turns")

    @asynccontextmanager
    async def turn(self, client: str, plugin: str) -> AsyncIterator[None]:
        """Waits until a client may be asked for a plugin; it may be within it."""
        async with self._queue(client, plugin, PER_PLUGIN), self._queue(client, "", PER_CLIENT):
            yield

    def _queue(self, client: str, plugin: str, places: int) -> anyio.Semaphore:
        queues = self._queues.get(None)
        if queues is None:
            queues = WeakValueDictionary()
            self._queues.set(queues)
        found = queues.get((client, plugin))
        if found is None:
            found = queues[client, plugin] = anyio.Semaphore(places)
        return found
