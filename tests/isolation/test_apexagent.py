"""ApexAgent's plugins run behind the wall as they are, by each of its managers."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from pathlib import Path

import pytest

from apex_creds import CredentialMiddleware
from apex_creds.errors import IsolationError, IsolationUnavailableError
from apex_creds.integrations.apexagent import install
from apex_creds.isolation.runner import IsolatedRunner, Isolation
from tests.support import apexagent_real as real
from tests.support.worlds import KEY, World

pytestmark = pytest.mark.anyio

PLUGIN = """
from apexagent_real import BaseEnhancedPlugin

class Actions:
    def plain(self, q, credentials):
        with credentials["key"].reveal() as secret:
            return {"q": q, "length": len(secret)}

    async def coroutine(self, q, *, credentials):
        async with credentials["key"].reveal() as secret:
            return {"q": q, "length": len(secret)}

    async def stream(self, q, credentials):
        async with credentials["key"].reveal() as secret:
            yield q
            yield len(secret)

    def steps(self, q, credentials):
        yield from (q, len(credentials))

    async def progress(self, q, report):
        for step in range(3):
            report(step)
        return q

    async def leak(self, q, credentials):
        async with credentials["key"].reveal() as secret:
            return [q, secret.expose_str()]

class Enhanced(Actions, BaseEnhancedPlugin):
    pass

class Plain(Actions):
    began = False

    def __init__(self, plugin_id, plugin_name, version, description, config):
        self.plugin_id = plugin_id

    def initialize(self):
        self.began = True

    shutdown = get_metadata = get_actions = initialize

    async def execute_action(self, action_name, params=None, progress_callback=None):
        result = getattr(self, action_name)(**(params or {}))
        return await result if hasattr(result, "__await__") else result
"""


def metadata(kind: str, **extra: object) -> dict[str, object]:
    return {
        "id": "demo",
        "name": "Demo",
        "version": "1.0.0",
        "description": "A plugin",
        "author": "tests",
        "main_file": "demo_plugin.py",
        "main_class": kind,
        "main_module": "demo_plugin.py",
        "class_name": kind,
        "entry_point": f"plugins.demo.demo_plugin.{kind}",
        "actions": [] if kind == "Enhanced" else {},
        "credentials": [{"name": "key", "access": "reveal"}],
        **extra,
    }


def folders(where: Path, kind: str, **extra: object) -> tuple[Path, Path]:
    """That of the plugins, and that of the runtime."""
    plugins, runtime = where / "plugins", where / "runtime"
    (plugins / "demo").mkdir(parents=True)
    runtime.mkdir()
    (plugins / "demo" / "demo_plugin.py").write_text(PLUGIN)
    (plugins / "demo" / "plugin.json").write_text(json.dumps(metadata(kind, **extra)))
    shutil.copy(real.__file__, runtime)
    return plugins, runtime


def made(kind: str, plugins: Path):
    if kind == "async":
        return real.AsyncPluginManager([plugins])
    manager = (
        real.SyncPluginManager(plugins) if kind == "sync" else real.PluginSystem([plugins])
    )
    manager.discover_plugins()
    return manager


async def call(manager, action, **kwargs):
    for name in ("invoke_plugin_action", "execute_action", "execute_plugin_action"):
        method = getattr(manager, name, None)
        if method is not None:
            found = method("demo", action, **kwargs)
            return await found if inspect.isawaitable(found) else found
    raise AssertionError


async def all_of(stream):
    return [each async for each in stream] if hasattr(stream, "__aiter__") else list(stream)


@pytest.mark.parametrize("build", ["async", "sync", "system"])
async def test_every_manager_s_plugins(world: World, tmp_path: Path, build: str) -> None:
    kind = "Enhanced" if build == "async" else "Plain"
    plugins, runtime = folders(tmp_path, kind)
    manager = made(build, plugins)
    runner = IsolatedRunner(folders=[runtime])
    async with CredentialMiddleware(world.vault, isolation=runner) as middleware:
        with install(manager, middleware):
            expected = {"q": "x", "length": len(KEY)}
            assert await call(manager, "plain", q="x") == expected
            assert await call(manager, "coroutine", q="x") == expected
            assert await all_of(await call(manager, "stream", q="x")) == ["x", len(KEY)]
            assert await all_of(await call(manager, "steps", q="x")) == ["x", 1]
            assert await call(manager, "leak", q="x") == ["x", "[redacted:key]"]
            said: list[int] = []
            assert await call(manager, "progress", q="x", report=said.append) == "x"
            assert said == [0, 1, 2]
        assert middleware.broker.open_leases == 0
    assert "demo_plugin" not in sys.modules, "it was never imported here"


async def test_one_that_requires_it_without_credentials(world: World, tmp_path: Path) -> None:
    plugins, _ = folders(tmp_path, "Enhanced", credentials=[], isolation="required")
    manager = made("async", plugins)
    with install(manager, world.middleware), pytest.raises(IsolationUnavailableError):
        await call(manager, "progress", q="x", report=print)
    assert "demo_plugin" not in sys.modules


async def test_one_whose_code_is_not_to_be_found(world: World, tmp_path: Path) -> None:
    plugins, _ = folders(tmp_path, "Enhanced", main_file="../../etc/passwd", main_class="../x")
    manager = made("async", plugins)
    isolated = CredentialMiddleware(world.vault, isolation=Isolation.BUBBLEWRAP)
    async with isolated as middleware:
        with install(manager, middleware), pytest.raises(IsolationError, match="where"):
            await call(manager, "progress", q="x", report=print)
