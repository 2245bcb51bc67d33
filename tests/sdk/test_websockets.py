"""``sdk.websockets``: the secret is in the handshake as it is sent, and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidState, InvalidStatus

from apex_creds.errors import InvalidInputError
from apex_creds.model import ApiKey
from apex_creds.sdk import websockets as sdk
from tests.support.canaries import holders
from tests.support.certificates import certificate
from tests.support.worlds import World

SECRET = "ws-canary-77ab.Zq7Wk0r3"
NEED = ({"name": "stream"},)


@contextlib.asynccontextmanager
async def server(tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Insists on the key, and says whatever it is sent; ``key`` says the key."""

    def check(connection: ServerConnection, request):
        assert len(request.headers.get_all("Host")) == 1
        if request.headers.get("Authorization") != f"Bearer {SECRET}":
            answer = connection.respond(401, "no")
            answer.headers["X-Seen"] = str(request.headers.get("Authorization"))
            return answer
        return None

    def echo_header(connection: ServerConnection, request, response):
        response.headers["X-Echo"] = request.headers["Authorization"]
        response.headers["X-Path"] = request.path
        return response

    async def talk(connection: ServerConnection) -> None:
        async for message in connection:
            if message == "bye":
                await connection.close(4000, f"you sent {SECRET}")
                return
            key = SECRET if isinstance(message, str) else SECRET.encode()
            await connection.send(key if message in ("key", b"key") else message)

    listening = await serve(
        talk, "127.0.0.1", 0, ssl=tls, process_request=check, process_response=echo_header
    )
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def allow(world: World, origin: str, secret: str = SECRET) -> None:
    await world.vault.put("stream", ApiKey(secret), origins=[origin])
    for plugin in ("demo", "inner"):
        await world.vault.grant(plugin, "stream")


