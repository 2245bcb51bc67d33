"""WebSockets for the ``websockets`` package, whose connections never have the secret.

Guarantee: the client shakes hands with one end of a pair of sockets; what stands at the other
end adds the secret, and sends it by TLS to where it may go. The connection ends with its lease,
is used by no other invocation, and no message brings the secret back.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect, process_exception
from websockets.client import ClientProtocol, backoff
from websockets.exceptions import InvalidState
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Event
from websockets.sync import client as sync_client

from apex_creds.concurrency import LoopThread, first_ended, soon
from apex_creds.errors import ApexCredsError, InvalidInputError, RequestNotAllowedError
from apex_creds.leases import current_credentials
from apex_creds.leases.exchange import Head, injected_head
from apex_creds.leases.http_messages import MessageFilter, Request
from apex_creds.leases.logins import tls_context
from apex_creds.sdk.current import Binding, refused
from apex_creds.sdk.websocket_handshakes import (
    AGREED,
    LONGEST_HEAD,
    pairs_of,
    pass_on,
    refusal_of,
    shake,
    written,
)

_OURS: Final = frozenset(
    {"create_connection", "host", "port", "proxy", "server_hostname", "sock", "ssl", "unix"}
)
_DROPPED: Final = frozenset({b"host", b"connection", b"upgrade"})
_relays: Final[set[object]] = set()
"""Their loops keep no reference."""
_thread: Final = LoopThread("apex-creds-websockets")


def dial(url: str, *names: str, scope: str | None = None, **options: Any) -> Dialled:
    """A connection with credentials in its handshake: ``async with`` it, or await it.

    Args:
        url: ``wss://…``; the credential's origin is the same with ``https``.
        names: Of credentials; none: all of the invocation that may go there.
        scope: One that the leases must have.
        options: As for ``websockets.connect``; those that say how to reach the server are
            refused.

    Raises:
        InvalidInputError: An argument is not as described.
    """
    return Dialled(Binding(names, scope), _checked(url, options), options)


def sync_dial(
    url: str, *names: str, scope: str | None = None, **options: Any
) -> sync_client.ClientConnection:
    """As ``dial``, for threads: an open connection of ``websockets.sync``; use it as ``with``.

    Args:
        url: ``wss://…``.
        names: Of credentials.
        scope: One that the leases must have.
        options: As for ``websockets.sync.client.connect``.
    """
    checked = _checked(url, options)
    ours, theirs = socket.socketpair()
    relay = _Relay(Binding(names, scope), checked)
    future = _thread.start(partial(relay.run, ours))  # in the context of who dials
    _relays.add(future)
    future.add_done_callback(_relays.discard)
    return sync_client.connect(
        _local(checked),
        sock=theirs,
        proxy=None,
        create_connection=partial(_SyncConnection, relay.guard),
        **options,
    )


def _checked(url: str, options: dict[str, Any]) -> str:
    """What is connected to, as a URL of HTTP."""
    refused_options = sorted(_OURS & set(options))
    if refused_options:
        raise InvalidInputError(
            f"sdk.websockets.dial does not take {', '.join(refused_options)}.",
            hint="The URL says where to connect to.",
        )
    scheme, mark, rest = url.partition("://")
    if not mark or scheme.lower() not in ("ws", "wss"):
        raise InvalidInputError(f"{url[:80]!r} is no WebSocket.", hint="Write wss://HOST/PATH.")
    return f"http{'s' if scheme.lower() == 'wss' else ''}://{rest}"


def _local(url: str) -> str:
    """The client's URL: there is no TLS on the way to the other end of the pair."""
    return f"ws://{url.partition('://')[2]}"


class Dialled:
    """What ``dial`` returns; use it once, or in an ``async for``."""

    def __init__(self, binding: Binding, url: str, options: dict[str, Any]) -> None:
        self._binding = binding
        self._url = url
        self._options = options
        self._open: Any = None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._connect().__await__()

    async def __aenter__(self) -> Any:
        self._open = await self._connect()
        return self._open

    async def __aexit__(self, *_: object) -> None:
        await self._open.close()

    async def __aiter__(self) -> AsyncIterator[Any]:
        """Connects again, and again, as ``websockets.connect`` does; each is a redeem."""
        is_final = self._options.get("process_exception", process_exception)
        delays: Iterator[float] | None = None
        while True:
            try:
                async with self as connection:
                    yield connection
                delays = None
            except Exception as error:  # noqa: BLE001 - it is theirs to say which are final
                final = is_final(error)
                if final is not None:
                    raise final from None
                delays = delays or backoff()
                await asyncio.sleep(next(delays))

    async def _connect(self) -> Any:
        ours, theirs = socket.socketpair()
        relay = _Relay(self._binding, self._url)
        task = asyncio.create_task(relay.run(ours))
        _relays.add(task)
        task.add_done_callback(_relays.discard)
        made = partial(_Connection, relay.guard)
        return await connect(
            _local(self._url), sock=theirs, proxy=None, create_connection=made, **self._options
        )


