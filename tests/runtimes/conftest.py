"""A vault with what the tools of the tests use, and the service that they send to.

Only the tests of the runtime that is installed here are collected: each has an environment of
its own, see ``scripts/runtime_tests.sh``, which fails where there are none.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from apex_creds.middleware import CredentialMiddleware, OnOpaque
from apex_creds.model import ApiKey
from tests.runtimes.contract import OTHER, SECRET
from tests.support.loopback import Server, ok
from tests.support.loopback import server as listening
from tests.support.vaults import create
from tests.support.worlds import World

MODULES = {
    "autogen": "autogen_core",
    "claude_agent": "claude_agent_sdk",
    "crewai": "crewai",
    "google_adk": "google.adk",
    "llamaindex": "llama_index",
    "agent_framework": "agent_framework",
    "fastmcp": "fastmcp",
    "langchain": "langchain",
    "mcp": "mcp",
    "openai_agents": "agents",
    "pydantic_ai": "pydantic_ai",
}
"""Of the runtimes, by the names of their tests."""


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a parent
        return False


collect_ignore = [f"test_{name}.py" for name, module in MODULES.items() if not _is_here(module)]
if "TESTED_RUNTIME" not in os.environ:
    collect_ignore.append("test_page.py")


@pytest.fixture
def server() -> Iterator[Server]:
    """In a thread: some runtimes call a synchronous tool in the event loop's own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listening()) as made,
    ):
        made.answer = lambda head: ok(head.encode("latin-1"))  # it sends back what it got
        yield made


@pytest.fixture
async def world(tmp_path: Path, server: Server) -> AsyncIterator[World]:
    async with await create(tmp_path) as vault:
        await vault.put("weather", ApiKey(SECRET), origins=[server.origin])
        await vault.put("other", ApiKey(OTHER), origins=[server.origin])
        for plugin in ("fetch", "fetch_sync", "ambient", "late_bound", "waits", "outer"):
            await vault.grant(plugin, "weather")
        for plugin in ("leaks", "leaks_model", "raises", "leaks_parts"):
            await vault.grant(plugin, "weather", reveal=True)
        made = World(tmp_path, vault, None)  # type: ignore[arg-type]
        await made.middleware.close()
        made.middleware = CredentialMiddleware(vault, on_opaque=OnOpaque.WITHHOLD, harden=False)
        yield made
        await made.middleware.close()
