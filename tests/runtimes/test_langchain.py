"""LangChain and LangGraph: the middleware of an agent."""

from __future__ import annotations

from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from apex_creds.integrations.langchain import CredentialsMiddleware
from apex_creds.integrations.tools import RuntimeConsent, needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import ConsentContract, RuntimeContract, Seen, SyncContract, Tool
from tests.support.loopback import Server
from tests.support.worlds import World

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

    @pytest.mark.parametrize("answer", ["once", "session", "always"])
    async def test_a_tool_that_interrupts_itself_gets_its_own_answer(
        self, world: World, server: Server, answer: str
    ) -> None:
        got: list[object] = []

        @needs("weather", origins=[server.origin])
        async def stranger(city: str) -> str:
            """Asks before it does what it does."""
            got.append(interrupt("really?"))
            return city

        async with CredentialMiddleware(
            world.vault, consent=RuntimeConsent(), harden=False
        ) as creds:
            made = agent(creds, stranger, checkpointer=InMemorySaver())
            thread = {"configurable": {"thread_id": "1"}}
            await made.ainvoke(ASK, thread)
            stopped = await made.ainvoke(Command(resume={"weather": answer}), thread)
            assert [each.value for each in stopped["__interrupt__"]] == ["really?"]
            await made.ainvoke(Command(resume="no"), thread)
        assert got == ["no"]

    async def test_what_is_said_to_a_tool_allows_no_credential(
        self, world: World, server: Server
    ) -> None:
        ran: list[object] = []

        @needs("weather", origins=[server.origin])
        async def fetch(city: str) -> str:
            """Asks before it does what it does."""
            ran.append(interrupt("really?"))
            return city

        async with CredentialMiddleware(
            world.vault, consent=RuntimeConsent(), harden=False
        ) as creds:
            made = agent(creds, fetch, checkpointer=InMemorySaver())
            thread = {"configurable": {"thread_id": "1"}}
            stopped = await made.ainvoke(ASK, thread)
            assert [each.value for each in stopped["__interrupt__"]] == ["really?"]
            await world.vault.revoke(plugin="fetch")
            ended = await made.ainvoke(Command(resume=True), thread)
        assert seen(ended).error
        assert not ran

    async def asked(
        self, creds: CredentialMiddleware, function: Tool, answer: str | None
    ) -> tuple[list[dict[str, object]], Seen]:
        made = agent(creds, function, checkpointer=InMemorySaver())
        thread = {"configurable": {"thread_id": "1"}}
        stopped = await made.ainvoke(ASK, thread)
        (interrupt,) = stopped["__interrupt__"]
        ended = await made.ainvoke(Command(resume={"weather": answer}), thread)
        return interrupt.value["questions"], seen(ended)
