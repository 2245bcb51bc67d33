"""LangChain and LangGraph: ``create_agent(…, middleware=[CredentialsMiddleware(creds)])``.

Guarantee: see ``tools``. A refusal is a ``ToolMessage`` with ``status="error"``. With
``RuntimeConsent`` as the middleware's consent, a credential that a person has to allow
interrupts the graph (LangGraph's ``interrupt``), and is decided by what it is resumed with: for
each credential ``once``, ``session``, ``always``, ``deny`` or ``never``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langgraph.types import interrupt

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.tools import (
    Answered,
    ToolGuard,
    answer_of,
    explain,
    question_of,
)
from apex_creds.middleware import CredentialMiddleware
from apex_creds.policy.manifest import Manifest

if TYPE_CHECKING:
    from langchain.agents.middleware import ToolCallRequest
    from langgraph.prebuilt import ToolRuntime
    from langgraph.types import Command

__all__ = ["CredentialsMiddleware"]

INTERRUPT: Final = "apex_creds.consent"
"""The ``type`` of an interrupt's value."""


class CredentialsMiddleware(AgentMiddleware[Any, Any]):
    """Gives the tools of an agent handles for what they declare with ``needs``.

    Args:
        middleware: Open for as long as the agent runs.
        manifests: See ``ToolGuard``.
        principal: Who a call is for, as a user's id, of the run, such as
            ``runtime.context``; see ``ToolGuard``.
    """

    def __init__(
        self,
        middleware: CredentialMiddleware,
        *,
        manifests: Mapping[str, Mapping[str, object]] | None = None,
        principal: Callable[[ToolRuntime[Any, Any]], str | None] | None = None,
    ) -> None:
        super().__init__()
        self._guard = ToolGuard(middleware, manifests=manifests, principal=principal)

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """See ``AgentMiddleware``."""
        name = request.tool_call["name"]
        try:
            manifest = self._manifest(request)
            if manifest is None:
                return await handler(request)
            creds, whom = self._guard.middleware, self._guard.principal(request.runtime)
            asked = await creds.questions(manifest, name, principal=whom)
            with Answered(self._answers(asked)):
                return await creds.invoke_action(
                    manifest, name, handler, (request,), principal=whom
                )
        except ApexCredsError as error:
            return _refused(request, error)

    def wrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], ToolMessage | Command[Any]],
    ) -> ToolMessage | Command[Any]:
        """See ``AgentMiddleware``; nobody is asked."""
        try:
            manifest = self._manifest(request)
            if manifest is None:
                return handler(request)
            name = request.tool_call["name"]
            return self._guard.middleware.invoke_sync(
                manifest,
                name,
                handler,
                (request,),
                principal=self._guard.principal(request.runtime),
            )
        except ApexCredsError as error:
            return _refused(request, error)

    def _manifest(self, request: ToolCallRequest) -> Manifest | None:
        metadata = getattr(request.tool, "metadata", None)
        return self._guard.manifest(request.tool_call["name"], request.tool, metadata)

    def _answers(self, asked: list[Any]) -> dict[str, Any]:
        """What a person says, who is asked by an interrupt of the graph."""
        if not asked:
            return {}
        said = interrupt(
            {"type": INTERRUPT, "questions": [question_of(each) for each in asked]}
        )
        given = said if isinstance(said, Mapping) else {}
        return {
            each.credential: answer_of(given.get(each.credential, said), by="langgraph")
            for each in asked
        }


def _refused(request: ToolCallRequest, error: ApexCredsError) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(
        explain(error), tool_call_id=call["id"] or "", name=call["name"], status="error"
    )
