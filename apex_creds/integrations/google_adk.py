"""Google ADK: ``App(…, plugins=[CredentialsPlugin(creds)])``.

Guarantee: see ``tools``. A refusal is a response with ``error``, in words for the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.adk.plugins import BasePlugin

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.tools import ToolGuard, explain
from apex_creds.middleware import CredentialMiddleware

if TYPE_CHECKING:
    from google.adk.tools import BaseTool, ToolContext

__all__ = ["CredentialsPlugin"]


class CredentialsPlugin(BasePlugin):
    """Gives the tools of a runner's agents handles for what they declare with ``needs``.

    Args:
        middleware: Open for as long as the runner is.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id, of the tool's context, such as
            ``context.user_id``; see ``ToolGuard``.
    """

    def __init__(
        self,
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
        principal: Callable[[ToolContext], str | None] | None = None,
    ) -> None:
        super().__init__(name="apex_creds")
        self._guard = ToolGuard(middleware, manifests=manifests, principal=principal)

    async def before_tool_callback(
        self, *, tool: BaseTool, tool_args: dict[str, Any], tool_context: ToolContext
    ) -> dict[str, Any] | None:
        """Runs a tool that declares credentials, in the runner's place."""
        try:
            manifest = self._guard.manifest(tool.name, tool)
            if manifest is None:
                return None
            given: dict[str, object] = {"args": tool_args, "tool_context": tool_context}
            result = await self._guard.middleware.invoke_action(
                manifest,
                tool.name,
                tool.run_async,
                kwargs=given,
                principal=self._guard.principal(tool_context),
            )
        except ApexCredsError as error:
            return {"error": explain(error)}
        return result if isinstance(result, dict) and result else {"result": result}
