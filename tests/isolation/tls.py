"""A vendor's server with real TLS, by a name that only the gateway's dialer knows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from apex_creds.isolation.dialing import Dialer
from tests.support.certificates import certificate

HOST = "api.vendor.test"


class Loopback:
    """One origin.

    Attributes:
        requests: What came: method, path, headers (names in lower case), body.
        answer: Makes status and JSON, or text of events, of the method, path and body.
    """

    def __init__(self, port: int) -> None:
        self.host, self.port = HOST, port
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Callable[[str, str, bytes], object] = lambda m, path, b: {"path": path}

        async def resolve(host: str, port: int) -> list[str]:
            if host != HOST:
                raise OSError(host)
            return ["127.0.0.1"]

        self.dialer = Dialer(internal=[HOST], resolve=resolve)

    @property
    def origin(self) -> str:
        return f"https://{self.host}:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head[:-4].split("\r\n")
                pairs = [line.partition(": ") for line in lines]
                headers = {name.lower(): value for name, _, value in pairs}
                body = await _body(reader, headers)
                method, path, _ = first.split(" ")
                self.requests.append((method, path, headers, body))
                writer.write(_said(self.answer(method, path, body)))
                await writer.drain()
        writer.close()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body


def _said(answer: object) -> bytes:
    kind = "application/json"
    status = 200
    if isinstance(answer, tuple):
        status, answer = answer
    if isinstance(answer, str):
        kind, data = "text/event-stream", answer.encode()
    elif isinstance(answer, bytes):
        kind, data = "application/octet-stream", answer
    else:
        data = json.dumps(answer).encode()
    head = (
        f"HTTP/1.1 {status} OK\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


@contextlib.asynccontextmanager
async def loopback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loopback]:
    where = folder / "tls"
    where.mkdir()
    files = certificate(where, name=HOST)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))  # which the host trusts
    made = Loopback(0)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
