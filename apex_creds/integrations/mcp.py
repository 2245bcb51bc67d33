"""The official MCP SDK: ``install(server, creds)`` on an ``MCPServer``.

Guarantee: see ``tools``. A tool's declaration may stand in its ``meta`` under ``apex_creds``. A
refusal is a result with ``isError``. What a tool sends through its session while it runs
(progress, log messages, questions to the client or its user) is cleaned as results are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.types import CallToolResult, TextContent

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.outlets import outlet
from apex_creds.integrations.tools import ToolGuard, explain
from apex_creds.middleware import CredentialMiddleware

if TYPE_CHECKING:
    from mcp.server.auth.provider import AccessToken
    from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
    from mcp.server.mcpserver import MCPServer

__all__ = ["install"]


def install(
    server: MCPServer[Any],
    middleware: CredentialMiddleware,
    *,
    manifests: Mapping[str, Mapping[str, object]] | None = None,
    principal: Callable[[AccessToken], str | None] | None = None,
) -> None:
    """Gives the tools of a server handles for what they declare with ``needs``.

    Args:
        server: Before it runs.
        middleware: Open for as long as it runs.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id, of the request's access token;
            without one it is for nobody; see ``ToolGuard``.
    """
    guard = ToolGuard(middleware, manifests=manifests, principal=principal)

    async def guarded(
        ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        name = (ctx.params or {}).get("name")
        if ctx.method != "tools/call" or not isinstance(name, str):
            return await call_next(ctx)
        tool = server._tool_manager.get_tool(name)  # there is no public way
        try:
            manifest = guard.manifest(name, tool, getattr(tool, "meta", None))
            if manifest is None:
                return await call_next(ctx)
            token = get_access_token()
            whom = "" if token is None else guard.principal(token)

            async def call() -> HandlerResult:
                session = outlet(ctx.session)
                return await call_next(dataclasses.replace(ctx, session=session))

            return await middleware.invoke_action(manifest, name, call, principal=whom)
        except ApexCredsError as error:
            text = TextContent(type="text", text=explain(error))
        return CallToolResult(content=[text], is_error=True)

    server.middleware.append(guarded)
