"""Google ADK: the plugin of a runner."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from google.adk.agents import LlmAgent
from google.adk.apps import App
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.adk.runners import InMemoryRunner
from google.adk.tools import FunctionTool, ToolContext
from google.genai import types

from apex_creds.integrations.google_adk import CredentialsPlugin
from apex_creds.integrations.tools import needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import AsideContract, RuntimeContract, Seen, Tool, said

pytestmark = pytest.mark.anyio


class OneCall(BaseLlm):
    """Calls one tool, and is done."""

    name: str
    city: str

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse, None]:
        parts = [part for content in llm_request.contents for part in content.parts or ()]
        if any(part.function_response for part in parts):
            part = types.Part(text="done")
        else:
            part = types.Part.from_function_call(name=self.name, args={"city": self.city})
        yield LlmResponse(content=types.Content(role="model", parts=[part]))


NOBODY = "u"


def user_of(context: Any) -> str:
    return "" if context.user_id == NOBODY else context.user_id


async def running(
    creds: CredentialMiddleware, function: Tool, *, city: str = "Oslo", user: str = NOBODY
) -> tuple[InMemoryRunner, Any]:
    """An agent that calls ``function``, and a session with it."""
    model = OneCall(model="fake", name=function.__name__, city=city)
    agent = LlmAgent(name="a", model=model, tools=[FunctionTool(function)])
    app = App(name="t", root_agent=agent, plugins=[CredentialsPlugin(creds, principal=user_of)])
    runner = InMemoryRunner(app=app)
    return runner, await runner.session_service.create_session(app_name="t", user_id=user)


@needs("weather", access="reveal")
async def leaks(city: str, tool_context: ToolContext) -> str:
    """Says it in every way."""
    text = await said()
    tool_context.state["kept"] = text
    tool_context.state["nested"] = {"of": [text]}
    tool_context.actions.transfer_reason = text
    await tool_context.save_artifact("note", types.Part(text=text))
    return city


class TestGoogleADK(RuntimeContract, AsideContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        runner, session = await running(creds, function, city=city, user=user)
        asked = types.Content(role="user", parts=[types.Part(text="How is it?")])
        found: list[Any] = []
        async for event in runner.run_async(
            user_id=user, session_id=session.id, new_message=asked
        ):
            found += [response.response for response in event.get_function_responses()]
        return Seen(str(found), "error" in found[0])

    async def schema(self, function: Tool) -> str:
        return str(FunctionTool(function)._get_declaration())

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        runner, session = await running(creds, leaks)
        asked = types.Content(role="user", parts=[types.Part(text="How is it?")])
        events = [
            event
            async for event in runner.run_async(
                user_id=NOBODY, session_id=session.id, new_message=asked
            )
        ]
        whose = {"app_name": "t", "user_id": NOBODY, "session_id": session.id}
        kept = await runner.session_service.get_session(**whose)
        saved = await runner.artifact_service.load_artifact(filename="note", **whose)
        told = [event.actions.transfer_reason for event in events]
        state, nested = kept.state["kept"], kept.state["nested"]
        return {"events": events, "actions": told, "state": state, "in it": nested, "a": saved}
