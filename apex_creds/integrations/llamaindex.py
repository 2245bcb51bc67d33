"""LlamaIndex: ``FunctionAgent(tools=guarded([tool, …], creds), …)``.

Guarantee: see ``tools``. A refusal is an error of the tool, whose text the agent
gives its model. What a tool sends through its ``Context`` (events of the stream and the
workflow, the store) is cleaned as results are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context

from apex_creds.integrations.outlets import outlet
from apex_creds.integrations.tools import ToolGuard, guarded_by

__all__ = ["guarded"]


@guarded_by
def guarded(tool: Any, guard: ToolGuard) -> Any:
    """Of ``FunctionTool``s, and functions that become such."""
    if inspect.isroutine(tool):
        tool = FunctionTool.from_defaults(tool)
    if not isinstance(tool, FunctionTool):
        return tool
    real, name = tool.real_fn, tool.metadata.name or ""
    if guard.manifest(name, real) is None:
        return tool
    function = guard.function(_with_outlets(real), name=name, tool=real)
    return FunctionTool(
        metadata=tool.metadata,
        callback=tool._callback,
        async_callback=tool._async_callback,
        partial_params=tool.partial_params,
        **{"async_fn" if inspect.iscoroutinefunction(function) else "fn": function},
    )


def _with_outlets(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def waits(*args: object, **kwargs: object) -> object:
        return await function(*map(_seen, args), **{k: _seen(v) for k, v in kwargs.items()})

    @functools.wraps(function)
    def calls(*args: object, **kwargs: object) -> object:
        return function(*map(_seen, args), **{k: _seen(v) for k, v in kwargs.items()})

    return waits if inspect.iscoroutinefunction(function) else calls


def _seen(value: object) -> object:
    return outlet(value, "store") if isinstance(value, Context) else value
