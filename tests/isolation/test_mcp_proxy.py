"""``apex-creds mcp``: in front of a server that is a program, or reached by HTTP."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apex_creds.integrations.mcp_proxy import CommandProxy
from apex_creds.isolation.sandbox import Wall
from apex_creds.model import ApiKey
from tests.isolation.programs import LIMITS
from tests.isolation.tls import Loopback, loopback
from tests.support.vendor import SECRET
from tests.support.worlds import World, manifest_for

pytestmark = pytest.mark.anyio
SERVER = Path(__file__).with_name("mcp_server.py")
HOSTILE = Path(__file__).with_name("mcp_hostile.py")
NEED = {"name": "OPENAI_API_KEY"}


@pytest.fixture
async def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loopback]:
    async with loopback(tmp_path, monkeypatch) as made:
        yield made


class Client:
    """A client of the protocol, over lines in memory."""

    def __init__(self) -> None:
        self.to: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.got: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.all = ""

    async def lines(self) -> AsyncIterator[bytes]:
        while (line := await self.to.get()) is not None:
            yield line

    async def out(self, line: bytes) -> None:
        self.all += line.decode()
        self.got.put_nowait(json.loads(line))

    def say(self, method: str, number: int | None, **params: Any) -> None:
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        if number is None:
            del message["id"]
        self.to.put_nowait(json.dumps(message).encode() + b"\n")

    async def ask(self, method: str, number: int, **params: Any) -> dict[str, Any]:
        self.say(method, number, **params)
        found = await self.got.get()
        assert found["id"] == number
        return found

    async def tool(self, number: int, name: str, **arguments: Any) -> tuple[str, bool]:
        found = await self.ask("tools/call", number, name=name, arguments=arguments)
        result = found["result"]
        return result["content"][0]["text"], result.get("isError", False)


class Session:
    """A proxy that runs, and its client."""

    def __init__(self, world: World, fake: Loopback, server: Path = SERVER) -> None:
        wall = Wall(
            command=[sys.executable, str(server)], folders=[server.parent], limits=LIMITS
        )
        # The program is behind the wall: that satisfies what requires it.
        manifest = msgspec.structs.replace(manifest_for(NEED), isolated=True)
        self.client = Client()
        proxy = CommandProxy(world.middleware, manifest, wall, dialer=fake.dialer)
        self.running = asyncio.ensure_future(proxy.run(self.client.lines(), self.client.out))

    async def __aenter__(self) -> Client:
        await self.client.ask("initialize", 0)
        return self.client

    async def __aexit__(self, *_: object) -> None:
        self.client.to.put_nowait(None)
        await self.running


async def allow(world: World, fake: Loopback) -> None:
    await world.vault.put("OPENAI_API_KEY", ApiKey(SECRET), origins=[fake.origin])
    await world.vault.grant("demo", "OPENAI_API_KEY")


async def test_each_tool_call_is_an_invocation_of_its_own(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    async with Session(world, fake) as client:
        listed = await client.ask("tools/list", 1)
        assert [tool["name"] for tool in listed["result"]["tools"]] == ["fetch", "key"]
        text, error = await client.tool(2, "fetch", path="models")
        assert (json.loads(text), error) == ({"path": "/v1/models"}, False)
        key, _ = await client.tool(3, "key")
        assert key.startswith("sk-proj-apexCredsPlaceholder")
        assert await client.tool(4, "short") == ("s", False), "nothing is held back"
    assert SECRET not in client.all
    actions = [event.action for event in world.events("invocation")]
    assert sorted(actions) == ["fetch", "key", "short", "start"]
    assert [event.action for event in world.events("redeem")] == ["start", "fetch"]
    assert world.middleware.broker.open_leases == 0


async def test_between_tool_calls_it_sends_nothing(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    async with Session(world, fake) as client:
        before = len(fake.requests)
        answer = await client.ask("between", 1)
        assert "403" in answer["result"]
        assert len(fake.requests) == before


async def test_what_was_revoked_is_refused_as_a_tool_s_error(
    world: World, fake: Loopback
) -> None:
    await allow(world, fake)
    async with Session(world, fake) as client:
        await world.vault.revoke(plugin="demo")
        text, error = await client.tool(1, "fetch", path="models")
        assert error
        assert "refused" in text
        assert len(fake.requests) == 1  # of the start


async def test_many_at_once_and_one_that_is_cancelled(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    async with Session(world, fake) as client:
        client.say("tools/call", 100, name="never", arguments={})
        for number in range(1, 30):
            client.say("tools/call", number, name="fetch", arguments={"path": f"p{number}"})
        client.say("notifications/cancelled", None, requestId=100)
        found = [await client.got.get() for _ in range(1, 30)]
        for each in found:
            text = each["result"]["content"][0]["text"]
            assert json.loads(text) == {"path": f"/v1/p{each['id']}"}
        assert await client.ask("tools/list", 101)
        assert world.middleware.broker.open_leases == 0
    sent = [event.action for event in world.events("redeem")]
    assert sent == ["start", *["fetch"] * 29]


async def test_a_server_that_ends_answers_what_is_open_with_errors(
    world: World, fake: Loopback
) -> None:
    await allow(world, fake)
    session = Session(world, fake)
    client = await session.__aenter__()
    client.say("tools/call", 1, name="exit", arguments={})
    client.say("tools/call", 2, name="fetch", arguments={"path": "late"})
    found = [await client.got.get() for _ in range(2)]
    assert sorted(each["id"] for each in found) == [1, 2]
    assert all("has ended" in str(each) or "no answer" in str(each) for each in found)
    assert await session.running == 3
    assert world.middleware.broker.open_leases == 0


@pytest.mark.parametrize("tool", ["lines", "ids", "twice"])
async def test_a_request_has_one_answer_which_is_its_own(
    world: World, fake: Loopback, tool: str
) -> None:
    await allow(world, fake)
    async with Session(world, fake, HOSTILE) as client:
        assert await client.tool(1, tool) == ("real", False)
        assert world.middleware.broker.open_leases == 0, "start and call have ended"
        assert await client.ask("tools/list", 2)
        assert await client.tool(3, "twice") == ("real", False)
        assert client.got.empty()
    for line in client.all.splitlines():
        assert json.loads(line, parse_constant=pytest.fail)["id"] in range(4)


async def test_a_message_without_end_ends_the_server(
    world: World, fake: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_creds.integrations.mcp_proxy.GRACE", 0.1)
    await allow(world, fake)
    session = Session(world, fake, HOSTILE)
    client = await session.__aenter__()
    assert "no answer" in str(await client.ask("tools/call", 1, name="huge", arguments={}))
    assert await session.running != 0
    assert world.middleware.broker.open_leases == 0


async def test_what_a_client_says_wrongly_stops_nothing(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    async with Session(world, fake) as client:
        for line in (
            b"{", b"[" * 200_000, b"\xff", b"", b"[]", b'{"method":["tools/call"],"id":[]}',
            b'{"method":"notifications/cancelled","params":[100]}',
            b'{"method":"notifications/cancelled","params":{"requestId":{}}}',
            b'{"method":"notifications/cancelled"}', b'{"method":"tools/call"}',
        ):  # fmt: skip
            client.to.put_nowait(line + b"\n")
        for number, name in enumerate(("", "a\nb", "x" * 100_000, "\ud800", 7, None), start=1):
            found = await client.ask("tools/call", number, name=name, arguments={})
            assert ("result" in found) or ("error" in found)
        client.say("tools/call", None, name="key")
        assert await client.tool(100, "short") == ("s", False)


async def test_cancelled_at_any_time_it_leaves_nothing(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    before = children()  # servers that other tests share
    for steps in (0, 1, 3, 10, 30, 100, 300):
        with world.nothing_left():
            session = Session(world, fake)
            for _ in range(steps):
                await asyncio.sleep(0)
            session.running.cancel()
            await asyncio.gather(session.running, return_exceptions=True)
            while children() - before:  # one that was being started ends as soon as it is there
                await asyncio.sleep(0)


def children() -> set[str]:
    """Processes that this one has started and not waited for."""
    threads = Path("/proc/self/task").glob("*/children")
    return {pid for each in threads for pid in each.read_text().split()}
