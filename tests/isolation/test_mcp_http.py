"""``apex-creds mcp --url``: in front of a server that is reached by streamable HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator

import msgspec
import pytest

from apex_creds.integrations.mcp_http_proxy import HttpProxy
from apex_creds.integrations.mcp_proxy import LONGEST
from tests.isolation.test_mcp_proxy import Client
from tests.support.vendor import SECRET, Vendor
from tests.support.worlds import World, manifest_for

pytestmark = pytest.mark.anyio


def event(**message: object) -> str:
    return "event: message\ndata: " + json.dumps({"jsonrpc": "2.0", **message})


def result(number: object, text: str) -> str:
    return event(id=number, result={"content": [{"type": "text", "text": text}]})


@contextlib.asynccontextmanager
async def session(world: World, service: Vendor) -> AsyncIterator[Client]:
    """A client of a proxy before ``service``, which may use its credential there."""
    await service.allow(world)
    client = Client()
    # The server's code is elsewhere: that satisfies what requires isolation.
    manifest = msgspec.structs.replace(manifest_for({"name": "web"}), isolated=True)
    proxy = HttpProxy(world.middleware, manifest, service.origin + "/mcp")
    running = asyncio.ensure_future(proxy.run(client.lines(), client.out))
    try:
        yield client
        assert not running.done(), "whatever a server answers, the next request is served"
    finally:
        client.to.put_nowait(None)
        assert await running == 0
    assert SECRET not in client.all
    assert world.middleware.broker.open_leases == 0


async def test_each_request_is_an_invocation_with_the_host_s_key(
    world: World, service: Vendor
) -> None:
    def answer(method: str, path: str, body: bytes) -> object:
        asked = json.loads(body)
        if asked["method"] == "initialize":
            return {"id": asked["id"], "result": {"protocolVersion": "2025-06-18"}}
        progress = event(method="notifications/progress", params={"message": SECRET})
        return [": comment", progress, result(asked.get("id"), f"it echoes {SECRET}")]

    service.answer = answer
    async with session(world, service) as client:
        await client.ask("initialize", 0)
        client.say("notifications/initialized", None)
        client.say("tools/call", 1, name="fetch", arguments={})
        assert (await client.got.get())["method"] == "notifications/progress"
        found = await client.got.get()
        assert found["id"] == 1
        assert "it echoes" in found["result"]["content"][0]["text"]
    sent = [headers for _, _, headers, _ in service.requests]
    assert [each["authorization"] for each in sent] == [f"Bearer {SECRET}"] * 3
    assert [each.get("mcp-protocol-version") for each in sent] == [None, *["2025-06-18"] * 2]
    actions = [event.action for event in world.events("redeem")]
    assert actions == ["initialize", "notifications/initialized", "fetch"]
    assert {event.outcome for event in world.events("invocation")} == {"ok"}


@pytest.mark.parametrize(
    "answer",
    [
        {"id": 1, "result": ["no", "object"]},
        {"id": 1, "result": {"protocolVersion": "x\r\nhost: other"}},
        {"id": 2, "result": {}},
        ["no message"],
        "text",
        [],
        ["data: {"],
        ["data: " + "[" * 100_000],
        ["data: " + "x" * 1000] * 3,
        ["data: " + "x" * LONGEST + "\ndata: x"],
        "x" * (LONGEST + 1),
    ],
    ids=lambda answer: str(answer)[:30],
)
async def test_whatever_it_answers_there_is_one_answer_and_a_next_request(
    world: World, service: Vendor, answer: object
) -> None:
    service.answer = lambda method, path, body: answer
    async with session(world, service) as client:
        client.say("initialize", 1)
        assert (await client.got.get())["id"] == 1
        service.answer = lambda method, path, body: [result(2, "fine")]
        assert await client.tool(2, "fetch") == ("fine", False)
        assert client.got.empty()


async def test_an_error_of_the_server_is_an_error(world: World, service: Vendor) -> None:
    async with session(world, service) as client:
        service.statuses = [500, 404]
        for number in range(2):
            found = await client.ask("tools/call", number, name="fetch", arguments={})
            assert "no answer" in found["error"]["message"]


async def test_what_was_revoked_is_not_sent(world: World, service: Vendor) -> None:
    async with session(world, service) as client:
        await world.vault.revoke(plugin="demo")
        _, refused = await client.tool(1, "fetch")
        assert refused
        client.say("notifications/cancelled", None, requestId=1)
        assert "error" in await client.ask("tools/list", 2)
        assert client.got.empty(), "a notification has no answer"
    assert service.requests == []


async def test_answers_of_the_client_are_no_requests(world: World, service: Vendor) -> None:
    """They may have the same id as a request of its own that is under way."""
    gate = service.gate = threading.Event()
    said = asyncio.Event()
    loop = asyncio.get_running_loop()

    def answer(method: str, path: str, body: bytes) -> object:
        message = json.loads(body)
        if "method" in message:
            return [event(id=1, method="ping"), result(1, "done")]
        loop.call_soon_threadsafe(said.set)
        gate.set()
        return {}

    service.answer = answer
    async with session(world, service) as client:
        client.say("tools/call", 1, name="fetch", arguments={})
        assert (await client.got.get())["method"] == "ping"
        client.to.put_nowait(b'{"jsonrpc":"2.0","id":1,"result":{}}\n')
        await said.wait()
        found = await client.got.get()
        assert found["result"]["content"][0]["text"] == "done"
        assert client.got.empty()
    assert json.loads(service.requests[1][3]) == {"jsonrpc": "2.0", "id": 1, "result": {}}


async def test_a_request_that_is_cancelled_ends_and_is_not_answered(
    world: World, service: Vendor
) -> None:
    service.gate = threading.Event()
    service.answer = lambda method, path, body: [event(method="notifications/progress")]
    async with session(world, service) as client:
        client.say("tools/call", 1, name="fetch", arguments={})
        await client.got.get()
        service.answer = lambda method, path, body: {}
        client.say("tools/call", 1, name="fetch", arguments={})
        assert "under way" in str(await client.got.get())
        client.to.put_nowait(b'{"method":"notifications/cancelled","params":[1]}\n')
        client.say("notifications/cancelled", None, requestId=1)
        service.answer = lambda method, path, body: {"id": 2, "result": {}}
        assert await client.ask("tools/list", 2)
        assert client.got.empty()


async def test_when_its_client_has_gone_it_waits_for_no_server(
    world: World, service: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_creds.integrations.mcp_http_proxy.GRACE", 0.0)
    service.gate = threading.Event()
    service.answer = lambda method, path, body: [event(method="notifications/progress")]
    async with session(world, service) as client:
        client.say("tools/call", 1, name="fetch", arguments={})
        await client.got.get()


async def test_what_a_server_with_sessions_says_by_itself_is_heard(
    world: World, service: Vendor
) -> None:
    def answer(method: str, path: str, body: bytes) -> object:
        if method == "GET":
            return [event(method="notifications/message", params={"data": f"say {SECRET}"})]
        return {"id": json.loads(body).get("id"), "result": {}}

    service.answer = answer
    service.headers["mcp-session-id"] = "one"
    async with session(world, service) as client:
        await client.ask("initialize", 0)
        client.say("notifications/initialized", None)
        assert "say " in (await client.got.get())["params"]["data"]
        assert await client.ask("tools/list", 1)
    (listened,) = [headers for method, _, headers, _ in service.requests if method == "GET"]
    assert listened["mcp-session-id"] == "one"
    assert "listen" in [event.action for event in world.events("redeem")]


async def test_requests_of_the_newest_protocol_have_its_headers(
    world: World, service: Vendor
) -> None:
    service.answer = lambda method, path, body: {"id": json.loads(body)["id"], "result": {}}
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    async with session(world, service) as client:
        await client.ask("tools/call", 1, name="fetch", _meta=meta)
        await client.ask("tools/call", 2, name="héllo\nx: y", _meta=meta)
        await client.ask("resources/read", 3, uri="note://one", _meta=meta)
        await client.ask("tools/list", 4, name="not one", _meta=meta)
        await client.ask("tools/list", 5, _meta={**meta, next(iter(meta)): "a\r\nb: c"})
    sent = [headers for _, _, headers, _ in service.requests]
    names = [each.get("mcp-name") for each in sent]
    assert names == ["fetch", "=?base64?aMOpbGxvCng6IHk=?=", "note://one", None, None]
    versions = [each.get("mcp-protocol-version") for each in sent]
    assert versions == [*["2026-07-28"] * 4, None]
    methods = [each.get("mcp-method") for each in sent]
    assert methods == ["tools/call", "tools/call", "resources/read", "tools/list", None]


async def test_an_error_of_the_protocol_comes_with_any_status(
    world: World, service: Vendor
) -> None:
    async with session(world, service) as client:
        service.statuses = [400]
        service.refusal = {
            "jsonrpc": "2.0",
            "id": 1,
            "error": {"code": -32022, "message": "no"},
        }
        assert (await client.ask("server/discover", 1))["error"]["code"] == -32022
