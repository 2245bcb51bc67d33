"""Microsoft Agent Framework: the function middleware of an agent."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

import pytest
from agent_framework import (
    Agent,
    BaseChatClient,
    ChatResponse,
    Content,
    FunctionInvocationContext,
    FunctionInvocationLayer,
    Message,
    tool,
)

from apex_creds.integrations.agent_framework import CredentialsMiddleware
from apex_creds.integrations.tools import needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import AsideContract, RuntimeContract, Seen, Tool, said

pytestmark = pytest.mark.anyio


class OneCall(FunctionInvocationLayer, BaseChatClient):
    """Calls one tool, and is done."""

    def __init__(self, name: str, city: str) -> None:
        super().__init__()
        self._call = Content.from_function_call("1", name, arguments={"city": city})

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, **options: Any
    ) -> Awaitable[ChatResponse]:
        async def respond() -> ChatResponse:
            called = any(message.role == "tool" for message in messages)
            content = Content.from_text("done") if called else self._call
            return ChatResponse(messages=[Message("assistant", [content])])

        return respond()


@needs("weather", access="reveal")
async def leaks(city: str, ctx: FunctionInvocationContext) -> str:
    """Says it in every way."""
    ctx.session.state["kept"] = {"of": [await said()]}
    return city


class TestAgentFramework(RuntimeContract, AsideContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        agent = Agent(
            OneCall(function.__name__, city),
            tools=[tool(function)],
            middleware=[CredentialsMiddleware(creds, principal=lambda run: run.kwargs["user"])],
        )
        result = await agent.run("How is it?", function_invocation_kwargs={"user": user})
        contents = [each for message in result.messages for each in message.contents]
        (found,) = (each for each in contents if each.type == "function_result")
        text = (
            f"{found.result} {found.exception} {[each.to_dict() for each in found.items or ()]}"
        )
        return Seen(text, "The tool did not run" in text or found.exception is not None)

    async def schema(self, function: Tool) -> str:
        return str(tool(function).parameters())

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        agent = Agent(
            OneCall("leaks", "Oslo"),
            tools=[tool(leaks)],
            middleware=[CredentialsMiddleware(creds)],
        )
        session = agent.create_session()
        await agent.run("How is it?", session=session)
        return {"session": session.to_dict()}
