"""Claude Agent SDK: ``create_sdk_mcp_server(…, tools=guarded([tool, …], creds))``.

Guarantee: see ``tools``. A refusal is a result with ``is_error``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from apex_creds.integrations.tools import ToolGuard, guarded_by

if TYPE_CHECKING:
    from claude_agent_sdk import SdkMcpTool

__all__ = ["guarded"]


@guarded_by
def guarded(tool: SdkMcpTool[Any], guard: ToolGuard) -> SdkMcpTool[Any]:
    """As the SDK's ``@tool`` makes them."""
    handler = guard.function(
        tool.handler,
        name=tool.name,
        refused=lambda words: {"content": [{"type": "text", "text": words}], "is_error": True},
    )
    return dataclasses.replace(tool, handler=handler)
