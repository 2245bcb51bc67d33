"""One connection to a gateway: its requests, one after another, and what they are answered.

Guarantee: a request goes on only as a redeem of the invocation that the connection belongs to.
What is not clear is refused, and the connection closed; a placeholder where none may be is a
leak, and audited. Bodies stream both ways, no faster than they are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from http.client import responses
from typing import Final
from urllib.parse import urljoin

import h11
import httpx
import msgspec

from apex_creds.crypto.certificates import CertificateAuthority
from apex_creds.errors import (
    ApexCredsError,
)
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.invocations import (
    cancelled_at_end,
    check_tunnel,
    held_by,
    nobody_there,
    report_leak,
)
from apex_creds.isolation.placeholders import MisplacedError, Placeholders, Sent
from apex_creds.isolation.request_heads import (
    END,
    BadRequestError,
    Head,
    Place,
    check_lines,
    place_of,
    read_head,
    tunnel_of,
)
from apex_creds.isolation.websocket_frames import WebSocket
from apex_creds.leases.connection_pool import NETWORK
from apex_creds.leases.http_messages import Answered, RawHeaders, Request, SendFailure
from apex_creds.leases.lease import Invocation
from apex_creds.middleware.call import Inside, WrappedCall
from apex_creds.model import HTTP, DeliveryStyle, Origin
from apex_creds.redaction.content_coding import UndecodableError
from apex_creds.sdk.current import Binding, refused
from apex_creds.sdk.websocket_handshakes import AGREED

CHUNK: Final = 64 * 1024
_WHOLE: Final = 1024 * 1024
"""Bytes of a body that is read before it is sent, so that it can be searched, or signed."""
_LINGERS: Final = 1.0
"""Seconds for which a refused client may go on sending, so that it reads why."""
_READ_WHOLE: Final = (b"application/json", b"application/x-www-form-urlencoded")
_HAS_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_ONE_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
    | {b"proxy-authenticate", b"proxy-authentication-info", b"proxy-connection", b"alt-svc"}
)
_WEBSOCKET: Final = "websocket"
_TIMEOUT: Final = {"connect": 15.0, "read": 900.0, "write": 60.0, "pool": 60.0}


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway takes at most: bytes, numbers, and seconds without any progress."""

    head: int = CHUNK
    headers: int = 128
    body: int = 5 * 1024**3
    connections: int = 128
    idle: float = 90.0
    reading: float = 30.0
    writing: float = 60.0


class Setting(msgspec.Struct, eq=False):
    """What all connections of a gateway work with.

    Attributes:
        invocation_of: Who runs behind it now; None: nobody.
        placeholders: Those in its environment.
        certificates: With which it is a proxy for https; None: it is none.
        dialer: Connects to servers.
        authority: ``HOST:PORT`` of the gateway, as who is behind it sees that.
    """

    invocation_of: Callable[[], Invocation | None]
    placeholders: Placeholders
    certificates: CertificateAuthority | None
    dialer: Dialer
    limits: Limits
    authority: str = ""


class Protocol(asyncio.StreamReaderProtocol):
    """Says when the client has gone, also while nobody reads from it."""

    on_gone: Callable[[], object] | None = None

    def eof_received(self) -> bool | None:
        """See ``asyncio.Protocol``."""
        if self.on_gone is not None:
            self.on_gone()
        return super().eof_received()


