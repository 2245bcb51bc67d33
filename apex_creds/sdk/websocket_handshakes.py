"""The handshake of a WebSocket with a secret in it, below any library (RFC 6455, section 4).

Guarantee: what is passed on of the server's answer is searched, has no body, and leads nowhere
else; a protocol that a client did not ask for is not agreed to.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from typing import Final

import httpx

from apex_creds.errors import RequestNotAllowedError
from apex_creds.leases.exchange import Head
from apex_creds.leases.http_messages import Answered, RawHeaders

AGREED: Final = HTTPStatus.SWITCHING_PROTOCOLS
LONGEST_HEAD: Final = 64 * 1024
_CHUNK: Final = 64 * 1024
_END: Final = b"\r\n\r\n"
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (101|[2-5][0-9]{2})[ \r]")
_FRAMING: Final = frozenset(
    {b"content-length", b"content-encoding", b"transfer-encoding"} | {b"location"}
)
_EXTENSIONS: Final = b"sec-websocket-extensions"


def pairs_of(head: bytes) -> RawHeaders:
    """The headers of a head that ends with an empty line."""
    found = (line.partition(b":") for line in head[:-4].split(b"\r\n")[1:])
    return [(name.strip(), value.strip()) for name, _, value in found]


async def shake(
    head: Head, upstream: asyncio.StreamReader, server: asyncio.StreamWriter
) -> tuple[int, RawHeaders]:
    """Asks the server: what the client is answered. It has agreed if that is ``AGREED``.

    Raises:
        EOFError: It ended without an answer.
        OSError: The same.
        ApexCredsError: Its answer can't be searched.
    """
    outgoing = head.outgoing
    lines = [b"GET " + outgoing.url.raw_path + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in outgoing.headers]
    server.write(b"\r\n".join([*lines, b"Connection: Upgrade", b"Upgrade: websocket"]) + _END)
    answer = await upstream.readuntil(_END)
    found_status = _STATUS.match(answer)
    if found_status is None:
        raise RequestNotAllowedError("The server's answer to the handshake is no HTTP/1.1.")
    status = int(found_status[1])
    pairs = pairs_of(answer)
    if head.search is not None:
        found = head.search.begin(head.leases, head.records, "GET", status, pairs)
        if found is not None:
            pairs = list(found.headers)
            found.close()
    agreed = status == AGREED
    asked = any(name.lower() == _EXTENSIONS for name, _ in outgoing.headers)
    if agreed and not asked and any(name.lower() == _EXTENSIONS for name, _ in pairs):
        raise RequestNotAllowedError("The server agreed to what it was not asked for.")
    if not agreed:  # no body, and nowhere else to go
        pairs = [pair for pair in pairs if pair[0].lower() not in _FRAMING]
        pairs.append((b"Content-Length", b"0"))
    return status, pairs


def refusal_of(answered: Answered) -> bytes:
    """A refusal, as it is written."""
    body = answered.body
    assert isinstance(body, httpx.ByteStream)
    return written(answered.status, answered.headers) + b"".join(body)


def written(status: int, pairs: RawHeaders) -> bytes:
    """The head of an answer."""
    phrase = HTTPStatus(status).phrase.encode() if status in set(HTTPStatus) else b""
    lines = [b"HTTP/1.1 %d %b" % (status, phrase)]
    return b"\r\n".join([*lines, *(name + b": " + value for name, value in pairs)]) + _END


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Passes on what comes, as it is, until it ends."""
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
