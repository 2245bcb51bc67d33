"""AutoGen: function tools in guarded copies, in a workbench as an agent has it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar

import pytest
from autogen_core import EVENT_LOGGER_NAME
from autogen_core.tools import FunctionTool, StaticWorkbench

from apex_creds.integrations.autogen import guarded
from apex_creds.integrations.tools import needs
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import AsideContract, RuntimeContract, Seen, Tool, said

pytestmark = pytest.mark.anyio
USER = ContextVar("user", default="")  # as an application has it


class Events(logging.Handler):
    """What is told of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())


@needs("weather", access="reveal")
async def leaks(city: str) -> str:
    """Says it."""
    return await said()


class TestAutoGen(RuntimeContract, AsideContract):
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

    async def sent_aside(self, creds: CredentialMiddleware) -> Mapping[str, object]:
        events, logger = Events(), logging.getLogger(EVENT_LOGGER_NAME)
        logger.addHandler(events)
        logger.setLevel(logging.INFO)
        try:
            await self.call(creds, leaks)
        finally:
            logger.removeHandler(events)
        return {"event": events.told}
