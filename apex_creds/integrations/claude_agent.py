"""Claude Agent SDK: ``create_sdk_mcp_server(…, tools=guarded([tool, …], creds))``.

Guarantee: see ``tools``. A refusal is a result with ``is_error``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from claude_agent_sdk import SdkMcpTool

from apex_creds.integrations.tools import ToolGuard
from apex_creds.middleware import CredentialMiddleware

__all__ = ["guarded"]


def guarded(
    tools: Iterable[SdkMcpTool[Any]],
    middleware: CredentialMiddleware,
    *,
    manifests: Mapping[str, Mapping[str, object]] | None = None,
    principal: Callable[[], str | None] | None = None,
) -> list[SdkMcpTool[Any]]:
    """The tools, those that declare credentials with ``needs`` in a guarded copy.

    Args:
        tools: As the SDK's ``@tool`` makes them.
        middleware: Open for as long as the server is.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id; see ``ToolGuard``.
    """
    guard = ToolGuard(middleware, manifests=manifests, principal=principal)
    return [
        dataclasses.replace(
            tool, handler=guard.function(tool.handler, name=tool.name, refused=_refused)
        )
        for tool in tools
    ]


def _refused(words: str) -> dict[str, object]:
    return {"content": [{"type": "text", "text": words}], "is_error": True}
