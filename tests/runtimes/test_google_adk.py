"""Google ADK: the plugin of a runner."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from google.adk.agents import LlmAgent
from google.adk.apps import App
from google.adk.models import BaseLlm, LlmRequest, LlmResponse
from google.adk.runners import InMemoryRunner
from google.adk.tools import FunctionTool
from google.genai import types

from apex_creds.integrations.google_adk import CredentialsPlugin
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import RuntimeContract, Seen, Tool

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


class TestGoogleADK(RuntimeContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        model = OneCall(model="fake", name=function.__name__, city=city)
        agent = LlmAgent(name="a", model=model, tools=[FunctionTool(function)])
        app = App(
            name="t", root_agent=agent, plugins=[CredentialsPlugin(creds, principal=user_of)]
        )
        runner = InMemoryRunner(app=app)
        session = await runner.session_service.create_session(app_name="t", user_id=user)
        asked = types.Content(role="user", parts=[types.Part(text="How is it?")])
        found: list[Any] = []
        async for event in runner.run_async(
            user_id=user, session_id=session.id, new_message=asked
        ):
            found += [response.response for response in event.get_function_responses()]
        return Seen(str(found), "error" in found[0])

    async def schema(self, function: Tool) -> str:
        return str(FunctionTool(function)._get_declaration())
