"""WebSockets through the gateway, from the library that everybody uses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from apex_creds.isolation.websocket_frames import frames
from apex_creds.model import ApiKey
from tests.isolation.gateways import Behind, behind
from tests.support import loopback
from tests.support.worlds import World

SECRET = "ws-canary-77ab.Zq7Wk0r3"


@contextlib.asynccontextmanager
async def server(seen: list[object]) -> AsyncIterator[str]:
    """Insists on the key, and says whatever it is sent; ``key`` says the key."""

    def check(connection: ServerConnection, request):
        seen.append(dict(request.headers))
        if request.headers.get("Authorization") != f"Bearer {SECRET}":
            return connection.respond(401, "no")
        return None

    async def talk(connection: ServerConnection) -> None:
        async for message in connection:
            seen.append(message)
            if message == "key":
                await connection.send(f"<{SECRET}>")
            elif message == "in pieces":
                await connection.send([f"<{SECRET[:9]}", SECRET[9:], ">" * 70_000])
            else:
                await connection.send(message)

    listening = await serve(talk, "127.0.0.1", 0, process_request=check, max_size=None)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def allow(world: World, origin: str, secret: str = SECRET) -> None:
    await world.vault.put("web", ApiKey(secret), origins=[origin])
    await world.vault.grant("demo", "web")


def dial(made: Behind, origin: str, path: str = "/live?room=1"):
    url = made.url(origin).replace("http:", "ws:") + path
    headers = {"Authorization": f"Bearer {made.key}"}
    return connect(url, additional_headers=headers, proxy=None, max_size=None)


async def test_messages_go_both_ways_and_bring_no_secret(world: World) -> None:
    seen: list[object] = []
    async with server(seen) as origin, behind(world) as made:
        await allow(world, origin)

        async def plugin() -> list[object]:
            async with dial(made, origin) as ws:
                found = []
                large = bytes(range(256)) * 3000
                for message in ("hello", b"\0bytes", "key", "in pieces", large):
                    await ws.send(message)
                    found.append(await ws.recv())
                await (await ws.ping())
                return found

        hello, data, key, pieces, large = await made.run(plugin)
    covered = "*" * len(SECRET)
    assert (hello, data, key) == ("hello", b"\0bytes", f"<{covered}>")
    assert pieces == f"<{covered}" + ">" * 70_000
    assert large == bytes(range(256)) * 3000
    head = {name.lower(): value for name, value in seen[0].items()}
    assert "sec-websocket-extensions" not in head
    assert [(e.method, e.origin) for e in world.events("redeem")] == [("GET", origin)]
    assert [event.detail for event in world.events("leak")] == ["response"]


async def test_a_placeholder_in_a_message_ends_it(world: World) -> None:
    seen: list[object] = []
    async with server(seen) as origin, behind(world) as made:
        await allow(world, origin)

        async def plugin() -> None:
            for message in (f"<{made.key}>", [made.key[:20], made.key[20:]], made.key.encode()):
                async with dial(made, origin) as ws:
                    await ws.send(message)
                    with pytest.raises(ConnectionClosed):
                        await ws.recv()

        await made.run(plugin)
    assert [type(each) for each in seen] == [dict] * 3
    assert [event.detail for event in world.events("leak")] == ["request"]


async def test_who_is_refused_is_answered(world: World) -> None:
    async with server([]) as origin, behind(world) as made:
        await allow(world, origin, "not-" + SECRET)

        async def plugin() -> list[int]:
            statuses = []
            for where in (origin, "http://127.0.0.1:1"):
                with pytest.raises(InvalidStatus) as refused:
                    await dial(made, where)
                statuses.append(refused.value.response.status_code)
            return statuses

        assert await made.run(plugin) == [401, 403]


@pytest.mark.parametrize(
    "line", ["HTTP/1.1 abc no", "HTTP/1.1", "hello", "HTTP/1.1 103 no", "HTTP/1.1 -101 no"]
)
async def test_what_is_no_answer_to_a_handshake_is_refused(
    world: World, caplog: pytest.LogCaptureFixture, line: str
) -> None:
    async with loopback.server() as upstream, behind(world) as made:
        upstream.answer = lambda _: f"{line}\r\nX-Key: {SECRET}\r\n\r\n".encode()
        await allow(world, upstream.origin)

        async def plugin() -> int:
            with pytest.raises(InvalidStatus) as refused:
                await dial(made, upstream.origin)
            return refused.value.response.status_code

        assert await made.run(plugin) == 403
    assert "connection of the gateway failed" not in caplog.text


async def test_it_ends_with_its_invocation(world: World) -> None:
    seen: list[object] = []
    async with server(seen) as origin, behind(world) as made:
        await allow(world, origin)
        kept = []

        async def plugin() -> None:
            kept.append(await dial(made, origin))

        await made.run(plugin)
        await asyncio.wait_for(kept[0].wait_closed(), 300)


@settings(deadline=None)
@given(
    st.integers(0, 70_000),
    st.sampled_from([1, 2]),
    st.binary(min_size=4, max_size=4),
    st.integers(1, 66_000),
)
def test_frames_are_read_however_they_come(
    size: int, opcode: int, mask: bytes, cut: int
) -> None:
    payload = (b"0123456789" * (size // 10 + 1))[:size]
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    raw = bytes([0x80 | opcode]) + length + mask + masked

    async def read() -> tuple[bytes, bytes, list[bool]]:
        reader = asyncio.StreamReader()
        for at in range(0, len(raw), cut):
            reader.feed_data(raw[at : at + cut])
        reader.feed_eof()
        found = [frame async for frame in frames(reader)]
        assert found[0].opcode == opcode
        assert all(frame.opcode == 0 for frame in found[1:])
        return (
            b"".join(frame.payload for frame in found),
            b"".join(frame.raw for frame in found),
            [frame.final for frame in found],
        )

    plain, whole, finals = asyncio.run(read())
    assert (plain, whole) == (payload, raw)
    assert finals == [False] * (len(finals) - 1) + [True]
