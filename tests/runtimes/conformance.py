"""What a client of MCP sees through ``apex-creds mcp``: what it sees without it.

The official client of ``mcp``, real servers, over stdio and HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError
from mcp.types import CreateMessageResult, ElicitResult, TextContent

from apex_creds.model import ApiKey
from tests.runtimes.contract import BEARER, SECRET
from tests.support.loopback import Server
from tests.support.worlds import REPOSITORY, World

SERVER = Path(__file__).with_name("mcp_server.py")


class Heard:
    """What a client is told besides answers."""

    def __init__(self) -> None:
        self.progress: list[object] = []
        self.logs: list[object] = []
        self.told: list[object] = []
        self.began = asyncio.Event()

    async def progressed(self, done: float, total: float | None, message: str | None) -> None:
        self.progress.append((done, total, message))
        self.began.set()

    async def logged(self, params: Any) -> None:
        self.logs.append(params.data)

    async def message(self, message: object) -> None:
        self.told.append(message)

    async def elicited(self, context: object, params: Any) -> ElicitResult:
        self.told.append(params)
        return ElicitResult(action="accept", content={"fine": True})

    async def sampled(self, context: object, params: Any) -> CreateMessageResult:
        self.told.append(params)
        content = TextContent(type="text", text="fine")
        return CreateMessageResult(role="assistant", content=content, model="m")


@contextlib.asynccontextmanager
async def through(
    world: World, *arguments: str, mode: str = "legacy"
) -> AsyncIterator[tuple[Client, Heard]]:
    """A client of ``apex-creds mcp`` with these arguments."""
    heard = Heard()
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "apex_creds.cli", "mcp", "--plugin", "demo", *arguments],
        env={**os.environ, "APEX_CREDS_HOME": str(world.where / "home")},
        cwd=REPOSITORY,
    )
    async with Client(
        command,
        mode=mode,
        log_level=None if mode == "legacy" else "info",
        logging_callback=heard.logged,
        message_handler=heard.message,
        elicitation_callback=heard.elicited,
        sampling_callback=heard.sampled,
    ) as client:
        yield client, heard


@contextlib.contextmanager
def listening(command: Sequence[str]) -> Any:
    """A server of HTTP, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, str(port)], stderr=subprocess.DEVNULL)
    try:
        while not _listens(port):
            with pytest.raises(subprocess.TimeoutExpired):  # it runs; a probe takes no core
                process.wait(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def text_of(result: Any) -> str:
    (content,) = result.content
    return str(content.text)


class ConformanceContract:
    """Runs with the server of the SDK that is installed."""

    @contextlib.asynccontextmanager
    async def session(
        self, world: World, transport: str, mode: str
    ) -> AsyncIterator[tuple[Client, Heard]]:
        program = [sys.executable, str(SERVER)]
        with contextlib.ExitStack() as stack:
            if transport == "http":
                origin = stack.enter_context(listening(program))
                await world.vault.put("weather", ApiKey(SECRET), origins=[origin])
                arguments = ["--url", f"{origin}/mcp"]
            else:
                arguments = ["--internal", "127.0.0.1", "--read", str(SERVER.parent), "--"]
                arguments += program
            await world.vault.grant("demo", "weather")
            async with through(world, *arguments, mode=mode) as made:
                yield made
        assert world.middleware.broker.open_leases == 0
        assert SECRET not in "".join(map(str, world.events()))

    @pytest.mark.parametrize("transport", ["stdio", "http"])
    async def test_a_client_sees_what_it_sees_without_it(
        self, world: World, server: Server, transport: str
    ) -> None:
        async with self.session(world, transport, "legacy") as (client, heard):
            await lists(client)
            await client.send_ping()
            await results(client, heard)
            await questions(client, heard)
            await given_up(client, heard)
            await at_once(client, world, server)

    @pytest.mark.parametrize("transport", ["stdio", "http"])
    async def test_a_client_of_the_newest_protocol(
        self, world: World, server: Server, transport: str
    ) -> None:
        async with self.session(world, transport, "auto") as (client, heard):
            assert client.protocol_version >= "2026"
            await lists(client)
            await results(client, heard)
            await given_up(client, heard)
            await at_once(client, world, server)


async def lists(client: Client) -> None:
    """What a server has is listed, in pages."""
    assert client.server_info is not None
    assert client.server_info.name == "conformance"
    assert client.instructions == "Ask."
    names, cursor, pages = [], None, 0
    while pages == 0 or cursor is not None:
        page = await client.list_tools(cursor=cursor)
        names += [tool.name for tool in page.tools]
        cursor, pages = page.next_cursor, pages + 1
    assert {"structured", "picture", "fetch"} <= set(names)
    assert len(names) == len(set(names)) == 11
    (resource,) = (await client.list_resources()).resources
    assert str(resource.uri) == "note://one"
    (found,) = (await client.read_resource("note://one")).contents
    assert found.text == "first note"
    (template,) = (await client.list_resource_templates()).resource_templates
    assert template.uri_template == "note://by/{name}"
    (found,) = (await client.read_resource("note://by/ann")).contents
    assert found.text == "note by ann"
    (prompt,) = (await client.list_prompts()).prompts
    answer = await client.get_prompt(prompt.name, {"name": "Ann"})
    assert answer.messages[0].content.text == "Say hello to Ann."
    with pytest.raises(MCPError):
        await client.read_resource("note://none/at/all")


async def results(client: Client, heard: Heard) -> None:
    """Results come as they are."""
    structured = await client.call_tool("structured", {"city": "Oslo"})
    assert structured.structured_content == {"city": "Oslo", "degrees": 7}
    (picture,) = (await client.call_tool("picture")).content
    assert (picture.type, picture.mime_type) == ("image", "image/png")
    assert (await client.call_tool("fails")).is_error
    done = await client.call_tool("steps", progress_callback=heard.progressed)
    assert text_of(done) == "done"
    assert heard.progress == [(n, 3, f"step {n}") for n in (1, 2, 3)]
    assert "halfway" in str(heard.logs)
    unknown = await asyncio.gather(client.call_tool("nothing"), return_exceptions=True)
    assert isinstance(unknown[0], MCPError) or unknown[0].is_error


async def questions(client: Client, heard: Heard) -> None:
    """A server asks its client."""
    assert text_of(await client.call_tool("asks")) == "accept True"
    assert text_of(await client.call_tool("samples")) == "fine"
    await client.call_tool("changes")
    assert "Is it fine?" in str(heard.told)
    assert "well?" in str(heard.told)


async def given_up(client: Client, heard: Heard) -> None:
    """A call that is cancelled, or took too long, ends at the server, and is in no way."""
    heard.began.clear()
    running = asyncio.ensure_future(
        client.call_tool("hangs", progress_callback=heard.progressed)
    )
    await heard.began.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    with pytest.raises(MCPError):
        await client.call_tool("hangs", read_timeout_seconds=0.2)
    while text_of(await client.call_tool("ended")) == "0":
        await asyncio.sleep(0)


async def at_once(client: Client, world: World, server: Server) -> None:
    """Calls at once each have their own answer, and invocation."""
    actions = [event.action for event in world.events("invocation")]
    before = actions.count("structured")
    cities = [f"city-{n}" for n in range(20)]
    found = await asyncio.gather(
        *(client.call_tool("structured", {"city": city}) for city in cities)
    )
    assert [each.structured_content["city"] for each in found] == cities
    key = text_of(await client.call_tool("key"))
    assert SECRET not in key
    if key:  # it is a program's placeholder; a server of HTTP is not sent to by it
        path = text_of(await client.call_tool("fetch", {"path": "v1"}))
        assert server.header("authorization") == [BEARER]
        assert SECRET not in path
    actions = [event.action for event in world.events("invocation")]
    assert actions.count("structured") == 20 + before
