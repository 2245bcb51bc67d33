"""A login broker: drivers connect to its Unix socket, and it to the server.

Guarantee: a connection belongs to the one lease that was there when it was opened (or, opened
outside of any invocation, when it was first used), and ends with it, the query that runs in it
included. Only this process may connect, with a ticket that names a seat; the folder of the
socket is private. Drivers hold tickets: no secret, and nothing that leads to one.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import secrets
import shutil
import struct
import tempfile
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from apex_creds.concurrency import LoopThread, first_ended, soon
from apex_creds.errors import AccessDeniedError, ApexCredsError, LeaseEndedError
from apex_creds.leases import current_credentials
from apex_creds.leases.broker import find_open, keep_open
from apex_creds.leases.logins import (
    checked_tls,
    lease_here,
    login_origin,
    peer_of,
    redeem_login,
    user_of,
)
from apex_creds.model import Origin
from apex_creds.sdk import postgres_session as wire
from apex_creds.sdk.websocket_handshakes import pass_on

PORT: Final = 5432
_NAME: Final = f".s.PGSQL.{PORT}"
_CHUNK: Final = 64 * 1024
_LONGEST_PATH: Final = 100
_LONGEST_STARTUP: Final = 10_000
_SCHEMES: Final = ("postgresql",)
_OUTSIDE: Final = "outside-any-invocation"


@dataclass(frozen=True, slots=True, eq=False)
class Account:
    """What to log in to, by a credential's name; holds no right to it. Each is another.

    Attributes:
        name: The credential's.
        origin: The server; None: the one that the lease allows.
        database: The role's, by default.
        user: For a credential that is a password only.
        tls: None: everywhere but on this machine.
        allow: ``cleartext``, ``md5``.
    """

    name: str
    origin: Origin | None
    database: str
    user: str
    tls: bool | None
    allow: frozenset[str]


class Seat:
    """What a ticket stands for: a lease, once there is one, and the connections under it."""

    __slots__ = ("account", "context", "lease_id", "sessions", "ticket")

    def __init__(self, account: Account) -> None:
        BROKER.folder()  # the first of a process begins with no seats
        self.account = account
        self.ticket = secrets.token_hex(16)
        self.lease_id = ""
        self.context: Context | None = None
        self.sessions: set[asyncio.Task[None]] = set()
        _SEATS[self.ticket] = self

    def take(self, lease_id: str) -> None:
        """It is the caller's invocation's from now on, until the lease ends."""
        lease, _ = find_open(lease_id)
        self.context, self.lease_id = copy_context(), lease_id
        lease.close_at_end(self.end)

    def end(self) -> None:
        """Ends its connections; from any thread."""
        _SEATS.pop(self.ticket, None)
        if _BY_LEASE.get((self.account, self.lease_id)) is self:
            del _BY_LEASE[self.account, self.lease_id]
        keep_open(self.lease_id, self.end)
        BROKER.soon(self._end_sessions)

    def _end_sessions(self) -> None:
        for task in self.sessions:
            task.cancel()


_SEATS: Final[dict[str, Seat]] = {}
_BY_LEASE: Final[dict[tuple[Account, str], Seat]] = {}
_SERVING: Final[set[asyncio.Task[None]]] = set()
"""A loop holds tasks that wait for a stream by a weak reference only."""
_KEYS: Final[dict[bytes, tuple[wire.Target, str]]] = {}
"""Where the open sessions are, and of which lease, by what their queries are cancelled by."""


def ticket_here(account: Account) -> str:
    """A ticket of the current invocation; where it has no right, one that is refused."""
    try:
        lease_id = lease_here(account.name)
        seat = _BY_LEASE.get((account, lease_id))
        if seat is None:
            seat = Seat(account)
            _BY_LEASE[account, lease_id] = seat
            seat.take(lease_id)
        return seat.ticket
    except AccessDeniedError:
        return _OUTSIDE


def ticket_for_later(account: Account) -> str:
    """A ticket for a connection that takes the first invocation that uses it."""
    return Seat(account).ticket


def check_seat(ticket: str, account: Account) -> None:
    """Returns where the connection of ``ticket`` is the current invocation's, or is now.

    Raises:
        AccessDeniedError: It is another's, or nobody's any more; or there is no invocation.
    """
    lease_id = lease_here(account.name)
    seat = _SEATS.get(ticket)
    if seat is None:
        raise LeaseEndedError(
            "The connection has ended, with the lease that it was opened under.",
            hint="Connect again.",
        )
    if not seat.lease_id:
        seat.take(lease_id)
    elif seat.lease_id != lease_id:
        raise AccessDeniedError(
            "The connection belongs to another invocation.",
            hint="Give the pool check=, so that it hands on none of another's.",
        )


def is_anothers(ticket: str, account: Account) -> bool:
    """Whether the current invocation could not use the connection, for that reason alone.

    One that nobody has used is nobody's; its first use shows whether there is a right to it.
    """
    seat, mine = _SEATS.get(ticket), current_credentials().get(account.name)
    return seat is None or seat.lease_id not in ("", "" if mine is None else mine.id)


class Broker:
    """The socket of this process, and the thread behind it; both begin with the first use."""

    def __init__(self) -> None:
        self._thread = LoopThread("apex-creds-logins")
        self._folder: Path | None = None
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def folder(self) -> str:
        """The private folder that the socket is in."""
        if self._folder is None or self._pid != os.getpid():  # a fork has its own
            _SEATS.clear()
            _BY_LEASE.clear()
            places = [tempfile.gettempdir(), "/tmp"]  # noqa: S108 - made with 0700
            short = [place for place in places if len(place) < _LONGEST_PATH - 40]
            folder = Path(tempfile.mkdtemp(prefix="apex-creds-", dir=short[0]))
            self._folder, self._pid = folder, os.getpid()
            atexit.register(_remove, folder, self._pid)
            # In no invocation's context: its connections would be under that.
            Context().run(self._thread.call, partial(self._listen, folder))
        return str(self._folder)

    def soon(self, call: object) -> None:
        """Has the broker's thread call it."""
        assert callable(call)
        if self._loop is not None:
            soon(self._loop, call)

    async def _listen(self, folder: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = await asyncio.start_unix_server(_serve, folder / _NAME)


BROKER: Final = Broker()


def _remove(folder: Path, pid: int) -> None:
    if pid == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection of a driver."""
    task = asyncio.current_task()
    assert task is not None
    _SERVING.add(task)
    task.add_done_callback(_SERVING.discard)
    try:
        peer = peer_of(writer.get_extra_info("socket"))
        if peer is None or peer[0] == os.getpid():  # a leaked ticket is of no use elsewhere
            await _greet(reader, writer)
    except (OSError, asyncio.IncompleteReadError, struct.error, asyncio.CancelledError):
        return
    finally:
        writer.close()


async def serve_lease(
    account: Account,
    lease_id: str,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    *,
    dial: wire.Dial | None = None,
) -> None:
    """Serves one connection of a driver elsewhere, in the invocation of the caller.

    It is for one lease, whatever user the driver names; the caller ends it with the lease.

    Args:
        account: What to log in to.
        lease_id: With which the credential is redeemed.
        reader: What the driver says.
        writer: What it is answered.
        dial: Connects to the server; None: asyncio does.
    """
    parameters = await _startup(reader, writer, lease_id)
    if parameters is not None:
        await _run(account, lease_id, parameters, (reader, writer), dial=dial)


async def _startup(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lease_id: str
) -> dict[bytes, bytes] | None:
    """What a driver asks for; None: nothing more.

    Only what runs under ``lease_id`` is cancelled; empty: whatever has that key.
    """
    while True:
        length, code = struct.unpack("!II", await reader.readexactly(8))
        if not 8 <= length <= _LONGEST_STARTUP:
            return None
        body = await reader.readexactly(length - 8)
        if code not in (wire.SSL_REQUEST, wire.GSS_REQUEST):
            break
        writer.write(b"N")  # nobody is between the two ends of a Unix socket
    if code == wire.CANCEL_REQUEST:
        target, its_lease = _KEYS.get(body, (None, ""))
        if target is not None and lease_id in ("", its_lease):
            with contextlib.suppress(ApexCredsError):
                await wire.cancel(target, body)
        return None
    if code > wire.PROTOCOL:
        writer.write(wire.message(b"v", struct.pack("!II", wire.PROTOCOL, 0)))
    return wire.read_pairs(body)


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    parameters = await _startup(reader, writer, "")
    if parameters is None:
        return
    seat = _SEATS.get(parameters.get(b"user", b"").decode("ascii", "replace"))
    if seat is None:
        writer.write(
            wire.refusal(
                "The use of the credential was refused: no invocation has it here.",
                "Connect while the plugin is called; the audit log has more.",
            )
        )
        return
    early = b""
    if not seat.lease_id:
        early = await _first_words(seat, reader, writer)
        if not early:
            return
    # In the context of the invocation, which the redeem looks for.
    session = asyncio.get_running_loop().create_task(
        _run(seat.account, seat.lease_id, parameters, (reader, writer), early),
        context=seat.context,
    )
    seat.sessions.add(session)
    session.add_done_callback(seat.sessions.discard)
    await session


async def _first_words(
    seat: Seat, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bytes:
    """Lets a driver in before it is known for whom; what it says first, once that is known."""
    writer.write(wire.LOGGED_IN + wire.READY)
    waiting = asyncio.current_task()
    assert waiting is not None
    seat.sessions.add(waiting)
    try:
        said = await reader.read(_CHUNK)
    finally:
        seat.sessions.discard(waiting)
        if not seat.lease_id:  # it is closed, or not used in the way that takes the seat
            seat.end()
    return said if seat.lease_id else b""


async def _run(
    account: Account,
    lease_id: str,
    parameters: dict[bytes, bytes],
    driver: wire.Streams,
    early: bytes = b"",
    dial: wire.Dial | None = None,
) -> None:
    reader, writer = driver
    try:
        origin = login_origin(lease_id, _SCHEMES, account.origin)
        tls = checked_tls(origin, account.tls)  # before anything is redeemed
        named = account.database or account.user
        login = await redeem_login(lease_id, origin, path=f"/{named}" if named else "")
        opened = login.opened
        try:
            role = user_of(opened, account.user)
            database = account.database or role
            target = wire.Target(origin, role, database, tls, account.allow, dial)
            session = await wire.log_in(target, parameters, opened)
        finally:
            opened.close()
    except ApexCredsError as error:
        code = error.code if isinstance(error, wire.ServerRefusal) else "28000"
        writer.write(wire.refusal(error.message, error.hint, code))
        return
    _KEYS[session.key] = target, lease_id
    try:
        greeting = session.greeting
        # A driver that was let in before must not see a second end of the startup.
        writer.write(greeting[len(wire.LOGGED_IN) : -len(wire.READY)] if early else greeting)
        session.writer.write(early)
        with contextlib.suppress(OSError):
            await first_ended(pass_on(reader, session.writer), pass_on(session.reader, writer))
    except asyncio.CancelledError:  # the lease has ended: what runs on the server ends, too
        with contextlib.suppress(ApexCredsError):
            await wire.cancel(target, session.key)
        raise
    finally:
        _KEYS.pop(session.key, None)
        session.writer.close()
