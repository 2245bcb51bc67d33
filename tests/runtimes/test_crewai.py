"""CrewAI: tools in guarded copies."""

from __future__ import annotations

import inspect
import tempfile
import warnings
from contextvars import ContextVar

import pytest

with (  # when it is imported, it makes a key for logins in the home
    tempfile.TemporaryDirectory() as home,
    pytest.MonkeyPatch.context() as patch,
    warnings.catch_warnings(),
):
    patch.setenv("HOME", home)
    warnings.simplefilter("ignore")
    from crewai.tools import tool

from apex_creds.integrations.crewai import guarded
from apex_creds.middleware import CredentialMiddleware
from tests.runtimes.contract import RuntimeContract, Seen, SyncContract, Tool

pytestmark = pytest.mark.anyio
USER = ContextVar("user", default="")  # as an application has it


def seen(output: object) -> Seen:
    return Seen(str(output), "The tool did not run" in str(output))


class TestCrewAI(RuntimeContract, SyncContract):
    async def call(
        self,
        creds: CredentialMiddleware,
        function: Tool,
        *others: Tool,
        city: str = "Oslo",
        user: str = "",
    ) -> Seen:
        USER.set(user)
        (made,) = guarded([tool(function)], creds, principal=USER.get)
        if inspect.iscoroutinefunction(function):
            return seen(await made.arun(city=city))
        return seen(made.run(city=city))

    def call_sync(self, creds: CredentialMiddleware, function: Tool) -> Seen:
        (made,) = guarded([tool(function)], creds, principal=USER.get)
        return seen(made.run(city="Oslo"))

    async def schema(self, function: Tool) -> str:
        return str(tool(function).args_schema.model_json_schema())
