"""LlamaIndex: function tools in guarded copies, as an agent calls them."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

import pytest
from llama_index.core.tools import FunctionTool
from llama_index.core.tools.calling import acall_tool, call_tool
from llama_index.core.workflow import Context, Event, StartEvent, StopEvent, Workflow, step

from apex_creds.integrations.llamaindex import guarded
from apex_creds.integrations.tools import needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import (
    AsideContract,
    RuntimeContract,
    Seen,
    SyncContract,
    Tool,
    said,
)

pytestmark = pytest.mark.anyio
USER = ContextVar("user", default="")  # as an application has it


class Told(Event):
    """What a tool writes to the stream."""

    text: str


@needs("weather", access="reveal")
async def leaks(ctx: Context, city: str) -> str:
    """Says it in every way."""
    text = await said()
    ctx.write_event_to_stream(Told(text=text))
    await ctx.store.set("kept", {"of": [text]})
    return text


class Calls(Workflow):
    """Calls a tool in its step, as an agent does."""

    def __init__(self, tool: FunctionTool) -> None:
        super().__init__()
        self._tool = tool

    @step
    async def once(self, ctx: Context, ev: StartEvent) -> StopEvent:
        """Calls it."""
        output = await self._tool.acall(ctx=ctx, city="Oslo")
        return StopEvent(result=(output.content, await ctx.store.get("kept")))


class TestLlamaIndex(RuntimeContract, SyncContract, AsideContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        USER.set(user)
        (tool,) = guarded([function], creds, principal=USER.get)
        output = await acall_tool(tool, {"city": city})
        return Seen(f"{output.content} {output.raw_output}", output.is_error)

    def call_sync(self, creds: CredentialMiddleware, function: Tool) -> Seen:
        (tool,) = guarded([function], creds, principal=USER.get)
        output = call_tool(tool, {"city": "Oslo"})
        return Seen(f"{output.content} {output.raw_output}", output.is_error)

    async def schema(self, function: Tool) -> str:
        return str(FunctionTool.from_defaults(function).metadata.get_parameters_dict())

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        called: list[object] = []

        async def callback(output: object) -> None:
            called.append(output)

        tool = FunctionTool.from_defaults(leaks, async_callback=callback)
        (tool,) = guarded([tool], creds)
        run = Calls(tool).run()
        told = [event async for event in run.stream_events() if isinstance(event, Told)]
        content, kept = await run
        return {"stream": told, "store": kept, "callback": called, "result": content}
