"""Pydantic AI: a toolset around the agent's own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from pydantic_ai import (
    Agent,
    CustomEvent,
    DeferredToolRequests,
    DeferredToolResults,
    FunctionToolset,
    RunContext,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from apex_creds.integrations.pydantic_ai import CredentialsToolset
from apex_creds.integrations.tools import needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import (
    AsideContract,
    ConsentContract,
    RuntimeContract,
    Seen,
    SyncContract,
    Tool,
    said,
)

pytestmark = pytest.mark.anyio


def agent(creds: CredentialMiddleware, function: Tool, city: str = "Oslo") -> Agent[Any, Any]:
    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if any(isinstance(message, ModelResponse) for message in messages):
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart(function.__name__, {"city": city})])

    async def streamed(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        if any(isinstance(message, ModelResponse) for message in messages):
            yield "done"
        else:
            yield {0: DeltaToolCall(function.__name__, json.dumps({"city": city}))}

    toolset = CredentialsToolset(
        FunctionToolset([function]), creds, principal=lambda run: run.deps
    )
    return Agent(
        FunctionModel(model, stream_function=streamed),
        toolsets=[toolset],
        output_type=[str, DeferredToolRequests],
    )


def seen(result: Any) -> Seen:
    parts = [part for message in result.all_messages() for part in message.parts]
    (part,) = (part for part in parts if part.part_kind == "tool-return")
    return Seen(f"{part.content} {part.metadata}", part.outcome == "failed")


@dataclasses.dataclass(kw_only=True)
class Told(CustomEvent):
    """What a tool emits."""

    text: str


@needs("weather", access="reveal")
async def leaks(ctx: RunContext[Any], city: str) -> str:
    """Says it in every way."""
    text = await said()
    await ctx.emit(Told(text=text))
    ctx.enqueue(text)
    return city


class TestPydanticAI(RuntimeContract, SyncContract, ConsentContract, AsideContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        return seen(await agent(creds, function, city).run("How is it?", deps=user))

    def call_sync(self, creds: CredentialMiddleware, function: Tool) -> Seen:
        return seen(agent(creds, function).run_sync("How is it?"))

    async def schema(self, function: Tool) -> str:
        (tool,) = FunctionToolset([function]).tools.values()
        return str(tool.function_schema.json_schema)

    async def asked(
        self, creds: CredentialMiddleware, function: Tool, answer: str | None
    ) -> tuple[list[dict[str, object]], Seen]:
        made = agent(creds, function)
        stopped = await made.run("How is it?")
        (call,) = stopped.output.approvals
        questions = stopped.output.metadata[call.tool_call_id]["questions"]
        results = DeferredToolResults(approvals={call.tool_call_id: answer == "once"})
        ended = await made.run(
            message_history=stopped.all_messages(), deferred_tool_results=results
        )
        parts = [part for message in ended.all_messages() for part in message.parts]
        part = [part for part in parts if part.part_kind == "tool-return"][-1]
        return questions, Seen(str(part.content), part.outcome in ("failed", "denied"))

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        sent: dict[str, object] = {}
        async with agent(creds, leaks).run_stream_events("How is it?") as events:
            async for event in events:
                if isinstance(event, Told):
                    sent["event"] = event
                if event.event_kind == "agent_run_result":
                    sent["enqueued"] = event.result.all_messages()
        assert len(sent) == 2
        return sent
