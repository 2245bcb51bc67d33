"""AutoGen: ``AssistantAgent(…, tools=guarded([tool, …], creds))``.

Guarantee: see ``tools``. A refusal is an error of the tool, whose text the agent
gives its model.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

from autogen_core.tools import FunctionTool

from apex_creds.integrations.tools import ToolGuard, guarded_by

__all__ = ["guarded"]


@guarded_by
def guarded(tool: Any, guard: ToolGuard) -> Any:
    """Of ``FunctionTool``s, and functions that become such."""
    if inspect.isroutine(tool):
        tool = FunctionTool(tool, description=tool.__doc__ or "")
    if not isinstance(tool, FunctionTool):
        return tool
    twin = copy.copy(tool)
    twin._func = guard.function(tool._func, name=tool.name)
    return twin
