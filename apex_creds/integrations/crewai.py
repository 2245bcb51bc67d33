"""CrewAI: ``Agent(…, tools=guarded([tool, …], creds))``.

Guarantee: see ``tools``. A refusal is what the tool returns, in words for the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
        tools: As CrewAI's ``@tool`` makes them; others are passed on as they are.
        middleware: Open for as long as the crew works.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id; see ``ToolGuard``.
    """
    guard = ToolGuard(middleware, manifests=manifests, principal=principal)
    return [
        # The name is the function's, not the one that a model is shown.
        tool.model_copy(update={"func": guard.function(tool.func, refused=str)})
        if callable(getattr(tool, "func", None))
        else tool
        for tool in tools
    ]
