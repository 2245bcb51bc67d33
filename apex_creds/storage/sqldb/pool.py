"""Connections to a PostgreSQL server that are kept and used again.

Guarantee: at most so many at once, and whoever waits too long for one is told; one that
broke, or was left in the middle of something, is closed and never used again. Between
checking one out and using it there is nothing: a statement costs its round trip.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus

from apex_creds.errors import StorageBusyError
from apex_creds.storage.sqldb.common import told
from apex_creds.storage.sqldb.dberrors import FailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from apex_creds.storage.sqldb.connecting import Server


class Pool:
    """Used in one event loop.

    Args:
        server: Where they lead.
        size: How many there may be.
        wait: Seconds that one is waited for.
    """

    def __init__(self, server: Server, *, size: int, wait: float) -> None:
        self._server = server
        self._wait = wait
        self._turns = asyncio.Semaphore(size)
        self._idle: list[psycopg.AsyncConnection] = []
        self._closed = False

    async def run(
        self, statement: str, values: Mapping[str, object]
    ) -> psycopg.AsyncCursor[tuple[object, ...]]:
        """Executes one statement, which is committed on return.

        Raises:
            FailedError: It failed.
        """
        async with self.connection() as connection:
            with told():
                cursor: psycopg.AsyncCursor[tuple[object, ...]]
                cursor = connection.cursor(binary=True)
                return await cursor.execute(statement, values, prepare=True)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection]:
        """A connection, for the block.

        Raises:
            FailedError: None can be had.
        """
        await self._turn()
        try:
            connection = await self._take()
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._turns.release()

    async def close(self) -> None:
        """Closes all that are not in use, and the others when they are given back."""
        self._closed = True
        self._forget_idle()

    async def _turn(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()
            return
        try:
            async with asyncio.timeout(self._wait):
                await self._turns.acquire()
        except TimeoutError:
            raise FailedError(
                StorageBusyError(
                    "No connection to the database became free in time.",
                    hint="Give it more (?pool=), or ask for less at once.",
                )
            ) from None

    async def _take(self) -> psycopg.AsyncConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        with told(sent=False):
            return await self._server.connect()

    def _give_back(self, connection: psycopg.AsyncConnection) -> None:
        sound = connection.pgconn.transaction_status == TransactionStatus.IDLE
        if sound and not self._closed:
            self._idle.append(connection)
            return
        if not sound:  # what ended this one has ended the others: a restart, for one
            self._forget_idle()
        connection.pgconn.finish()

    def _forget_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.pgconn.finish()
