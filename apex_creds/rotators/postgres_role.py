"""Passwords of PostgreSQL roles: two roles that take turns, or one.

``postgres-role:postgresql://HOST[:PORT]/DATABASE?admin=NAME&roles=ONE,OTHER``

Guarantee: the server gets a SCRAM verifier, made here: no password is in a statement, so none
is in its logs. A name of a role is an identifier to the server, whatever is in it. A login
is by SCRAM or fails, so a server that asks for the password itself gets nothing. TLS with a
verified certificate is used to every other machine. Two roles: who is replaced keeps its
password until ``finish`` takes it away. One role: between its new password and the commit of
it, a new connection is refused; sessions live on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from apex_creds.errors import (
    InvalidInputError,
    NotInstalledError,
    RotatorError,
    RotatorRefusedError,
)
from apex_creds.model import BasicAuth, CredentialKind, Secret
from apex_creds.rotators.protocol import Address, Created, Mode, Task, random_text, text_of

_CONNECT_SECONDS: Final = 15
_LONGEST_NAME: Final = 63
_NO_SUCH_ROLE: Final = "42704"
_AGAIN: Final = ("08", "40", "53", "55", "57", "58", "XX")
"""Classes of SQLSTATE that another try may help with."""


class PostgresRole:
    """See the module; ``from_uri`` makes one."""

    kinds = frozenset({CredentialKind.BASIC})
    longest_grace = None

    def __init__(self, address: Address) -> None:
        self._database = address.path
        roles = tuple(filter(None, address.options.get("roles", "").split(",")))
        self.origin = address.origin
        self.admin = address.options.get("admin", "")
        self.mode = Mode.DUAL if roles else Mode.SWAP
        wrong = len(roles) not in (0, 2) or len(set(roles)) != len(roles)
        if wrong or not address.path or (roles and not self.admin):
            raise InvalidInputError(
                "A rotator of PostgreSQL roles needs a database, and for two roles admin=.",
                hint="Write postgres-role:postgresql://HOST/DATABASE?admin=NAME&roles=A,B, "
                "or without roles= for one role.",
            )
        self._roles = roles

    async def create(self, task: Task) -> Created:
        """See ``Rotator``: for the other of two roles, or the same one."""
        user = text_of(task.current, "user")
        if self._roles:
            if user not in self._roles:
                raise RotatorRefusedError(
                    "The credential's user is none of the two roles.",
                    hint="Name it in ?roles= of the rotator's URI.",
                )
            user = self._roles[1 - self._roles.index(user)]
        return Created(secret=BasicAuth(user, random_text()))

    async def set(self, task: Task, new: Secret) -> None:
        """See ``Rotator``."""
        async with self._ruling(task, new) as session:
            if session is not None:
                await _alter(session, text_of(new, "user"), text_of(new, "password"))

    async def test(self, task: Task, new: Secret) -> None:
        """See ``Rotator``: logs in. Refused is it only where others can log in."""
        try:
            async with self._session(new, proved=True):
                return
        except RotatorError as error:
            failed = error
        others = (each for each in (task.current, *task.others) if each.parts != new.parts)
        for each in others if task.admin is None else (task.admin,):
            try:
                async with self._session(each, proved=False):
                    pass
            except RotatorError:
                continue
            raise RotatorRefusedError(
                "PostgreSQL does not take the new password.",
                hint="Look whether the role may log in (LOGIN, pg_hba.conf).",
            )
        raise failed

    async def finish(self, task: Task, old: Secret) -> None:
        """See ``Rotator``: takes the other role its password, and ends its sessions if lost."""
        user = text_of(old, "user")
        if not self._roles and not task.lost:
            return
        async with self._ruling(task, task.current) as session:
            if self._roles:
                await _alter(_there(session), user, None)
            if task.lost:
                await _run(
                    _there(session),
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE usename = %s AND pid <> pg_backend_pid()",
                    user,
                )

    # -- sessions ------------------------------------------------------------------

    @asynccontextmanager
    async def _ruling(self, task: Task, new: Secret) -> AsyncIterator[Any]:
        """A session that may alter the role; None: it has that password already."""
        if task.admin is not None:
            async with self._session(task.admin, proved=False) as session:
                yield session
            return
        failed = RotatorError("Nobody can log in.")
        for value in (new, task.current, *task.others):
            try:
                session = await self._connected(value, proved=True)
            except RotatorError as error:
                failed = error
                continue
            async with _closing(session):
                yield None if value is new and new is not task.current else session
            return
        raise failed

    @asynccontextmanager
    async def _session(self, who: Secret, *, proved: bool) -> AsyncIterator[Any]:
        async with _closing(await self._connected(who, proved=proved)) as session:
            yield session

    async def _connected(self, who: Secret, *, proved: bool) -> Any:
        psycopg = _psycopg()
        away = not self.origin.here
        failed: RotatorError | None = None
        try:
            return await psycopg.AsyncConnection.connect(
                host=self.origin.host,
                port=self.origin.port,
                dbname=self._database,
                user=text_of(who, "user"),
                password=text_of(who, "password"),
                connect_timeout=_CONNECT_SECONDS,
                application_name="apex-creds",
                require_auth="scram-sha-256" if proved else "scram-sha-256,none",
                autocommit=True,
                **({"sslmode": "verify-full", "sslrootcert": "system"} if away else {}),
            )
        except psycopg.Error as error:
            failed = RotatorError(
                f"Can't log in at {self.origin} ({type(error).__name__}).",
                hint="Check that it runs, the user and its password, and pg_hba.conf: "
                "scram-sha-256.",
            )
        raise failed  # out of the handler: the driver's error has the password in its frames


@asynccontextmanager
async def _closing(session: Any) -> AsyncIterator[Any]:
    try:
        yield session
    finally:
        await session.close()


def _there(session: Any) -> Any:
    if session is None:
        raise RotatorError("There is no session.")
    return session


async def _alter(session: Any, role: str, password: str | None) -> None:
    """Sets a role's password, or takes it away."""
    from psycopg import sql

    if not role or len(role.encode()) > _LONGEST_NAME or "\0" in role:
        raise RotatorRefusedError("That is no name of a role.", hint="Check the user.")
    change = sql.SQL("ALTER ROLE {} PASSWORD {}")
    verifier = None
    if password is not None:
        verifier = session.pgconn.encrypt_password(
            password.encode(), role.encode(), b"scram-sha-256"
        ).decode()
    await _run(
        session,
        change.format(sql.Identifier(role), sql.Literal(verifier)),
        gone_is_fine=password is None,
    )


async def _run(session: Any, statement: Any, *values: str, gone_is_fine: bool = False) -> None:
    psycopg = _psycopg()
    failed: RotatorError | None = None
    try:
        await session.execute(statement, values or None)
    except psycopg.Error as error:
        state = error.sqlstate or "08000"
        if state == _NO_SUCH_ROLE and gone_is_fine:
            return
        kind = RotatorError if state[:2] in _AGAIN else RotatorRefusedError
        failed = kind(
            f"PostgreSQL refused to change the role (SQLSTATE {state}).",
            hint="The admin needs CREATEROLE (from 16 on, ADMIN OPTION on the role); to end "
            "sessions, pg_signal_backend.",
        )
    if failed is not None:
        raise failed


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError:
        raise NotInstalledError(
            "psycopg is needed to rotate roles of PostgreSQL.",
            hint="Install it: pip install 'apex-creds[sql]'",
        ) from None
    return psycopg


def from_uri(uri: str) -> PostgresRole:
    """The rotator of a URI.

    Raises:
        InvalidInputError: It is not understood.
    """
    return PostgresRole(Address.parse(uri, schemes=("postgresql",), options=("roles",)))
