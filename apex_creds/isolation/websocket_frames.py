"""WebSockets through the gateway: the secret is in the handshake, and comes back in no message.

Guarantee: nothing is compressed, so that every message can be read: those of the server are
searched for the secret, in frames as they come; one of the client with a placeholder in it goes
no further, and ends the connection. It ends with the lease that it was opened under.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from functools import partial
from typing import Final, NamedTuple

from apex_creds.concurrency import first_ended, soon
from apex_creds.errors import RequestNotAllowedError
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.placeholders import LONGEST, MisplacedError, Placeholders
from apex_creds.leases.exchange import Head, injected_head
from apex_creds.leases.http_messages import MessageFilter, RawHeaders, Request
from apex_creds.leases.logins import tls_context
from apex_creds.sdk.current import COOKIES, Binding
from apex_creds.sdk.websocket_handshakes import LONGEST_HEAD, pass_on, shake

_DROPPED: Final = frozenset({b"sec-websocket-extensions"})
_PIECE: Final = 64 * 1024
_FINAL: Final = 0x80
_MASKED: Final = 0x80
_CONTROL: Final = 0x8
_LONGEST_CONTROL: Final = 125


class Frame(NamedTuple):
    """A frame, or a piece of a long one.

    Attributes:
        opcode: 0: the message before goes on.
        final: Whether its message ends here.
        raw: As it came; of a piece that is not the first, without a head.
        payload: Without its mask.
    """

    opcode: int
    final: bool
    raw: bytes
    payload: bytes

    @property
    def is_control(self) -> bool:
        """Whether it stands between messages, and within them."""
        return self.opcode >= _CONTROL


async def frames(reader: asyncio.StreamReader) -> AsyncIterator[Frame]:
    """What comes, in frames; a long one in pieces, as it comes.

    Raises:
        asyncio.IncompleteReadError: It ends within one.
        ConnectionError: It is no frame.
    """
    while first := await reader.read(1):
        head = first + await reader.readexactly(1)
        opcode, final = head[0] & 0xF, bool(head[0] & _FINAL)
        length = head[1] & 0x7F
        if head[0] & 0x70 or (opcode >= _CONTROL and (length > _LONGEST_CONTROL or not final)):
            raise ConnectionError("A frame of the WebSocket is none.")
        for size, mark in ((2, 126), (8, 127)):
            if length == mark:
                more = await reader.readexactly(size)
                head, length = head + more, int.from_bytes(more, "big")
                break
        mask = await reader.readexactly(4) if head[1] & _MASKED else b""
        head, at = head + mask, 0
        while True:
            data = await reader.readexactly(min(length - at, _PIECE))
            plain = _unmasked(data, mask, at)
            at += len(data)
            yield Frame(opcode, final and at == length, head + data, plain)
            if at == length:
                break
            head, opcode = b"", opcode if opcode >= _CONTROL else 0


def _unmasked(data: bytes, mask: bytes, at: int) -> bytes:
    if not mask or not data:
        return data
    turned = mask[at % 4 :] + mask[: at % 4]
    pad = (turned * (len(data) // 4 + 1))[: len(data)]
    number = int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")
    return number.to_bytes(len(data), "big")


def _written(opcode: int, payload: bytes, *, final: bool) -> bytes:
    size = len(payload)
    first = bytes((opcode | (_FINAL if final else 0),))
    if size <= _LONGEST_CONTROL:
        return first + bytes((size,)) + payload
    if size < 1 << 16:
        return first + b"\x7e" + size.to_bytes(2, "big") + payload
    return first + b"\x7f" + size.to_bytes(8, "big") + payload


async def _searched(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, search: MessageFilter
) -> None:
    """Passes on the server's messages without the secret."""
    async for opcode, final, _, payload in frames(reader):
        if opcode >= _CONTROL:
            clean = search.whole(payload)
            assert isinstance(clean, bytes)
        else:
            clean = search.finish(payload) if final else search.feed(payload)
        writer.write(_written(opcode, clean, final=final))
        await writer.drain()


async def _checked(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, placeholders: Placeholders
) -> None:
    """Passes on the client's messages, up to one with a placeholder in it.

    Raises:
        MisplacedError: There was one.
    """
    before = b""
    async for frame in frames(reader):
        seen = frame.payload if frame.is_control else before + frame.payload
        for name in placeholders.names_in(seen):
            raise MisplacedError(name, "a message")
        if not frame.is_control:
            before = b"" if frame.final else seen[-LONGEST:]
        writer.write(frame.raw)
        await writer.drain()


class WebSocket:
    """One connection to a server.

    Args:
        names: The credentials that it is opened with; none: all that may go there.
        url: Of the server, with ``https`` or ``http``.
        headers: Of the client's handshake.
    """

    def __init__(self, names: Collection[str], url: str, headers: RawHeaders) -> None:
        kept = [pair for pair in headers if pair[0].lower() not in _DROPPED]
        self._names = tuple(names)
        self._request = Request(
            "GET", url, kept, None, {}, lambda lost: ConnectionError(lost.text)
        )
        self._search: MessageFilter | None = None

    async def open(self, dialer: Dialer) -> tuple[int, RawHeaders]:
        """Shakes hands: what the client is answered.

        Raises:
            ApexCredsError: It may not be opened, or the server can't be reached.
        """
        request = self._request
        head = await injected_head(Binding(self._names).leases(request), request)
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        if head.search is not None:
            self._search = head.search.messages(head.leases, head.records)
            if self._search is not None:
                head.leases[0].close_at_end(self._search.close)
        for lease in head.leases:
            lease.close_at_end(partial(soon, loop, task.cancel))
        self._upstream, self._server = await _connected(head, dialer)
        try:
            status, pairs = await shake(head, self._upstream, self._server)
            # As for requests: a session is not for who comes after this invocation.
            return status, [pair for pair in pairs if pair[0].lower() not in COOKIES]
        except (OSError, EOFError, asyncio.LimitOverrunError):
            raise RequestNotAllowedError("The server ended the handshake.") from None

    async def pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        placeholders: Placeholders,
    ) -> None:
        """Passes messages on, until one of the two ends.

        Raises:
            MisplacedError: The client said a placeholder.
        """
        upstream, server, search = self._upstream, self._server, self._search
        await first_ended(
            _checked(reader, server, placeholders),
            pass_on(upstream, writer)
            if search is None
            else _searched(upstream, writer, search),
        )

    def close(self) -> None:
        """Ends the connection to the server."""
        if hasattr(self, "_server"):
            self._server.close()
        if self._search is not None:
            self._search.close()


async def _connected(
    head: Head, dialer: Dialer
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = head.outgoing.url
    tls = tls_context() if url.scheme == "https" else None
    port = url.port or (80 if tls is None else 443)
    try:
        return await dialer.open(url.host, port, tls=tls, limit=LONGEST_HEAD)
    except OSError as error:
        raise RequestNotAllowedError(
            f"The server {url.host} can't be reached ({str(error) or type(error).__name__})."
        ) from None
