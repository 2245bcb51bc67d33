"""The example of docs/PLUGINS.md is found, and runs, in every build of ApexAgent."""

from __future__ import annotations

import inspect
import os
import runpy
import sys
import types
from pathlib import Path

import pytest

from apex_creds import ApiKey, CredentialMiddleware, Vault
from apex_creds.integrations.apexagent import install
from tests.support import apexagent_real as real
from tests.support.snippets import blocks

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "PLUGINS.md"
ORIGIN = "https://api.weather.example"
BASE = "agent_project.src.core.base_enhanced_plugin"


def synchronous(root: Path):
    manager = real.SyncPluginManager(str(root / "synchronous"))
    assert manager.discover_plugins() == 1
    return manager, "execute_action"


def system(root: Path):
    manager = real.PluginSystem([str(root)])
    assert set(manager.discover_plugins()) == {"weather"}
    return manager, "execute_plugin_action"


def asynchronous(root: Path):
    manager = real.AsyncPluginManager([str(root)])
    assert set(manager.plugin_metadata_registry) == {"weather"}
    return manager, "invoke_plugin_action"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the page's files."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(PAGE.read_text()):
        if block.mark == "file":
            file = tmp_path / block.argument
            file.parent.mkdir(exist_ok=True)
            file.write_text(block.text)
    runpy.run_path("for_the_synchronous_build.py")
    monkeypatch.delitem(sys.modules, "plugin", raising=False)
    return tmp_path


@pytest.mark.parametrize("build", [asynchronous, synchronous, system])
async def test_the_example_runs_in_every_build(
    page: Path, fresh_home: Path, build, monkeypatch: pytest.MonkeyPatch
) -> None:
    if build is asynchronous:
        base = types.SimpleNamespace(BaseEnhancedPlugin=real.BaseEnhancedPlugin)
        for name in ("agent_project", "agent_project.src", "agent_project.src.core"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        monkeypatch.setitem(sys.modules, BASE, base)
    manager, method = build(page)
    async with await Vault.create(
        os.fspath(fresh_home / "apex"), master=f"file:{fresh_home}/master"
    ) as vault:
        await vault.put("weather-api", ApiKey("wk-12345678"), origins=[ORIGIN])
        await vault.put("weather-signing-key", ApiKey("sign-me-87654321"))
        await vault.grant("weather", "weather-api")
        await vault.grant("weather", "weather-signing-key", reveal=True)
        async with CredentialMiddleware(vault) as middleware:
            with install(manager, middleware):
                for action, arguments in (("finer", {}), ("sign", {"tile": b"tile"})):
                    result = getattr(manager, method)("weather", action, **arguments)
                    found = await result if inspect.isawaitable(result) else result
                    assert found == "basic" or len(found) == 64
            assert middleware.broker.open_leases == 0
