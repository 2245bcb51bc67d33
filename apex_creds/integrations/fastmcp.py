"""FastMCP: ``mcp.add_middleware(CredentialsMiddleware(creds))``.

Guarantee: see ``tools``. A tool's declaration may stand in its ``meta`` under ``apex_creds``.
A refusal is a ``ToolError``, which the client reads as a result with ``isError``. Text,
structured content and ``meta`` of a result are cleaned alike, and so is what a tool sends
through its session while it runs: progress, log messages, questions to the client or its user.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from fastmcp.exceptions import ToolError
from fastmcp.server.auth import AccessToken
from fastmcp.server.dependencies import fastmcp_request_ctx, get_access_token
from fastmcp.server.middleware import Middleware

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.outlets import outlet
from apex_creds.integrations.tools import Guarding, explain

if TYPE_CHECKING:
    from fastmcp.server.middleware import CallNext, MiddlewareContext
    from fastmcp.tools.base import ToolResult
    from mcp.types import CallToolRequestParams

__all__ = ["CredentialsMiddleware"]


class CredentialsMiddleware(Guarding[AccessToken], Middleware):
    """Gives the tools of a server handles for what they declare with ``needs``.

    ``principal`` is given the request's access token; without one it is for nobody. See
    ``Guarding``.
    """

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

            async def call() -> ToolResult:
                request = fastmcp_request_ctx.get()
                if request is None or request.session is None:
                    return await call_next(context)
                session = outlet(request.session)
                inner = dataclasses.replace(request._srctx, session=session)
                cleaned = dataclasses.replace(request, session=session, _srctx=inner)
                before = fastmcp_request_ctx.set(cleaned)
                try:
                    return await call_next(context)
                finally:
                    fastmcp_request_ctx.reset(before)

            return await self._guard.middleware.invoke_action(
                manifest, name, call, principal=whom
            )
        except ApexCredsError as error:
            refusal = explain(error)
        raise ToolError(refusal)
