"""The official MCP SDK: a server, called by a client over streams in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from mcp import Client
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import CreateMessageResult, ElicitResult, SamplingMessage, TextContent
from pydantic import BaseModel

from apex_creds.integrations.mcp import install
from apex_creds.integrations.tools import needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.conformance import ConformanceContract
from tests.runtimes.contract import AsideContract, RuntimeContract, Seen, Tool, said

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:.*2026-07-28"),
]


def sign_in(user: str) -> None:
    """As the server's middleware does it for a request with a token."""
    token = AccessToken(token="t", client_id="c", scopes=[], subject=user)
    auth_context_var.set(AuthenticatedUser(token) if user else None)


class Answer(BaseModel):
    """What a user is asked for."""

    fine: bool


@needs("weather", access="reveal")
async def leaks(city: str, ctx: Context) -> str:
    """Says it in every way."""
    text = await said()
    await ctx.report_progress(1, 2, text)
    await ctx.info({"of": [text]})
    await ctx.elicit(text, Answer)
    content = TextContent(type="text", text=text)
    message = SamplingMessage(role="user", content=content)
    await ctx.session.create_message([message], max_tokens=1, system_prompt=text)
    return city


class TestMCP(RuntimeContract, AsideContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        sign_in(user)
        server = MCPServer("test")
        install(server, creds, principal=lambda token: token.subject)
        server.add_tool(function)
        async with Client(server) as client:
            result = await client.call_tool(function.__name__, {"city": city})
        return Seen(
            f"{result.content} {result.structured_content} {result.meta}", bool(result.is_error)
        )

    async def schema(self, function: Tool) -> str:
        server = MCPServer("test")
        server.add_tool(function)
        (tool,) = await server.list_tools()
        return str(tool.input_schema)

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        sent: dict[str, object] = {}

        async def progress(done: float, total: float | None, message: str | None) -> None:
            sent["progress"] = message

        async def logged(params: Any) -> None:
            sent["log"] = params

        async def elicited(context: Any, params: Any) -> ElicitResult:
            sent["elicitation"] = params
            return ElicitResult(action="accept", content={"fine": True})

        async def sampled(context: Any, params: Any) -> CreateMessageResult:
            sent["sampling"], sent["system prompt"] = params.messages, params.system_prompt
            content = TextContent(type="text", text="ok")
            return CreateMessageResult(role="assistant", content=content, model="m")

        server = MCPServer("test")
        install(server, creds)
        server.add_tool(leaks)
        async with Client(
            server,
            mode="legacy",
            logging_callback=logged,
            elicitation_callback=elicited,
            sampling_callback=sampled,
        ) as client:
            await client.call_tool("leaks", {"city": "Oslo"}, progress_callback=progress)
        assert len(sent) == 5
        return sent


class TestMCPConformance(ConformanceContract):
    """Through ``apex-creds mcp``."""
