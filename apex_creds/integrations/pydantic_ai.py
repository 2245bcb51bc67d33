"""Pydantic AI: ``Agent(model, toolsets=[CredentialsToolset(toolset, creds)])``.

Guarantee: see ``tools``. A tool's declaration may stand in its ``metadata`` under
``apex_creds``. A refusal is a ``ToolFailed``. With ``RuntimeConsent`` as the middleware's
consent, a credential that a person has to allow makes the call one that needs approval
(``DeferredToolRequests``, with the questions as its metadata): approved, it is allowed once.
What a tool emits or enqueues through its context is cleaned as results are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import ApprovalRequired, ToolFailed
from pydantic_ai.toolsets import WrapperToolset

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.outlets import outlet
from apex_creds.integrations.tools import Answered, ToolGuard, answer_of, explain, question_of
from apex_creds.middleware import CredentialMiddleware

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.toolsets import ToolsetTool

__all__ = ["CredentialsToolset"]


@dataclass
class CredentialsToolset(WrapperToolset[Any]):
    """Gives the tools of a toolset handles for what they declare with ``needs``.

    Args:
        wrapped: The toolset.
        middleware: Open for as long as the agent runs.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id, of the run, such as ``ctx.deps``;
            see ``ToolGuard``.
    """

    middleware: CredentialMiddleware
    manifests: Mapping[str, Mapping[str, object]] | None = None
    principal: Callable[[RunContext[Any]], str | None] | None = None

    def __post_init__(self) -> None:
        self._guard = ToolGuard(
            self.middleware, manifests=self.manifests, principal=self.principal
        )

    async def call_tool(
        self,
        name: str,
        tool_args: dict[str, Any],
        ctx: RunContext[Any],
        tool: ToolsetTool[Any],
    ) -> Any:
        """See ``WrapperToolset``."""
        found = getattr(tool.toolset, "tools", {}).get(name)
        try:
            manifest = self._guard.manifest(name, found, tool.tool_def.metadata)
            if manifest is None:
                return await super().call_tool(name, tool_args, ctx, tool)
            whom = self._guard.principal(ctx)
            asked = await self.middleware.questions(manifest, name, principal=whom)
            if asked and not ctx.tool_call_approved:
                raise ApprovalRequired({"questions": [question_of(each) for each in asked]})
            yes = answer_of(True, by="pydantic_ai")
            inner = super().call_tool

            async def call() -> object:
                return await inner(name, tool_args, outlet(ctx), tool)

            with Answered({each.credential: yes for each in asked}):
                return await self.middleware.invoke_action(manifest, name, call, principal=whom)
        except ApexCredsError as error:
            refusal = explain(error)
        raise ToolFailed(refusal)
