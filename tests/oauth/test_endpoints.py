"""Authorization servers that do what none should, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from apex_creds import outbound
from apex_creds.errors import OAuthError, OAuthUnreachableError
from apex_creds.oauth import endpoints
from apex_creds.oauth.endpoints import Client

pytestmark = pytest.mark.anyio
ROBOT = Client(id="robot", auth="post", secret="secret-canary")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def saying(first: bytes, then: bytes = b"") -> AsyncIterator[str]:
    """The address of a server that says one thing, and another for as long as it is heard."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(first)
            await writer.drain()
            while then:
                writer.write(then)
                await writer.drain()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"", b""),
        (b"\x00\xff" * 100, b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nx", b""),
        (CHUNKED + b"zz\r\n", b""),
        (CHUNKED + b"1;", b"a=b;" * 64),
        (CHUNKED + b"1\r\nx\r\n0\r\n", b"a: b\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"a: b\r\n"),
    ],
)
async def test_no_answer_that_can_be_read(first: bytes, then: bytes) -> None:
    async with saying(first, then) as url:
        with pytest.raises(OAuthUnreachableError) as caught:
            await endpoints.post(url, {"token": "canary"}, ROBOT)
    assert caught.value.sent
    assert "canary" not in str(caught.value)


async def test_a_body_without_end_is_not_read() -> None:
    async with saying(CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n") as url:
        with pytest.raises(OAuthError, match="256 KiB"):
            await endpoints.post(url, {}, ROBOT)


async def test_an_answer_that_never_comes_to_its_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbound, "_WHOLE", 0.5)
    async with asyncio.timeout(60), saying(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n") as url:
        with pytest.raises(OAuthUnreachableError, match="TimeoutError") as caught:
            await endpoints.post(url, {}, ROBOT)
    assert caught.value.sent


async def test_an_address_that_is_none_is_not_sent_to() -> None:
    with pytest.raises(OAuthUnreachableError) as caught:
        await endpoints.post("https://a..b/", {}, ROBOT)
    assert not caught.value.sent
