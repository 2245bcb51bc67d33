"""The official MCP SDK: a server, called by a client over streams in memory."""

from __future__ import annotations

import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer

from apex_creds.integrations.mcp import install
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import RuntimeContract, Seen, Tool

pytestmark = pytest.mark.anyio


class TestMCP(RuntimeContract):
    async def call(
        self, creds: CredentialMiddleware, function: Tool, *others: Tool, city: str = "Oslo"
    ) -> Seen:
        server = MCPServer("test")
        install(server, creds)
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
