"""The official MCP SDK: a server, called by a client over streams in memory."""

from __future__ import annotations

import pytest
from mcp import Client
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.mcpserver import MCPServer

from apex_creds.integrations.mcp import install
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import RuntimeContract, Seen, Tool

pytestmark = pytest.mark.anyio


def sign_in(user: str) -> None:
    """As the server's middleware does it for a request with a token."""
    token = AccessToken(token="t", client_id="c", scopes=[], subject=user)
    auth_context_var.set(AuthenticatedUser(token) if user else None)


class TestMCP(RuntimeContract):
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
