"""Claude Agent SDK: handlers of in-process tools, guarded."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest
from claude_agent_sdk import tool

from apex_creds.integrations.claude_agent import guarded
from apex_creds.integrations.tools import _MARK
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import RuntimeContract, Seen, Tool

pytestmark = pytest.mark.anyio
USER = ContextVar("user", default="")  # as an application has it


def handler_of(function: Tool) -> Callable[[dict[str, Any]], Any]:
    """What the SDK calls with all arguments in one: a handler around a tool of the contract."""

    async def handler(args: dict[str, Any]) -> dict[str, Any]:
        if inspect.iscoroutinefunction(function):
            text = await function(args["city"])
        else:
            text = await asyncio.to_thread(function, args["city"])
        return {"content": [{"type": "text", "text": str(text)}]}

    if hasattr(function, _MARK):
        setattr(handler, _MARK, getattr(function, _MARK))
    return handler


class TestClaudeAgent(RuntimeContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        USER.set(user)
        made = tool(function.__name__, function.__doc__ or "", {"city": str})(
            handler_of(function)
        )
        (safe,) = guarded([made], creds, principal=USER.get)
        result = await safe.handler({"city": city})
        return Seen(str(result["content"]), bool(result.get("is_error")))

    async def schema(self, function: Tool) -> str:
        return str(
            tool(function.__name__, "", {"city": str})(handler_of(function)).input_schema
        )
