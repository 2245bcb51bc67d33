"""FastMCP: ``mcp.add_middleware(CredentialsMiddleware(creds))``.

Guarantee: see ``tools``. A tool's declaration may stand in its ``meta`` under ``apex_creds``.
A refusal is a ``ToolError``, which the client reads as a result with ``isError``. Text,
structured content and ``meta`` of a result are cleaned alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fastmcp.exceptions import ToolError
from fastmcp.server.dependencies import get_access_token
from fastmcp.server.middleware import Middleware

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.tools import ToolGuard, explain
from apex_creds.middleware import CredentialMiddleware

if TYPE_CHECKING:
    from fastmcp.server.auth import AccessToken
    from fastmcp.server.middleware import CallNext, MiddlewareContext
    from fastmcp.tools.base import ToolResult
    from mcp.types import CallToolRequestParams

__all__ = ["CredentialsMiddleware"]


class CredentialsMiddleware(Middleware):
    """Gives the tools of a server handles for what they declare with ``needs``.

    Args:
        middleware: Open for as long as the server runs.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id, of the request's access token;
            without one it is for nobody; see ``ToolGuard``.
    """

    def __init__(
        self,
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
        principal: Callable[[AccessToken], str | None] | None = None,
    ) -> None:
        self._guard = ToolGuard(middleware, manifests=manifests, principal=principal)

    async def on_call_tool(
        self,
        context: MiddlewareContext[CallToolRequestParams],
        call_next: CallNext[CallToolRequestParams, ToolResult],
    ) -> ToolResult:
        """See ``Middleware``."""
        name, server = context.message.name, context.fastmcp_context
        tool = None if server is None else await server.fastmcp.get_tool(name)
        try:
            manifest = self._guard.manifest(name, tool, getattr(tool, "meta", None))
            if manifest is None:
                return await call_next(context)
            token = get_access_token()
            whom = "" if token is None else self._guard.principal(token)
            return await self._guard.middleware.invoke_action(
                manifest, name, call_next, (context,), principal=whom
            )
        except ApexCredsError as error:
            refusal = explain(error)
        raise ToolError(refusal)