class _Guard:
    """Whose the connection is, and what its messages are searched with."""

    def __init__(self) -> None:
        self.lease_ids: frozenset[str] = frozenset()
        self.search: MessageFilter | None = None

    def check(self) -> None:
        if not self.lease_ids <= {handle.id for handle in current_credentials().values()}:
            raise InvalidState("The connection belongs to another invocation. Dial again.")

    def clean(self, message: Any) -> Any:
        return message if self.search is None else self.search.whole(message)

    def clean_end(self, protocol: ClientProtocol, event: Event) -> None:
        """A server's reason to close is searched as well."""
        end = protocol.close_rcvd
        if isinstance(event, Frame) and event.opcode is Opcode.CLOSE and end is not None:
            protocol.close_rcvd = Close(end.code, self.clean(end.reason))


class _Guarded:
    """What both kinds of connection do."""

    protocol: ClientProtocol

    def __init__(self, guard: _Guard, *args: Any, **options: Any) -> None:
        self._guard = guard  # first: the threads of one begin within
        super().__init__(*args, **options)

    def process_event(self, event: Event) -> None:
        self._guard.clean_end(self.protocol, event)
        super().process_event(event)  # type: ignore[misc]


class _Connection(_Guarded, ClientConnection):
    """Searches what it receives; of one invocation."""

    async def recv(self, decode: bool | None = None) -> Any:
        self._guard.check()
        return self._guard.clean(await super().recv(decode))

    async def recv_streaming(self, decode: bool | None = None) -> AsyncIterator[Any]:
        yield await self.recv(decode)  # whole: a secret may lie over the border of two

    async def send(self, *args: Any, **options: Any) -> None:
        self._guard.check()
        await super().send(*args, **options)


class _SyncConnection(_Guarded, sync_client.ClientConnection):
    """As ``_Connection``, for threads."""

    def recv(self, timeout: float | None = None, decode: bool | None = None) -> Any:
        self._guard.check()
        return self._guard.clean(super().recv(timeout, decode))

    def recv_streaming(self, decode: bool | None = None) -> Iterator[Any]:
        yield self.recv(decode=decode)

    def send(self, *args: Any, **options: Any) -> None:
        self._guard.check()
        super().send(*args, **options)


class _Relay:
    """The other end of the pair."""

    def __init__(self, binding: Binding, url: str) -> None:
        self.guard = _Guard()
        self._binding = binding
        self._url = url

    async def run(self, sock: socket.socket) -> None:
        """Shakes hands with the server, then passes on what comes, until the lease ends."""
        reader, writer = await asyncio.open_connection(sock=sock, limit=LONGEST_HEAD)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            try:
                sent = await self._injected(head)
                upstream, server = await self._connected(sent)
            except ApexCredsError as error:
                writer.write(refusal_of(refused(error)))
                return
            try:
                status, pairs = await shake(sent, upstream, server)
                del sent  # it has the secret
                writer.write(written(status, pairs))
                if status == AGREED:
                    await first_ended(pass_on(reader, server), pass_on(upstream, writer))
            except ApexCredsError as error:
                writer.write(refusal_of(refused(error)))
            finally:
                server.close()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    async def _injected(self, head: bytes) -> Head:
        kept = [pair for pair in pairs_of(head) if pair[0].lower() not in _DROPPED]
        request = Request(
            "GET", self._url, kept, None, {}, lambda _: OSError("the connection failed")
        )
        found = await injected_head(self._binding.leases(request), request)
        self.guard.lease_ids = frozenset(lease.id for lease in found.leases)
        if found.search is not None:
            search = self.guard.search = found.search.messages(found.leases, found.records)
            if search is not None:
                found.leases[0].close_at_end(search.close)
        task = asyncio.current_task()
        assert task is not None
        for lease in found.leases:
            lease.close_at_end(partial(soon, asyncio.get_running_loop(), task.cancel))
        return found

    async def _connected(self, head: Head) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        url = head.outgoing.url
        secure = url.scheme == "https"
        try:
            return await asyncio.open_connection(
                url.host,
                url.port or (443 if secure else 80),
                ssl=tls_context() if secure else None,
                limit=LONGEST_HEAD,
            )
        except OSError as error:
            raise RequestNotAllowedError(
                f"The server {url.host} can't be reached ({type(error).__name__})."
            ) from None
