"""Pydantic AI: a toolset around the agent's own."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, FunctionToolset
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from apex_creds.integrations.pydantic_ai import CredentialsToolset
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import ConsentContract, RuntimeContract, Seen, SyncContract, Tool

pytestmark = pytest.mark.anyio


def agent(creds: CredentialMiddleware, function: Tool, city: str = "Oslo") -> Agent[Any, Any]:
    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if any(isinstance(message, ModelResponse) for message in messages):
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart(function.__name__, {"city": city})])

    toolset = CredentialsToolset(
        FunctionToolset([function]), creds, principal=lambda run: run.deps
    )
    return Agent(
        FunctionModel(model), toolsets=[toolset], output_type=[str, DeferredToolRequests]
    )


def seen(result: Any) -> Seen:
    parts = [part for message in result.all_messages() for part in message.parts]
    (part,) = (part for part in parts if part.part_kind == "tool-return")
    return Seen(f"{part.content} {part.metadata}", part.outcome == "failed")


class TestPydanticAI(RuntimeContract, SyncContract, ConsentContract):
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