class Connection:
    """One connection, of one invocation, from its first request to its last.

    Args:
        setting: Of the gateway that it came to.
        reader: What the client says.
        writer: What it is answered.
        within: Where the tunnel leads that it is; None: it is none.
    """

    def __init__(
        self,
        setting: Setting,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        within: Origin | None = None,
    ) -> None:
        self._setting = setting
        self._limits = setting.limits
        self._reader = reader
        self._writer = writer
        self._within = within
        self._rest = b""
        """What has come after the request that is served."""

    async def run(self) -> None:
        """Serves requests, one after another."""
        call = self._setting.invocation_of()
        NETWORK.set(self._setting.dialer)
        with cancelled_at_end(call):
            while await self._one(call):
                pass

    async def _one(self, call: Invocation | None) -> bool:
        """Serves one request; whether there may be another."""
        exchange = h11.Connection(h11.SERVER)
        try:
            head = await self._head(exchange)
            if head is None:
                return False
            if call is None or call.ended or self._setting.invocation_of() is not call:
                raise nobody_there()
            assert isinstance(call, WrappedCall)
            if head.method == "CONNECT":
                return await self._tunnelled(exchange, head, call)
            with Inside(call):
                place = place_of(head, self._setting.authority, self._within)
                await self._answer(exchange, head, place, call)
        except BadRequestError as error:
            await self._refuse(exchange, _said(error.status, error.text))
        except _UpstreamError as error:
            await self._refuse(exchange, _said(error.status, str(error)))
        except ApexCredsError as error:
            await self._refuse(exchange, refused(error))
        else:
            self._rest = exchange.trailing_data[0]
            done = exchange.our_state is exchange.their_state is h11.DONE
            return done and not (head.closes or call.ended)
        return False

    async def _tunnelled(self, exchange: h11.Connection, head: Head, call: WrappedCall) -> bool:
        """Serves what comes by a tunnel, as the host that it leads to; then it is over.

        Raises:
            ApexCredsError: It may not lead there.
            BadRequestError: It is not clear where.
        """
        certificates = self._setting.certificates
        host, port = tunnel_of(head)
        if certificates is None or self._within is not None:
            raise BadRequestError(405, "There is no tunnel here.")
        with Inside(call):
            origin = check_tunnel(call, host, port)
        self._writer.write(exchange.send(h11.Response(status_code=200, headers=[])) or b"")
        if exchange.trailing_data[0]:
            raise EOFError  # it did not wait: what it says is for nobody
        if origin.scheme == "https":
            context = certificates.server_context(host)
            await self._writer.start_tls(context, ssl_handshake_timeout=self._limits.reading)
        inner = Connection(self._setting, self._reader, self._writer, origin)
        while await inner._one(call):
            pass
        return False

    # -- what the client says ----------------------------------------------------------

    async def _head(self, exchange: h11.Connection) -> Head | None:
        """The next request's head; None: there is none.

        Raises:
            BadRequestError: It is not clear, or too long, or came too slowly.
        """
        data, limits, loop = self._rest, self._limits, asyncio.get_running_loop()
        until = loop.time() + (limits.reading if data else limits.idle)
        while (end := data.find(END)) < 0 and len(data) <= limits.head:
            try:
                async with asyncio.timeout_at(until):
                    chunk = await self._reader.read(CHUNK)
            except TimeoutError:
                if not data:
                    return None
                raise BadRequestError(408, "The request came too slowly.") from None
            if not chunk:
                return None
            if not data:  # all of it in that time
                until = loop.time() + limits.reading
            data += chunk
        if not 0 <= end <= limits.head:
            raise BadRequestError(431, "The head of the request is too long.")
        check_lines(data[: end + len(END)], most=limits.headers)
        exchange.receive_data(data)
        event = _next(exchange)
        assert isinstance(event, h11.Request)
        return read_head(event)

    async def _body(self, exchange: h11.Connection, head: Head) -> bytes | AsyncIterator[bytes]:
        """The body: whole, where it is short, or may have to be changed."""
        if head.length is not None and head.length > self._limits.body:
            raise BadRequestError(413, "The body is too long.")
        if head.waits:
            self._writer.write(
                exchange.send(h11.InformationalResponse(status_code=100, headers=[])) or b""
            )
        chunks, whole = self._chunks(exchange), b""
        kinds = b",".join(head.values(b"content-type")).lower()
        if head.length is None and not kinds.startswith(_READ_WHOLE):
            return chunks
        if head.length is not None and head.length > _WHOLE:
            return chunks
        async for chunk in chunks:
            whole += chunk
            if len(whole) > _WHOLE:
                return _joined(whole, chunks)
        return whole

    async def _chunks(self, exchange: h11.Connection) -> AsyncIterator[bytes]:
        length = 0
        while True:
            event = _next(exchange)
            if event is h11.NEED_DATA:
                try:
                    async with asyncio.timeout(self._limits.reading):
                        exchange.receive_data(await self._reader.read(CHUNK))
                except TimeoutError:
                    raise BadRequestError(408, "The body came too slowly.") from None
            elif isinstance(event, h11.Data):
                length += len(event.data)
                if length > self._limits.body:
                    raise BadRequestError(413, "The body is too long.")
                yield bytes(event.data)
            else:
                return

    # -- what it is answered -------------------------------------------------------------

    async def _answer(
        self, exchange: h11.Connection, head: Head, place: Place, call: WrappedCall
    ) -> None:
        """Sends a request with what it asks for, and passes the answer on.

        Raises:
            ApexCredsError: It may not be sent, or its answer not be passed on.
            BadRequestError: The body is not what its head says.
        """
        placeholders = self._setting.placeholders
        sent = {
            each.info.name: Sent(each.info.delivery, place.origin in each.origins)
            for each in await held_by(call)
        }
        headers = head.headers
        try:
            used = placeholders.used(place.target, headers, sent)
            if head.upgrade == _WEBSOCKET:
                await self._upgraded(exchange, head, WebSocket(used, place.url, headers))
                return
            # Of an object in S3 they say how it is stored, and not how it is sent.
            styles = {each.delivery.style for each in sent.values() if each.there}
            encodings = (
                []
                if DeliveryStyle.AWS4 in styles
                else [pair for pair in headers if pair[0].lower() == b"content-encoding"]
            )
            body: object = await self._body(exchange, head)
            if isinstance(body, bytes):
                used |= placeholders.used_in(body, headers, sent)
                if encodings:
                    async for _ in placeholders.search(_joined(body), encodings):
                        pass
            else:
                body = placeholders.search(body, encodings)  # type: ignore[arg-type]
                if head.length is not None:  # it goes on with the length that it came with
                    headers = [*headers, (b"Content-Length", str(head.length).encode())]
            if body == b"" and head.method not in _HAS_BODY:
                body = None
            request = Request(
                head.method,
                place.url,
                placeholders.without_cookies(headers),
                body,
                _TIMEOUT,
                _UpstreamError,
            )
            self._watch(exchange)
            answered = await Binding(tuple(used)).send(request)
        except MisplacedError as error:
            raise report_leak(error, call, head, place) from None
        except UndecodableError:
            text = "A compressed body is searched: by gzip or deflate, and as its header says."
            raise BadRequestError(415, text) from None
        await self._pass_on(exchange, answered, place)

    async def _upgraded(
        self, exchange: h11.Connection, head: Head, websocket: WebSocket
    ) -> None:
        """Opens a WebSocket, and passes its messages on.

        Raises:
            ApexCredsError: It may not be opened.
            BadRequestError: It is asked for in a wrong way.
            MisplacedError: A message has a placeholder in it.
        """
        _next(exchange)
        if head.method != "GET" or head.length != 0 or exchange.trailing_data[0]:
            raise BadRequestError(400, "A WebSocket is opened by a GET without a body.")
        try:
            status, pairs = await websocket.open(self._setting.dialer)
            if status != AGREED:
                said = h11.Response(status_code=status, headers=pairs)
                data = exchange.send(said) or b""
                await self._say(data + (exchange.send(h11.EndOfMessage()) or b""))
                return
            agreed = h11.InformationalResponse(status_code=status, headers=pairs)
            await self._say(exchange.send(agreed) or b"")
            await websocket.pass_on(self._reader, self._writer, self._setting.placeholders)
        finally:
            websocket.close()

    def _watch(self, exchange: h11.Connection) -> None:
        """Has this end when the client goes away, once it has said all."""
        protocol, task = self._writer.transport.get_protocol(), asyncio.current_task()
        assert isinstance(protocol, Protocol)
        assert task is not None
        if exchange.their_state is h11.DONE:
            protocol.on_gone = task.cancel

    async def _pass_on(
        self, exchange: h11.Connection, answered: Answered, place: Place
    ) -> None:
        body = answered.body
        assert isinstance(body, httpx.AsyncByteStream)
        self._watch(exchange)
        try:
            begin = h11.Response(
                status_code=answered.status,
                reason=responses.get(answered.status, "").encode(),
                headers=self._headers(answered, place),
            )
            held = exchange.send(begin) or b""  # goes with what comes first
            async for chunk in body:
                await self._say(held + (exchange.send(h11.Data(data=chunk)) or b""))
                held = b""
            await self._say(held + (exchange.send(h11.EndOfMessage()) or b""))
        finally:
            await body.aclose()

    async def _say(self, data: bytes) -> None:
        self._writer.write(data)
        if self._writer.transport.get_write_buffer_size() > CHUNK:
            async with asyncio.timeout(self._limits.writing):
                await self._writer.drain()

    def _headers(self, answered: Answered, place: Place) -> RawHeaders:
        """Those that go on; who came by a base URL is redirected behind it."""
        named = b",".join(v for n, v in answered.headers if n.lower() == b"connection")
        dropped = _ONE_HOP | {token.strip().lower() for token in named.split(b",")}
        kept = []
        for name, value in answered.headers:
            if name.lower() == b"location" and place.base:
                url = ""
                with contextlib.suppress(ValueError):  # it goes on as it is: it leads nowhere
                    url = urljoin(place.url, value.decode("latin-1"))
                scheme, mark, rest = url.partition("://")
                if mark and scheme in HTTP:
                    behind = f"http://{self._setting.authority}/{scheme}/{rest}"
                    kept.append((name, behind.encode("latin-1")))
                else:
                    kept.append((name, value))
            elif name.lower() not in dropped:
                kept.append((name, value))
        return kept

    async def _refuse(self, exchange: h11.Connection, answered: Answered) -> None:
        """Says why it is not served, where nothing was said; the connection ends.

        Raises:
            EOFError: Something was.
        """
        if exchange.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise EOFError
        body = answered.body
        assert isinstance(body, httpx.ByteStream)
        headers = [*answered.headers, (b"Connection", b"close")]
        reason = responses.get(answered.status, "").encode()
        status = answered.status
        begin = h11.Response(status_code=status, reason=reason, headers=headers)
        data = exchange.send(begin) or b""
        for chunk in body:
            data += exchange.send(h11.Data(data=chunk)) or b""
        await self._say(data + (exchange.send(h11.EndOfMessage()) or b""))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGERS):
                await self._writer.drain()
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self._reader.read(CHUNK):
                    pass


class _UpstreamError(Exception):
    """The request could not be sent, or was not answered."""

    def __init__(self, failure: SendFailure) -> None:
        super().__init__(failure.text)
        self.status = 504 if failure.kind.endswith("_timeout") else 502


def _next(exchange: h11.Connection) -> object:
    try:
        return exchange.next_event()
    except h11.RemoteProtocolError as error:
        raise BadRequestError(error.error_status_hint, "The request is no HTTP/1.1.") from None


async def _joined(
    begun: bytes, rest: AsyncIterator[bytes] | None = None
) -> AsyncIterator[bytes]:
    yield begun
    if rest is not None:
        async for chunk in rest:
            yield chunk


def _said(status: int, text: str) -> Answered:
    """An answer of the gateway's own."""
    body = json.dumps({"error": {"type": "gateway_error", "message": text}}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"x-should-retry", b"false"),
    ]
    return Answered(status, headers, httpx.ByteStream(body), b"HTTP/1.1", None)
