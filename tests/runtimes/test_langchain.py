"""LangChain and LangGraph: the middleware of an agent."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from apex_creds.integrations.langchain import CredentialsMiddleware
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import ConsentContract, RuntimeContract, Seen, SyncContract, Tool

pytestmark = pytest.mark.anyio
ASK = {"messages": [("user", "How is it?")]}


class Model(GenericFakeChatModel):
    """Calls one tool, and is done."""

    def bind_tools(self, tools: Any, **options: Any) -> Model:
        return self


def agent(creds: CredentialMiddleware, function: Tool, *, city: str = "Oslo", **options: Any):
    call = {"name": function.__name__, "args": {"city": city}, "id": "1"}
    says = iter([AIMessage("", tool_calls=[call]), AIMessage("done")])
    return create_agent(
        Model(messages=says),
        tools=[tool(function)],
        middleware=[CredentialsMiddleware(creds, principal=lambda run: run.context)],
        context_schema=str,
        **options,
    )


def seen(result: dict[str, Any]) -> Seen:
    (message,) = (each for each in result["messages"] if isinstance(each, ToolMessage))
    return Seen(f"{message.content} {message.artifact}", message.status == "error")


class TestLangChain(RuntimeContract, SyncContract, ConsentContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        return seen(await agent(creds, function, city=city).ainvoke(ASK, context=user))

    def call_sync(self, creds: CredentialMiddleware, function: Tool) -> Seen:
        return seen(agent(creds, function).invoke(ASK))

    async def schema(self, function: Tool) -> str:
        return str(tool(function).args)

    async def asked(
        self, creds: CredentialMiddleware, function: Tool, answer: str | None
    ) -> tuple[list[dict[str, object]], Seen]:
        made = agent(creds, function, checkpointer=InMemorySaver())
        thread = {"configurable": {"thread_id": "1"}}
        stopped = await made.ainvoke(ASK, thread)
        (interrupt,) = stopped["__interrupt__"]
        ended = await made.ainvoke(Command(resume={"weather": answer}), thread)
        return interrupt.value["questions"], seen(ended)
