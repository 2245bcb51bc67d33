"""Redis for redis-py, whose clients and connections never have the password.

Guarantee: a client is made once, by a credential's name; each connection logs in under the
lease of the invocation that it is opened in, with the password sent from locked memory, ends
with that lease, and carries no command of another invocation: a pool that hands it on has it
opened anew. No reply brings the password back, as one to ``CONFIG GET requirepass`` would.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import redis
import redis.asyncio as aredis
from redis.exceptions import NoPermissionError, RedisError

from apex_creds.concurrency import run_at_once, soon
from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.leases.broker import find_open, keep_open
from apex_creds.leases.http_messages import MessageFilter
from apex_creds.leases.logins import (
    lease_here,
    login_origin,
    redeem_login,
    redeem_login_blocking,
    search_of,
    shut,
    tls_context,
    user_of,
)
from apex_creds.model import Origin, check_name
from apex_creds.vault import Opened

_SCHEMES: Final = ("redis", "rediss")
_OURS: Final = frozenset(
    {"connection_class", "connection_pool", "credential_provider", "host", "password", "path"}
    | {"port", "redis_connect_func", "ssl", "ssl_context", "unix_socket_path", "username"}
)


def client(name: str, *, origin: str = "", user: str = "", **options: Any) -> redis.Redis:
    """A client that logs in with the credential ``name``; for any number of invocations.

    Args:
        name: The credential's.
        origin: ``redis://HOST[:PORT]`` or ``rediss://``, where the credential has several.
        user: For a credential that is a password only; one of kind basic has its own.
        options: As for ``redis.Redis``; those that say where and with what are refused.

    Raises:
        InvalidInputError: An argument is not as described.
    """
    pool = redis.ConnectionPool(**_options(_Bound, name, origin, user, options))
    return redis.Redis.from_pool(pool)


def async_client(
    name: str, *, origin: str = "", user: str = "", **options: Any
) -> aredis.Redis:
    """As ``client``, of ``redis.asyncio``."""
    pool = aredis.ConnectionPool(**_options(_AsyncBound, name, origin, user, options))
    return aredis.Redis.from_pool(pool)


def _options(
    kind: type, name: str, origin: str, user: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    refused = sorted(key for key in options if key in _OURS or key.startswith("ssl_"))
    if refused:
        raise InvalidInputError(
            f"sdk.redis does not take {', '.join(refused)}.",
            hint="The credential says where and with what to log in.",
        )
    where = Origin.parse(origin) if origin else None
    if where is not None and where.scheme not in _SCHEMES:
        raise InvalidInputError(
            f"{origin[:80]!r} is not a Redis server.", hint="Write redis://HOST[:PORT]."
        )
    unknown = sorted(options.keys() - inspect.signature(redis.Redis).parameters.keys())
    if unknown:
        raise InvalidInputError(
            f"redis.Redis has no option {', '.join(unknown)}.",
            hint="It is one server: a cluster and Sentinel have no adapter.",
        )
    account = _Account(check_name(name), where, user)
    return {**options, "connection_class": kind, "apex_account": account}


class _Account(NamedTuple):
    """What to log in to; holds no right to it."""

    name: str
    origin: Origin | None
    user: str


_SEARCHES: Final[MutableMapping[object, MessageFilter]] = WeakKeyDictionary()
"""What the replies on a connection are searched with: a plugin has the connection."""


class _Ours:
    """What both kinds of connection do: they belong to the lease that they logged in under."""

    host: str
    port: int

    def __init__(self, apex_account: _Account, **options: Any) -> None:
        super().__init__(**options)
        self._account = apex_account
        self._lease_id = ""
        self._at_end: list[Callable[[], object]] = []
        self._server: Origin | None = None

    def repr_pieces(self) -> list[tuple[str, object]]:
        return [("credential", self._account.name)]

    def _mine(self) -> str:
        """The current invocation's lease.

        Raises:
            NoPermissionError: It has none.
        """
        try:
            return lease_here(self._account.name)
        except ApexCredsError as error:
            raise _refused(error) from None

    def _place(self) -> Origin:
        """Where to connect to, which is noted down."""
        try:
            origin = login_origin(self._mine(), _SCHEMES, self._account.origin)
        except ApexCredsError as error:
            raise _refused(error) from None
        self.host, self.port, self._server = origin.host, origin.port, origin
        return origin

    def _is_anothers(self) -> bool:
        return bool(self._lease_id) and self._lease_id != self._mine()

    async def _log_in(
        self,
        write: Callable[[bytes | memoryview], object],
        close: Callable[[], object],
        *,
        blocking: bool = False,
    ) -> None:
        """Logs in, and has ``close`` called when the lease ends."""
        connection: Any = self
        lease_id, server = self._mine(), self._server
        try:
            assert server is not None
            login = (
                redeem_login_blocking(lease_id, server)
                if blocking
                else await redeem_login(lease_id, server)
            )
            with login.opened as opened:
                search = search_of(lease_id, login.record)
                self._lease_id, self._at_end = lease_id, [close]
                if search is not None:
                    self._at_end.append(search.close)
                    _SEARCHES[self] = search
                for each in self._at_end:
                    find_open(lease_id)[0].close_at_end(each)
                for part in _login(opened, self._account.user):
                    write(part)
                answer = connection.read_response()
                if not blocking:
                    await answer
        except ApexCredsError as error:
            raise _refused(error) from None

    def _end(self) -> None:
        lease_id, self._lease_id = self._lease_id, ""
        for each in self._at_end:
            keep_open(lease_id, each)
        self._at_end = []
        search = _SEARCHES.pop(self, None)
        if search is not None:
            search.close()

    def _clean(self, reply: Any) -> Any:
        """A reply, and what is in it, without the password."""
        search = _SEARCHES.get(self)
        if search is None or not reply:
            return reply
        if isinstance(reply, str | bytes):
            return search.whole(reply)
        if isinstance(reply, dict):
            return {self._clean(key): self._clean(value) for key, value in reply.items()}
        if isinstance(reply, list | tuple | set):
            return type(reply)(map(self._clean, reply))
        if isinstance(reply, RedisError):
            clean = self._clean(str(reply))
            return reply if clean == str(reply) else type(reply)(clean)
        return reply

    def _failed(self, error: RedisError | ApexCredsError) -> RedisError:
        """What is raised of it: clean, and without the frames that have what came."""
        if isinstance(error, ApexCredsError):
            return _refused(error)
        failure: RedisError = self._clean(error)
        return failure.with_traceback(None)


class _Bound(_Ours, redis.Connection):
    """A blocking connection."""

    def connect(self) -> None:
        if self._is_anothers():
            self.disconnect()
        super().connect()

    def _connect(self) -> socket.socket:
        origin = self._place()
        sock: socket.socket = super()._connect()
        if origin.scheme == "rediss":
            return tls_context().wrap_socket(sock, server_hostname=origin.host)
        return sock

    def on_connect_check_health(self, check_health: bool = True) -> None:
        self._parser.on_connect(self)
        sock = self._sock
        run_at_once(self._log_in(sock.sendall, partial(shut, sock), blocking=True))
        super().on_connect_check_health(check_health)

    def read_response(self, *args: Any, **options: Any) -> Any:
        """See ``redis.Connection.read_response``."""
        try:
            return self._clean(super().read_response(*args, **options))
        except (RedisError, ApexCredsError) as error:
            failure = self._failed(error)
        raise failure

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self._is_anothers():
            self.disconnect()
            raise _anothers()
        super().send_packed_command(command, check_health)

    def disconnect(self, *args: Any, **options: Any) -> None:
        self._end()
        super().disconnect(*args, **options)


class _AsyncBound(_Ours, aredis.Connection):
    """An asynchronous connection."""

    async def connect(self) -> None:
        if self._is_anothers():
            await self.disconnect(nowait=True)
        await super().connect()

    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        if not self.is_connected:
            self._place()  # in there, a refusal would be taken for a lost connection
        await super().connect_check_health(*args, **options)

    def _connection_arguments(self) -> dict[str, Any]:
        origin = self._server
        assert origin is not None
        found: dict[str, Any] = {"host": origin.host, "port": origin.port}
        if origin.scheme == "rediss":
            found.update(ssl=tls_context(), server_hostname=origin.host)
        return found

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        self._parser.on_connect(self)
        writer, loop = self._writer, asyncio.get_running_loop()
        await self._log_in(writer.write, partial(soon, loop, writer.transport.abort))
        await super().on_connect_check_health(check_health)

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """As ``_Bound.read_response``."""
        try:
            return self._clean(await super().read_response(*args, **options))
        except (RedisError, ApexCredsError) as error:
            failure = self._failed(error)
        raise failure

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self._is_anothers():
            await self.disconnect(nowait=True)
            raise _anothers()
        await super().send_packed_command(command, check_health)

    async def disconnect(self, *args: Any, **options: Any) -> None:
        self._end()
        await super().disconnect(*args, **options)


def _login(opened: Opened, user: str) -> list[bytes | memoryview]:
    """The AUTH command, the password where it lies."""
    name = user_of(opened, user or "default").encode()
    password = opened.view()
    head = b"*3\r\n$4\r\nAUTH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(name), name, len(password))
    return [head, password, b"\r\n"]


def _refused(error: ApexCredsError) -> NoPermissionError:
    return NoPermissionError(str(error))


def _anothers() -> NoPermissionError:
    return NoPermissionError("The connection belongs to another invocation. Take a new one.")
