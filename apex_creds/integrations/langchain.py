"""LangChain and LangGraph: ``create_agent(…, middleware=[CredentialsMiddleware(creds)])``.

Guarantee: see ``tools``. A refusal is a ``ToolMessage`` with ``status="error"``. With
``RuntimeConsent`` as the middleware's consent, a credential that a person has to allow
interrupts the graph (LangGraph's ``interrupt``), and is decided by what it is resumed with: for
each credential ``once``, ``session``, ``always``, ``deny`` or ``never``. The stream's writers,
the store and all callbacks (tracers too) get nothing of a tool that is not cleaned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final, cast

from langchain.agents.middleware import AgentMiddleware
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import ToolMessage
from langgraph.config import get_config
from langgraph.prebuilt import ToolRuntime
from langgraph.pregel.protocol import StreamProtocol
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from apex_creds.errors import ApexCredsError
from apex_creds.integrations.outlets import cleaning, outlet
from apex_creds.integrations.tools import (
    Answered,
    Guarding,
    answer_of,
    explain,
    question_of,
)
from apex_creds.policy.consent import DENIED, ConsentAnswer, ConsentRequest
from apex_creds.policy.manifest import Manifest

if TYPE_CHECKING:
    from langchain.agents.middleware import ToolCallRequest
    from langchain_core.runnables import RunnableConfig
    from langchain_core.tools import BaseTool
    from langgraph.types import Command

__all__ = ["CredentialsMiddleware"]

INTERRUPT: Final = "apex_creds.consent"
"""The ``type`` of an interrupt's value."""


class CredentialsMiddleware(Guarding[ToolRuntime[Any, Any]], AgentMiddleware[Any, Any]):
    """Gives the tools of an agent handles for what they declare with ``needs``.

    ``principal`` is given the run, such as for ``runtime.context``; see ``Guarding``.
    """

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

            async def call() -> ToolMessage | Command[Any]:
                return await handler(_seen_by_tool(request))

            with Answered(_answers(manifest, asked)):
                return await creds.invoke_action(manifest, name, call, principal=whom)
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
            return self._guard.middleware.invoke_sync(
                manifest,
                request.tool_call["name"],
                lambda: handler(_seen_by_tool(request)),
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


def _seen_by_tool(request: ToolCallRequest) -> ToolCallRequest:
    """The request with all that the tool may send by cleaned."""
    runtime = request.runtime
    if runtime is not None:  # there is one in every graph
        config = _cleaned(runtime.config)
        runtime = _without_secrets(runtime, config=config)
        if hasattr(runtime, "emit_output_delta"):
            vars(runtime)["emit_output_delta"] = cleaning(runtime.emit_output_delta)
    return request.override(tool=cast("BaseTool", _Tool(request.tool)), runtime=runtime)


def _without_secrets(runtime: Any, **changed: object) -> Any:
    return dataclasses.replace(
        runtime,
        stream_writer=cleaning(runtime.stream_writer),
        store=outlet(runtime.store),
        **changed,
    )


def _cleaned(config: RunnableConfig | None) -> RunnableConfig:
    """A run's configuration with callbacks and a stream that get nothing but cleaned."""
    made, callbacks = dict(config or {}), (config or {}).get("callbacks")
    if isinstance(callbacks, BaseCallbackManager):
        manager = callbacks.copy()
        for handlers in (manager.handlers, manager.inheritable_handlers):
            handlers[:] = map(outlet, handlers)
        made["callbacks"] = manager
    elif callbacks:
        made["callbacks"] = list(map(outlet, callbacks))
    inside = dict((config or {}).get("configurable") or {})
    for name, value in inside.items():
        if isinstance(value, Runtime):
            inside[name] = _without_secrets(value)
        elif isinstance(value, StreamProtocol):  # of a graph that the tool runs
            inside[name] = StreamProtocol(cleaning(value.__call__), value.modes)
    return cast("RunnableConfig", {**made, "configurable": inside})


class _Tool:
    """A tool in one call, whose callbacks are what ``_cleaned`` makes of them."""

    def __init__(self, tool: BaseTool | None) -> None:
        self._tool = tool

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._tool)

    def __getattr__(self, name: str) -> object:
        return getattr(self._tool, name)

    def invoke(self, given: Any, config: RunnableConfig | None = None, **more: Any) -> object:
        return self._tool.invoke(given, _cleaned(config), **more)  # type: ignore[union-attr]

    async def ainvoke(
        self, given: Any, config: RunnableConfig | None = None, **more: Any
    ) -> object:
        return await self._tool.ainvoke(given, _cleaned(config), **more)  # type: ignore[union-attr]


def _refused(request: ToolCallRequest, error: ApexCredsError) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(
        explain(error), tool_call_id=call["id"] or "", name=call["name"], status="error"
    )
