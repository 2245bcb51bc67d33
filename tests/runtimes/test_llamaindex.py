"""LlamaIndex: function tools in guarded copies, as an agent calls them."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
from llama_index.core.tools import FunctionTool
from llama_index.core.tools.calling import acall_tool, call_tool

from apex_creds.integrations.llamaindex import guarded
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import RuntimeContract, Seen, SyncContract, Tool

pytestmark = pytest.mark.anyio
USER = ContextVar("user", default="")  # as an application has it


class TestLlamaIndex(RuntimeContract, SyncContract):
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
