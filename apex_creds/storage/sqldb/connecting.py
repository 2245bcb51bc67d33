"""How a connection to a PostgreSQL server is made.

Guarantee: a password comes from a file that libpq reads or from the OS keyring, at the time
of connecting; it is kept nowhere and is in no URL. A commit that returned is durable, also
where the server's default is otherwise.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import psycopg
import psycopg.conninfo

from apex_creds.errors import StorageError

if TYPE_CHECKING:
    from apex_creds.storage.sqldb.target import Target

_SOON: Final = 1.0
_HAS_REQUIRE_AUTH: Final = 160_000
_DURABLE: Final = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'"
)


class Server:
    """A server, or several of which one can be written to."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def connect(self) -> psycopg.AsyncConnection:
        """A new connection, on which every statement commits.

        One that is made for a caller who is cancelled meanwhile is closed again.

        Raises:
            psycopg.Error: It can't be had.
            StorageError: The keyring has no password, or this event loop can't be used.
        """
        task = asyncio.ensure_future(self._connect())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_drop)
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task}, timeout=_SOON)
            raise

    async def _connect(self) -> psycopg.AsyncConnection:
        given = dict(self._target.connect)
        if psycopg.pq.version() < _HAS_REQUIRE_AUTH:
            given.pop("require_auth", None)
        if self._target.keyring is not None:
            given["password"] = await anyio.to_thread.run_sync(_password, self._target.keyring)
        _check_loop()
        # What a database of any encoding says is text, and the same (psycopg gives bytes for
        # SQL_ASCII). All that is ours is ASCII or binary, so that no encoding can change it.
        said = psycopg.conninfo.make_conninfo("", **given, client_encoding="UTF8")
        connection = await psycopg.AsyncConnection.connect(said, autocommit=True)
        try:
            await connection.execute(_DURABLE)
        except BaseException:
            connection.pgconn.finish()
            raise
        return connection


def _drop(task: asyncio.Task[psycopg.AsyncConnection]) -> None:
    if not task.cancelled() and task.exception() is None:
        connection = task.result()
        connection.pgconn.finish()


def _password(place: tuple[str, str]) -> str:
    import keyring
    from keyring.errors import KeyringError

    service, user = place
    try:
        found = keyring.get_password(service, user)
    except KeyringError as error:
        raise StorageError(
            f"The keyring does not answer ({type(error).__name__}).",
            hint="Unlock it, or use ?passfile=PATH.",
        ) from None
    if found is None:
        raise StorageError(
            f"The keyring has no password for {service}/{user}.",
            hint=f"Store it with: keyring set {service} {user}",
        )
    return found


def _check_loop() -> None:
    if type(asyncio.get_running_loop()).__name__ == "ProactorEventLoop":
        raise StorageError(
            "This event loop can't be used with PostgreSQL on Windows.",
            hint="Run under asyncio.SelectorEventLoop.",
        )
