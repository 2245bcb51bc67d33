"""AutoGen: function tools in guarded copies, in a workbench as an agent has it."""

from __future__ import annotations

from contextvars import ContextVar

import pytest
from autogen_core.tools import FunctionTool, StaticWorkbench

from apex_creds.integrations.autogen import guarded
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import RuntimeContract, Seen, Tool

pytestmark = pytest.mark.anyio
USER = ContextVar("user", default="")  # as an application has it


class TestAutoGen(RuntimeContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        USER.set(user)
        workbench = StaticWorkbench(guarded([function], creds, principal=USER.get))
        result = await workbench.call_tool(function.__name__, {"city": city})
        return Seen(f"{result.result} {result.to_text()}", result.is_error)

    async def schema(self, function: Tool) -> str:
        return str(FunctionTool(function, description="x").schema)
