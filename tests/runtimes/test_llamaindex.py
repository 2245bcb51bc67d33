"""LlamaIndex: function tools in guarded copies, as an agent calls them."""

from __future__ import annotations

import pytest
from llama_index.core.tools import FunctionTool
from llama_index.core.tools.calling import acall_tool, call_tool

from apex_creds.integrations.llamaindex import guarded
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import RuntimeContract, Seen, SyncContract, Tool

pytestmark = pytest.mark.anyio


class TestLlamaIndex(RuntimeContract, SyncContract):
    async def call(
        self, creds: CredentialMiddleware, function: Tool, *others: Tool, city: str = "Oslo"
    ) -> Seen:
        (tool,) = guarded([function], creds)
        output = await acall_tool(tool, {"city": city})
        return Seen(f"{output.content} {output.raw_output}", output.is_error)

    def call_sync(self, creds: CredentialMiddleware, function: Tool) -> Seen:
        (tool,) = guarded([function], creds)
        output = call_tool(tool, {"city": "Oslo"})
        return Seen(f"{output.content} {output.raw_output}", output.is_error)

    async def schema(self, function: Tool) -> str:
        return str(FunctionTool.from_defaults(function).metadata.get_parameters_dict())
