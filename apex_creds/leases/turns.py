"""Turns for what a client can be asked at once: uses wait for each other, and do not fail.

Guarantee: at most ``PER_CLIENT`` uses of this process ask a client at a time, at most
``PER_PLUGIN`` of them for one plugin; the rest wait in order. Of a plugin that waits, only
those few stand in the client's queue, so that it keeps no other from its turn.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from apex_creds.concurrency import Queues
from apex_creds.policy.challenge import MAX_OPEN

PER_CLIENT: Final = MAX_OPEN // 2
"""Other processes ask the same client."""
PER_PLUGIN: Final = PER_CLIENT // 2


class Turns:
    """The turns of one gate."""

    def __init__(self) -> None:
        self._plugins: Queues[tuple[str, str]] = Queues()
        self._clients: Queues[str] = Queues()

    @asynccontextmanager
    async def turn(self, client: str, plugin: str) -> AsyncIterator[None]:
        """Waits until a client may be asked for a plugin; it may be within it."""
        async with (
            self._plugins.held((client, plugin), places=PER_PLUGIN),
            self._clients.held(client, places=PER_CLIENT),
        ):
            yield
