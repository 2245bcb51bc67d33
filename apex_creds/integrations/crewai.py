"""CrewAI: ``Agent(…, tools=guarded([tool, …], creds))``.

Guarantee: see ``tools``. A refusal is what the tool returns, in words for the model.
"""

from __future__ import annotations

from typing import Any

from apex_creds.integrations.tools import ToolGuard, guarded_by

__all__ = ["guarded"]


@guarded_by
def guarded(tool: Any, guard: ToolGuard) -> Any:
    """As CrewAI's ``@tool`` makes them."""
    if not callable(getattr(tool, "func", None)):
        return tool
    # The name is the function's, not the one that a model is shown.
    return tool.model_copy(update={"func": guard.function(tool.func, refused=str)})
