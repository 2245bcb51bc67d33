"""OpenAI Agents SDK: ``Agent(…, tools=guarded([tool, …], creds))``.

Guarantee: see ``tools``. A refusal is the tool's output, in words for the model. With
``RuntimeConsent`` as the middleware's consent, a credential that a person has to allow makes
the call one that needs approval (an interruption of the run): approved, it is allowed once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from agents import FunctionTool

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.tools import Answered, ToolGuard, answer_of, explain
from apex_creds.middleware import CredentialMiddleware
from apex_creds.policy.consent import ConsentRequest
from apex_creds.policy.manifest import Manifest

if TYPE_CHECKING:
    from agents import RunContextWrapper, Tool
    from agents.tool_context import ToolContext

__all__ = ["guarded"]


def guarded(
    tools: Iterable[Tool],
    middleware: CredentialMiddleware,
    *,
    manifests: Mapping[str, Mapping[str, object]] | None = None,
    principal: Callable[[RunContextWrapper[Any]], str | None] | None = None,
) -> list[Tool]:
    """The tools, those that declare credentials with ``needs`` in a guarded copy.

    Args:
        tools: Of ``function_tool``; others are passed on as they are.
        middleware: Open for as long as the agent runs.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id, of the run, such as
            ``run.context``; see ``ToolGuard``.
    """
    guard = ToolGuard(middleware, manifests=manifests, principal=principal)
    made: list[Tool] = []
    for tool in tools:
        function = getattr(tool, "__wrapped__", None)
        is_one = isinstance(tool, FunctionTool)
        manifest = guard.manifest(tool.name, function) if is_one else None
        made.append(tool if manifest is None else _guarded(tool, guard, manifest))
    return made


def _guarded(tool: FunctionTool, guard: ToolGuard, manifest: Manifest) -> FunctionTool:
    async def questions(whom: str) -> list[ConsentRequest]:
        return await guard.middleware.questions(manifest, tool.name, principal=whom)

    async def invoke(context: ToolContext[Any], arguments: str) -> Any:
        try:
            whom = guard.principal(context)
            approved = context.is_tool_approved(tool.name, context.tool_call_id)
            asked = await questions(whom) if approved else []
            yes = answer_of(True, by="openai_agents")
            with Answered({each.credential: yes for each in asked}):
                return await guard.middleware.invoke_action(
                    manifest,
                    tool.name,
                    tool.on_invoke_tool,
                    (context, arguments),
                    principal=whom,
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