async def test_a_connection_without_a_trace_of_the_secret(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with server() as port:
        await allow(world, f"ws://127.0.0.1:{port}")
        url = f"ws://127.0.0.1:{port}/live?room=1"

        async def plugin() -> list[object]:
            async with sdk.dial(url, "stream", additional_headers={"X-Mine": "1"}) as ws:
                assert holders(SECRET, ws, ws.request, ws.response) == []
                await ws.send("hello")
                await ws.send(b"\0bytes")
                await ws.send("key")
                await ws.send(b"key")
                found = [await ws.recv() for _ in range(4)]
                assert ws.response.headers["X-Path"] == "/live?room=1"
                return found

        for name in ("demo", "inner"):
            hello, data, text, binary = await world.call(plugin, needs=NEED, plugin=name)
            assert (hello, data) == ("hello", b"\0bytes")
            assert len(text) == len(binary) == len(SECRET)
            assert SECRET not in text
            assert SECRET.encode() not in binary
    assert SECRET not in caplog.text
    redeems = world.events("redeem")
    assert [(event.method, event.origin) for event in redeems] == [
        ("GET", f"http://127.0.0.1:{port}")
    ] * 2


async def test_the_same_in_a_thread(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with server() as port:
        await allow(world, f"ws://127.0.0.1:{port}")
        url = f"ws://127.0.0.1:{port}/live"
        kept = []

        def plugin() -> list[object]:
            with sdk.sync_dial(url, "stream") as ws:
                assert holders(SECRET, ws.request, ws.response) == []
                for message in ("hello", b"\0bytes", "key", b"key"):
                    ws.send(message)
                found = [ws.recv(), *ws.recv_streaming(), ws.recv(timeout=30), ws.recv()]
                kept.append(sdk.sync_dial(url, "stream"))
                return found

        for name in ("demo", "inner"):
            found = await world.call(plugin, needs=NEED, plugin=name)
            stars = "*" * len(SECRET)
            assert found == ["hello", b"\0bytes", stars, stars.encode()]
        assert SECRET not in caplog.text
        assert {event.detail for event in world.events("leak")} >= {"response"}

        def after() -> None:
            with pytest.raises((ConnectionClosed, InvalidState)):
                kept[0].send("x")

        await asyncio.to_thread(after)
        with pytest.raises(InvalidStatus) as outside:
            await asyncio.to_thread(sdk.sync_dial, url, "stream")
        assert outside.value.response.status_code == 403


async def test_a_reason_to_close_does_not_say_the_secret(world: World) -> None:
    async with server() as port:
        await allow(world, f"ws://127.0.0.1:{port}")
        url = f"ws://127.0.0.1:{port}/"

        def check(caught, ws) -> None:
            reason = "you sent " + "*" * len(SECRET)
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4000, reason)
            assert (ws.close_code, ws.close_reason) == (4000, reason)

        async def plugin() -> None:
            async with sdk.dial(url, "stream") as ws:
                await ws.send("bye")
                with pytest.raises(ConnectionClosed) as caught:
                    await ws.recv()
                check(caught, ws)

        def blocking() -> None:
            with sdk.sync_dial(url, "stream") as ws:
                ws.send("bye")
                with pytest.raises(ConnectionClosed) as caught:
                    ws.recv()
                check(caught, ws)

        await world.call(plugin, needs=NEED)
        await world.call(blocking, needs=NEED)


async def test_by_tls_with_a_certificate_that_is_trusted_only(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    async with server(context) as port:
        url = f"wss://127.0.0.1:{port}/"
        await allow(world, url)

        async def untrusted() -> None:
            with pytest.raises(InvalidStatus, match="403"):
                await sdk.dial(url, "stream")

        async def trusted() -> object:
            async with sdk.dial(url) as ws:
                await ws.send("x" * 300_000)
                return len(await ws.recv())

        await world.call(untrusted, needs=NEED)
        monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
        assert await world.call(trusted, needs=NEED) == 300_000


async def test_it_is_of_one_invocation_and_ends_with_its_lease(world: World) -> None:
    async with server() as port:
        await allow(world, f"ws://127.0.0.1:{port}")
        kept, go, end = [], asyncio.Event(), asyncio.Event()

        async def first() -> None:
            kept.append(await sdk.dial(f"ws://127.0.0.1:{port}", "stream"))
            go.set()
            await end.wait()

        async def second() -> None:
            await go.wait()
            with pytest.raises(InvalidState, match="another invocation"):
                await kept[0].send("x")
            end.set()

        await asyncio.gather(
            world.call(first, needs=NEED), world.call(second, needs=NEED, plugin="inner")
        )
        await kept[0].wait_closed()
        with pytest.raises((ConnectionClosed, InvalidState)):
            await kept[0].send("x")


async def test_it_is_connected_again_until_it_is_refused(world: World) -> None:
    async with server() as port:
        url = f"ws://127.0.0.1:{port}"
        await allow(world, url)

        echoes = []

        async def talk() -> None:
            async for socket in sdk.dial(url, "stream"):
                await socket.send(f"{len(echoes)}")
                echoes.append(await socket.recv())
                if len(echoes) == 2:
                    await world.vault.revoke(plugin="demo", credential="stream")

        async def plugin() -> None:
            with pytest.raises(InvalidStatus) as refused:
                await talk()
            assert refused.value.response.status_code == 403

        await world.call(plugin, needs=NEED)
        assert len(echoes) == 2
    assert len(world.events("redeem")) == 2


async def test_a_refusal_is_an_answer(world: World) -> None:
    async with server() as port:
        url = f"ws://127.0.0.1:{port}"
        with pytest.raises(InvalidStatus) as outside:
            await sdk.dial(url, "stream")
        assert outside.value.response.status_code == 403
        assert b"none here" in outside.value.response.body
        await allow(world, url, "not-" + SECRET)

        async def plugin() -> None:
            with pytest.raises(InvalidStatus) as elsewhere:
                await sdk.dial("ws://127.0.0.1:1/", "stream")
            assert elsewhere.value.response.headers["x-should-retry"] == "false"
            with pytest.raises(InvalidStatus) as wrong:
                await sdk.dial(url, "stream")
            assert wrong.value.response.status_code == 401
            assert holders(SECRET, wrong.value, vars(wrong.value.response)) == []

        await world.call(plugin, needs=NEED)
    assert world.reasons() == [("stream", "request_not_allowed")]


@pytest.mark.parametrize("option", ["sock", "ssl", "proxy", "host", "create_connection"])
def test_what_the_url_says_is_not_taken(option: str) -> None:
    with pytest.raises(InvalidInputError, match=option):
        sdk.dial("wss://stream.example.com", **{option: None})
    with pytest.raises(InvalidInputError):
        sdk.dial("https://stream.example.com")
