"""Hearing from a PostgreSQL server, without asking.

Guarantee: who follows is called soon after another process said that it wrote, and every
second in any case, also while the server can't be reached; a leader whose connection broke
learns it at once, and one whose server went silent within seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from psycopg import sql

from apex_creds.errors import StorageError
from apex_creds.storage.sqldb.dberrors import DATABASE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from apex_creds.storage.base import Leadership
    from apex_creds.storage.sqldb.connecting import Server

_EVERY: Final = 1.0
_SILENT: Final = 3.0


class Listener:
    """A task that listens on a connection of its own.

    Args:
        server: Where to.
        channel: What to.
        sender: What this process signs its own notifications with; they are not passed on.
        heard: Called without waiting.
    """

    def __init__(
        self, server: Server, *, channel: str, sender: str, heard: Callable[[], None]
    ) -> None:
        self._server = server
        self._channel = channel
        self._sender = sender
        self._heard = heard
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Ends it."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(*DATABASE_ERRORS, StorageError):
                await self._listen()
            self._heard()
            await asyncio.sleep(_EVERY / 4)

    async def _listen(self) -> None:
        connection = await self._server.connect()
        try:
            await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
            self._heard()  # for what was said before
            while True:
                await self._wait(connection)
        finally:
            connection.pgconn.finish()

    async def _wait(self, connection: psycopg.AsyncConnection) -> None:
        others = own = False
        async for notify in connection.notifies(timeout=_EVERY, stop_after=1):
            own = notify.payload == self._sender
            others = others or not own
        if others or not own:
            self._heard()


async def watch_over(connection: psycopg.AsyncConnection, lead: Leadership) -> None:
    """Ends ``lead`` when the connection does, or its server does not answer any more."""
    try:
        while True:
            async for _ in connection.notifies(timeout=_EVERY):
                pass
            answer = asyncio.ensure_future(_ask(connection))
            await asyncio.wait({answer}, timeout=_SILENT)
            if not answer.done():
                answer.cancel()
                return
            answer.result()
    except DATABASE_ERRORS:
        pass
    finally:
        lead.lose()


async def _ask(connection: psycopg.AsyncConnection) -> None:
    await connection.execute("SELECT 1")
