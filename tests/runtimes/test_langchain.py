"""LangChain and LangGraph: the middleware of an agent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.tools import ToolRuntime
from langchain_core.callbacks import AsyncCallbackHandler, adispatch_custom_event
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import Command, interrupt

from apex_creds.integrations.langchain import CredentialsMiddleware
from apex_creds.integrations.tools import RuntimeConsent, needs
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
from tests.support.loopback import Server
from tests.support.worlds import World

pytestmark = pytest.mark.anyio
ASK = {"messages": [("user", "How is it?")]}


class Model(GenericFakeChatModel):
    """Calls one tool, and is done."""

    def bind_tools(self, tools: Any, **options: Any) -> Model:
        return self


def agent(creds: CredentialMiddleware, function: Tool, *, city: str = "Oslo", **options: Any):
    made = function if isinstance(function, BaseTool) else tool(function)
    call = {"name": made.name, "args": {"city": city}, "id": "1"}
    says = iter([AIMessage("", tool_calls=[call]), AIMessage("done")])
    return create_agent(
        Model(messages=says, disable_streaming=True),
        tools=[made],
        middleware=[CredentialsMiddleware(creds, principal=lambda run: run.context)],
        context_schema=str,
        **options,
    )


def seen(result: dict[str, Any]) -> Seen:
    (message,) = (each for each in result["messages"] if isinstance(each, ToolMessage))
    return Seen(f"{message.content} {message.artifact}", message.status == "error")


WRITERS = ("given", "found", "inner", "tool-output-delta")


class Handler(AsyncCallbackHandler):
    """What callbacks are told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    async def on_tool_end(self, output: object, **_: object) -> None:
        self.told.append(("end", output))

    async def on_tool_error(self, error: BaseException, **_: object) -> None:
        self.told.append(("error", repr(error)))

    async def on_custom_event(self, name: str, data: object, **_: object) -> None:
        self.told.append((name, data))


async def node(state: dict[str, object]) -> dict[str, object]:
    """Of a graph that the tool runs."""
    get_stream_writer()({"inner": await said()})
    return {}


@tool(response_format="content_and_artifact")
@needs("weather", access="reveal")
async def leaks(city: str, runtime: ToolRuntime) -> tuple[str, object]:
    """Says it in every way."""
    text = await said()
    runtime.stream_writer({"given": text})
    get_stream_writer()({"found": text})
    runtime.emit_output_delta(text)
    runtime.store.put(("notes",), "key", {"of": [text]})
    await adispatch_custom_event("aside", {"of": text})
    graph = StateGraph(dict).add_node("node", node).add_edge(START, "node").compile()
    await graph.ainvoke({})
    if city == "fails":
        raise ValueError(text)
    if city == "asks":
        interrupt(text)
    return text, {"artifact": text}


class TestLangChain(RuntimeContract, SyncContract, ConsentContract, AsideContract):
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

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        sent: dict[str, object] = {}
        for city in ("Oslo", "asks", "fails"):
            store, handler, saver = InMemoryStore(), Handler(), InMemorySaver()
            made = agent(creds, leaks, city=city, store=store, checkpointer=saver)
            config = {"callbacks": [handler], "configurable": {"thread_id": city}}
            modes = ["custom", "tools", "updates", "messages"]
            parts: list[tuple[str, object]] = []
            try:
                async for _, mode, content in made.astream(
                    ASK, config, stream_mode=modes, subgraphs=True
                ):
                    parts.append((str(content), mode))
            except ValueError as error:
                sent[f"{city}: raised"] = error
            told = [text for text, _ in parts if "weather is" in text]
            assert {mode for text, mode in parts if text in told} >= {"custom", "tools"}
            assert all(any(way in text for text in told) for way in WRITERS)
            sent[f"{city}: stream"] = told
            sent[f"{city}: store"] = [each.value for each in store.search(("notes",))]
            sent |= {f"{city}: callback {event}": text for event, text in handler.told}
        ways = " ".join(sent)
        assert all(way in ways for way in ("callback end", "callback error", "callback aside"))
        return sent
