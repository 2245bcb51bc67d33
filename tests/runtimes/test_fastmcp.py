"""FastMCP: a server's middleware, called by a client of the protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from fastmcp import Client, Context, FastMCP
from fastmcp.server.auth import AccessToken
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser

from apex_creds.integrations.fastmcp import CredentialsMiddleware
from apex_creds.integrations.tools import METADATA, needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.conformance import ConformanceContract
from tests.runtimes.contract import AsideContract, RuntimeContract, Seen, Tool, said
from tests.support.worlds import World

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:.*2026-07-28"),
]


def sign_in(user: str) -> None:
    """As the server's middleware does it for a request with a token."""
    token = AccessToken(token="t", client_id="c", scopes=[], subject=user)
    auth_context_var.set(AuthenticatedUser(token) if user else None)


def server_with(creds: CredentialMiddleware, function: Tool, **options: object) -> FastMCP:
    server = FastMCP("test")
    server.add_middleware(CredentialsMiddleware(creds, principal=lambda token: token.subject))
    server.tool(function, **options)
    return server


@needs("weather", access="reveal")
async def leaks(city: str, ctx: Context) -> str:
    """Says it in every way."""
    text = await said()
    await ctx.report_progress(1, 2, text)
    await ctx.info(text, extra={"of": [text]})
    await ctx.elicit(text, bool)
    await ctx.session.send_log_message("error", text, logger="direct")
    return city


class TestFastMCP(RuntimeContract, AsideContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        sign_in(user)
        async with Client(server_with(creds, function)) as client:
            result = await client.call_tool(
                function.__name__, {"city": city}, raise_on_error=False
            )
        text = f"{result.content} {result.structured_content} {result.meta} {result.data}"
        return Seen(text, result.is_error)

    async def schema(self, function: Tool) -> str:
        server = FastMCP("test")
        server.tool(function)
        (tool,) = await server.list_tools()
        return str(tool.parameters)

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        sent: dict[str, object] = {}

        async def progress(done: float, total: float | None, message: str | None) -> None:
            sent["progress"] = message

        async def logged(message: Any) -> None:
            sent[f"log {message.logger}"] = message.data

        async def elicited(message: str, *_: object) -> dict[str, object]:
            sent["elicitation"] = message
            return {"value": True}

        async with Client(
            server_with(creds, leaks),
            mode="legacy",
            progress_handler=progress,
            log_handler=logged,
            elicitation_handler=elicited,
        ) as client:
            await client.call_tool("leaks", {"city": "Oslo"})
        assert len(sent) == 4
        return sent

    async def test_a_declaration_in_the_meta_of_a_tool(self, world: World) -> None:
        async def stranger(city: str) -> str:
            """Has no decorator."""
            raise AssertionError("it is not granted")

        meta = {METADATA: {"credentials": [{"name": "weather"}]}}
        async with Client(server_with(world.middleware, stranger, meta=meta)) as client:
            result = await client.call_tool("stranger", {"city": "x"}, raise_on_error=False)
        assert result.is_error
        assert world.reasons() == [("weather", "not_granted")]


class TestFastMCPConformance(ConformanceContract):
    """Through ``apex-creds mcp``."""
