"""OpenAI Agents SDK: ``Agent(…, tools=guarded([tool, …], creds))``.

Guarantee: see ``tools``. A refusal is the tool's output, in words for the model. With
``RuntimeConsent`` as the middleware's consent, a credential that a person has to allow makes
the call one that needs approval (an interruption of the run): approved, it is allowed once.
What the span of a call says of its failure is cleaned, too.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from agents import FunctionTool, get_current_span

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.outlets import clean
from apex_creds.integrations.tools import (
    Answered,
    ToolGuard,
    answer_of,
    explain,
    guarded_by,
)
from apex_creds.policy.consent import ConsentRequest
from apex_creds.policy.manifest import Manifest

if TYPE_CHECKING:
    from agents import RunContextWrapper, Tool
    from agents.tool_context import ToolContext

__all__ = ["guarded"]


@guarded_by
def guarded(tool: Tool, guard: ToolGuard) -> Tool:
    """Of ``function_tool``."""
    manifest = None
    if isinstance(tool, FunctionTool):
        manifest = guard.manifest(tool.name, getattr(tool, "__wrapped__", None))
    return tool if manifest is None else _guarded(tool, guard, manifest)


def _guarded(tool: FunctionTool, guard: ToolGuard, manifest: Manifest) -> FunctionTool:
    async def questions(whom: str) -> list[ConsentRequest]:
        return await guard.middleware.questions(manifest, tool.name, principal=whom)

    async def call(context: ToolContext[Any], arguments: str) -> object:
        try:
            return await tool.on_invoke_tool(context, arguments)
        finally:
            span = get_current_span()
            if span is not None and span.error is not None:
                span.set_error(clean(span.error))

    async def invoke(context: ToolContext[Any], arguments: str) -> Any:
        try:
            whom = guard.principal(context)
            approved = context.is_tool_approved(tool.name, context.tool_call_id)
            asked = await questions(whom) if approved else []
            yes = answer_of(True, by="openai_agents")
            with Answered({each.credential: yes for each in asked}):
                return await guard.middleware.invoke_action(
                    manifest, tool.name, call, (context, arguments), principal=whom
                )
        except ApexCredsError as error:
            return explain(error)

    async def approval(
        context: RunContextWrapper[Any], parameters: dict[str, Any], call_id: str
    ) -> bool:
        if await questions(guard.principal(context)):
            return True
        asks = tool.needs_approval
        return asks if isinstance(asks, bool) else await asks(context, parameters, call_id)

    return dataclasses.replace(tool, on_invoke_tool=invoke, needs_approval=approval)
