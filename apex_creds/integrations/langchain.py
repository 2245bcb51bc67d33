"""LangChain and LangGraph: ``create_agent(…, middleware=[CredentialsMiddleware(creds)])``.

Guarantee: see ``tools``. A refusal is a ``ToolMessage`` with ``status="error"``. With
``RuntimeConsent`` as the middleware's consent, a credential that a person has to allow
interrupts the graph (LangGraph's ``interrupt``), and is decided by what it is resumed with: for
each credential ``once``, ``session``, ``always``, ``deny`` or ``never``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final

from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langgraph.config import get_config
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
from apex_creds.policy.consent import DENIED, ConsentAnswer, ConsentRequest
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
            with Answered(_answers(manifest, asked)):
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


def _answers(manifest: Manifest, asked: list[ConsentRequest]) -> dict[str, ConsentAnswer]:
    """What a person says, who is asked by an interrupt of the graph.

    A graph tells the interrupts of a call by their order only, and runs it from its start
    again for each answer: what was said to a question that is none any more is taken from the
    order, too, or the tool's own ``interrupt`` would be given it. And what is not about these
    credentials was said to the tool.
    """
    names = {need.name for need in manifest.needs}
    if not (asked or _is_ours(_said_first(), names)):
        return {}
    said = interrupt({"type": INTERRUPT, "questions": [question_of(each) for each in asked]})
    if not _is_ours(said, names):
        return {}
    return {
        each.credential: answer_of(said.get(each.credential), by="langgraph") for each in asked
    }


def _is_ours(said: object, names: AbstractSet[str]) -> bool:
    """Whether an interrupt was resumed with an answer for one of these credentials."""
    return isinstance(said, Mapping) and any(
        said[name] == DENIED.choice or answer_of(said[name]) != DENIED
        for name in names & said.keys()
    )


def _said_first() -> object:
    """What the first interrupt of this call would be given; None: it would interrupt."""
    run = get_config().get("configurable", {}).get("__pregel_scratchpad")  # no public way
    if run is None:
        return None
    return run.resume[0] if run.resume else run.get_null_resume(False)


def _refused(request: ToolCallRequest, error: ApexCredsError) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(
        explain(error), tool_call_id=call["id"] or "", name=call["name"], status="error"
    )
