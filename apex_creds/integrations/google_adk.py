"""Google ADK: ``App(…, plugins=[CredentialsPlugin(creds)])``.

Guarantee: see ``tools``. A refusal is a response with ``error``, in words for the model.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    """

    def __init__(
        self,
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        super().__init__(name="apex_creds")
        self._guard = ToolGuard(middleware, manifests=manifests)

    async def before_tool_callback(
        self, *, tool: BaseTool, tool_args: dict[str, Any], tool_context: ToolContext
    ) -> dict[str, Any] | None:
        """Runs a tool that declares credentials, in the runner's place."""
        try:
            manifest = self._guard.manifest(tool.name, tool)
            if manifest is None:
                return None
            result = await self._guard.call(
                manifest, tool.name, tool.run_async, args=tool_args, tool_context=tool_context
            )
        except ApexCredsError as error:
            return {"error": explain(error)}
        return result if isinstance(result, dict) and result else {"result": result}
