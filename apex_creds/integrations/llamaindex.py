"""LlamaIndex: ``FunctionAgent(tools=guarded([tool, …], creds), …)``.

Guarantee: see ``tools``. A refusal is an error of the tool, whose text the agent
gives its model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llama_index.core.tools import FunctionTool

from apex_creds.integrations.tools import ToolGuard
from apex_creds.middleware import CredentialMiddleware

__all__ = ["guarded"]


def guarded(
    tools: Iterable[Any],
    middleware: CredentialMiddleware,
    *,
    manifests: Mapping[str, Mapping[str, object]] | None = None,
    principal: Callable[[], str | None] | None = None,
) -> list[Any]:
    """The tools, those that declare credentials with ``needs`` in a guarded copy.

    Args:
        tools: ``FunctionTool``s, or functions that become such; others are passed on.
        middleware: Open for as long as the agent runs.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id; see ``ToolGuard``.
    """
    guard = ToolGuard(middleware, manifests=manifests, principal=principal)
    return [_guarded(tool, guard) for tool in tools]


def _guarded(tool: Any, guard: ToolGuard) -> Any:
    if inspect.isroutine(tool):
        tool = FunctionTool.from_defaults(tool)
    if not isinstance(tool, FunctionTool):
        return tool
    function = guard.function(tool.real_fn, name=tool.metadata.name or "")
    if function is tool.real_fn:
        return tool
    given = {"async_fn" if inspect.iscoroutinefunction(function) else "fn": function}
    return FunctionTool(metadata=tool.metadata, **given)
