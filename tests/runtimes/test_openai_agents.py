"""OpenAI Agents SDK: function tools in guarded copies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from agents import (
    Agent,
    ModelResponse,
    RunConfig,
    RunHooks,
    Runner,
    TracingProcessor,
    Usage,
    function_tool,
    set_trace_processors,
)
from agents.models.interface import Model
from agents.tool_context import ToolContext
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)

from apex_creds.integrations.openai_agents import guarded
from apex_creds.integrations.tools import RuntimeConsent, needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import (
    AsideContract,
    ConsentContract,
    RuntimeContract,
    Seen,
    SyncContract,
    Tool,
    fetch_as,
    said,
)
from tests.support.loopback import Server
from tests.support.worlds import World

pytestmark = pytest.mark.anyio


class OneCall(Model):
    """Calls one tool, and is done."""

    def __init__(self, name: str, city: str) -> None:
        self._call = ResponseFunctionToolCall(
            type="function_call", call_id="1", name=name, arguments=json.dumps({"city": city})
        )

    async def get_response(self, **options: Any) -> Any:
        given = options["input"]
        called = isinstance(given, list) and any("call_id" in each for each in given)
        done = ResponseOutputMessage(
            id="m",
            type="message",
            role="assistant",
            status="completed",
            content=[ResponseOutputText(type="output_text", text="done", annotations=[])],
        )
        return ModelResponse(
            output=[done if called else self._call], usage=Usage(), response_id=None
        )

    def stream_response(self, *args: Any, **options: Any) -> Any:
        raise NotImplementedError


QUIET = RunConfig(tracing_disabled=True)


def agent(
    creds: CredentialMiddleware, function: Tool, city: str = "Oslo", **options: Any
) -> Agent[Any]:
    made = function_tool(function, **options)
    tools = guarded([made], creds, principal=lambda run: run.context)
    return Agent(name="a", model=OneCall(function.__name__, city), tools=tools)


def seen(result: Any) -> Seen:
    outputs = [item for item in result.new_items if item.type == "tool_call_output_item"]
    text = f"{outputs[-1].output} {outputs[-1].raw_item}"
    return Seen(text, "The tool did not run" in text or "not approved" in text)


class Spans(TracingProcessor):
    """What is traced."""

    def __init__(self) -> None:
        self.ended: list[dict[str, Any]] = []

    def on_span_end(self, span: Any) -> None:
        self.ended.append(span.export())

    def _nothing(self, *_: object) -> None:
        """Is not looked at."""

    on_trace_start = on_trace_end = on_span_start = _nothing
    shutdown = force_flush = _nothing


class Hooks(RunHooks[Any]):
    """What the hooks of a run are told."""

    async def on_tool_end(self, context: Any, agent: Any, tool: Any, result: object) -> None:
        self.result = result


@needs("weather", access="reveal")
async def leaks(city: str) -> str:
    """Says it in every way."""
    if city == "fails":
        raise ValueError(await said())
    return await said()


class TestOpenAIAgents(RuntimeContract, SyncContract, ConsentContract, AsideContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        made = agent(creds, function, city)
        return seen(await Runner.run(made, "How is it?", run_config=QUIET, context=user))

    def call_sync(self, creds: CredentialMiddleware, function: Tool) -> Seen:
        return seen(Runner.run_sync(agent(creds, function), "How is it?", run_config=QUIET))

    async def schema(self, function: Tool) -> str:
        return str(function_tool(function).params_json_schema)

    async def asked(
        self, creds: CredentialMiddleware, function: Tool, answer: str | None
    ) -> tuple[list[dict[str, object]], Seen]:
        made = agent(creds, function)
        stopped = await Runner.run(made, "How is it?", run_config=QUIET)
        (item,) = stopped.interruptions
        assert item.raw_item.name == function.__name__
        state = stopped.to_state()
        if answer == "once":
            state.approve(item)
        else:
            state.reject(item)
        ended = await Runner.run(made, state, run_config=QUIET)
        return [{"credential": "weather", "question": function.__name__}], seen(ended)

    async def test_only_an_approval_of_the_run_is_an_answer(
        self, world: World, server: Server
    ) -> None:
        """Not that a tool is called, by whatever calls it without having asked."""
        async with CredentialMiddleware(
            world.vault, consent=RuntimeConsent(), harden=False
        ) as creds:
            (tool,) = agent(creds, fetch_as("stranger", server)).tools
            arguments = json.dumps({"city": "Oslo"})
            context = ToolContext(
                "", tool_name="stranger", tool_call_id="1", tool_arguments=arguments
            )
            assert "The tool did not run" in await tool.on_invoke_tool(context, arguments)
        assert not server.requests

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        spans, hooks = Spans(), Hooks()
        set_trace_processors([spans])
        await Runner.run(agent(creds, leaks), "How is it?", hooks=hooks)
        fails = agent(creds, leaks, "fails", failure_error_function=lambda _, error: str(error))
        await Runner.run(fails, "How is it?")
        fine, failed = (each for each in spans.ended if each["span_data"]["type"] == "function")
        return {"hook": hooks.result, "span": fine, "failed span": failed["error"]}
