"""A server with all that MCP has, of FastMCP or else of the official SDK, as one is installed.

Over stdio, or over HTTP at the port that is given.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
import urllib.request
import warnings

from mcp.types import SamplingMessage, TextContent
from pydantic import BaseModel

warnings.simplefilter("ignore")
os.environ["FASTMCP_CHECK_FOR_UPDATES"] = "off"  # it asks a registry, and writes into the home
try:
    from fastmcp import Context
    from fastmcp import FastMCP as Server
    from fastmcp.utilities.types import Image

    server = Server("conformance", instructions="Ask.", list_page_size=2)
except ImportError:
    from mcp.server.mcpserver import Context, Image
    from mcp.server.mcpserver import MCPServer as Server

    server = Server("conformance", instructions="Ask.")

PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")  # fmt: skip  # noqa: E501
KEY = os.environ.get("WEATHER_API_KEY", "")
BASE = os.environ.get("WEATHER_BASE_URL", "")
cancelled: list[str] = []


class Report(BaseModel):
    city: str
    degrees: int


class Answer(BaseModel):
    fine: bool


@server.tool()
def structured(city: str) -> Report:
    """An object."""
    return Report(city=city, degrees=7)


@server.tool()
def picture() -> Image:
    """An image."""
    return Image(data=PIXEL, format="png")


@server.tool()
def fails() -> str:
    """An error."""
    raise ValueError("no such city")


@server.tool()
async def steps(ctx: Context) -> str:
    """Progress and a log message."""
    for step in (1, 2, 3):
        await ctx.report_progress(step, 3, f"step {step}")
    await ctx.info("halfway")
    return "done"


@server.tool()
async def asks(ctx: Context) -> str:
    """A question to the user."""
    answer = await ctx.elicit("Is it fine?", Answer)
    return f"{answer.action} {answer.data.fine}"


@server.tool()
async def samples(ctx: Context) -> str:
    """A question to the client's model."""
    message = SamplingMessage(role="user", content=TextContent(type="text", text="well?"))
    answer = await ctx.session.create_message([message], max_tokens=9)
    return answer.content.text


@server.tool()
async def hangs(ctx: Context) -> str:
    """It never answers."""
    await ctx.report_progress(1, 2, "began")
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.append("it")
    return "never"


@server.tool()
def ended() -> str:
    """How often ``hangs`` was cancelled."""
    return str(len(cancelled))


@server.tool()
async def changes(ctx: Context) -> str:
    """A notification."""
    await ctx.session.send_tool_list_changed()
    return "changed"


@server.tool()
async def fetch(path: str) -> str:
    """What a service answers, which is asked with the key."""
    request = urllib.request.Request(f"{BASE}/{path}", headers={"X-Api-Key": KEY})
    answer = await asyncio.to_thread(urllib.request.urlopen, request)
    return answer.read().decode()


@server.tool()
async def key() -> str:
    """The key that it has."""
    return KEY


@server.resource("note://one", mime_type="text/plain")
def note() -> str:
    """A text."""
    return "first note"


@server.resource("note://by/{name}")
def note_by(name: str) -> str:
    """A text of somebody's."""
    return f"note by {name}"


@server.prompt()
def greet(name: str) -> str:
    """A prompt."""
    return f"Say hello to {name}."


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
