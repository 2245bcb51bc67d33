"""PostgreSQL for psycopg, asyncpg and SQLAlchemy, whose connections never see the password.

Guarantee: made once by a credential's name; each connection is logged in by the login broker
under the lease of the invocation that opens it, ends with that lease, and is used by no other
invocation: a pool hands it on to the same one only.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from apex_creds.errors import AccessDeniedError, InvalidInputError
from apex_creds.leases import current_invocation
from apex_creds.model import Origin, check_name
from apex_creds.sdk.postgres_broker import (
    BROKER,
    PORT,
    Account,
    check_seat,
    is_anothers,
    ticket_for_later,
    ticket_here,
)

if TYPE_CHECKING:
    from asyncpg import Connection as AsyncpgConnection
    from psycopg import AsyncConnection, Connection
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

_INFO: Final = "apex_creds"


def login(
    name: str,
    *,
    database: str = "",
    user: str = "",
    origin: str = "",
    tls: bool | None = None,
    allow: Collection[str] = (),
) -> Login:
    """A way to log in; for any number of connections.

    Args:
        name: The credential's.
        database: The role's own by default. Manifest and grant may limit it: paths ``/NAME``.
        user: For a credential that is a password only; one of kind basic has its own.
        origin: ``postgresql://HOST[:PORT]``, where the credential has several.
        tls: TLS with a verified certificate is used to every other machine; ``True``: here,
            too.
        allow: ``md5`` and ``cleartext`` besides SCRAM-SHA-256; the latter over TLS only, or to
            this machine.

    Raises:
        InvalidInputError: An argument is not as described.
    """
    where = Origin.parse(origin) if origin else None
    if where is not None and where.scheme != "postgresql":
        raise InvalidInputError(
            f"{origin[:80]!r} is not a PostgreSQL server.",
            hint="Write postgresql://HOST[:PORT].",
        )
    if not set(allow) <= {"md5", "cleartext"}:
        raise InvalidInputError("allow has md5 and cleartext only.", hint="Leave it out.")
    account = Account(check_name(name), where, database, user, tls, frozenset(allow))
    return Login(account)


class Login:
    """What ``login`` returns: the settings with which each driver connects."""

    __slots__ = ("_account",)

    def __init__(self, account: Account) -> None:
        self._account = account

    def __repr__(self) -> str:
        return f"<postgres.login {self._account.name!r}>"

    def dsn(self) -> str:
        """A URL for any driver, good in this invocation only; outside of any it is refused.

        For one connection, or a pool that lives within the invocation:
        ``psycopg.connect(db.dsn())``, ``asyncpg.connect(db.dsn())``.
        """
        folder, database = quote(BROKER.folder(), safe=""), quote(self._account.database)
        ticket = ticket_here(self._account)
        return f"postgresql://{ticket}@/{database}?host={folder}&port={PORT}"

    def psycopg(self) -> dict[str, Any]:
        """For a pool that is made once: ``ConnectionPool(**db.psycopg())``.

        Each connection takes the first invocation that uses it; one of another is replaced.
        """
        import psycopg

        return {
            "connection_class": _bound(self._account, psycopg.Connection),
            "check": self._check,
        }

    def psycopg_async(self) -> dict[str, Any]:
        """As ``psycopg``, for ``AsyncConnectionPool``."""
        import psycopg

        return {
            "connection_class": _bound(self._account, psycopg.AsyncConnection),
            "check": self._acheck,
        }

    def asyncpg(self) -> dict[str, Any]:
        """For a pool that is made once: ``asyncpg.create_pool(**db.asyncpg())``.

        It opens a connection when one is acquired, and closes it when it is released.
        """
        return {
            "connect": self._asyncpg_connect,
            "reset": lambda connection: connection.close(),
            "min_size": 0,
        }

    def sqlalchemy(self, engine: Engine | AsyncEngine) -> None:
        """Has an engine log in here; once, where it is made.

        ``create_engine("postgresql+psycopg://", …)``; of the URL only driver and options count.
        """
        from sqlalchemy import event, exc

        pool_of: Any = getattr(engine, "sync_engine", engine)

        def connect(_d: object, record: Any, _a: object, options: dict[str, Any]) -> None:
            ticket = ticket_here(self._account)
            options.update(host=BROKER.folder(), port=PORT, user=ticket)
            options.pop("password", None)
            if record is not None:
                record.info[_INFO] = ticket

        def checkout(_: object, record: Any, __: object) -> None:
            if record.info.get(_INFO) != ticket_here(self._account):
                raise exc.DisconnectionError("The connection is of another invocation.")

        event.listen(pool_of, "do_connect", connect)
        event.listen(pool_of, "checkout", checkout)

    def _check(self, connection: Connection[Any]) -> None:
        if is_anothers(connection.pgconn.user.decode(), self._account):
            connection.close()  # or the pool would offer it again
            raise _not_yours()

    async def _acheck(self, connection: AsyncConnection[Any]) -> None:
        if is_anothers(connection.pgconn.user.decode(), self._account):
            await connection.close()
            raise _not_yours()

    async def _asyncpg_connect(self, *_: object, **options: Any) -> AsyncpgConnection:
        import asyncpg

        return await asyncpg.connect(self.dsn(), **options)


def _not_yours() -> AccessDeniedError:
    return AccessDeniedError("The connection belongs to another invocation.")


def _place(account: Account) -> dict[str, Any]:
    """Where psycopg connects: in the invocation that there is, or for one that comes."""
    folder = BROKER.folder()
    ticket = ticket_here(account) if current_invocation() else ticket_for_later(account)
    return {"host": folder, "port": PORT, "user": ticket, "dbname": account.database or ticket}


def _check_use(account: Account, ticket: str) -> None:
    """As the driver's own error."""
    import psycopg

    try:
        check_seat(ticket, account)
    except AccessDeniedError as error:
        raise psycopg.errors.InvalidAuthorizationSpecification(str(error)) from None


@lru_cache(maxsize=64)
def _bound(account: Account, kind: Any) -> Any:
    """A class of psycopg's connections, blocking or asynchronous ones."""

    class Bound(kind):
        """Of the first invocation that uses it."""

        @classmethod
        def connect(cls, conninfo: str = "", **options: Any) -> Any:
            return super().connect(conninfo, **{**options, **_place(account)})

        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            _check_use(account, self.pgconn.user.decode())
            return super().wait(gen, *args, **options)

    return Bound
