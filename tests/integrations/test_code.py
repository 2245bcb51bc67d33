"""The code that a manager is about to load is compared with what its metadata states."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from apex_creds import AccessDeniedError
from apex_creds.integrations import apexagent_plugins
from apex_creds.integrations.apexagent import install
from apex_creds.integrations.plugin_metadata import tree_digest
from tests.integrations.conftest import World
from tests.support import apexagent_builds as builds
from tests.support import apexagent_real as real

pytestmark = pytest.mark.anyio

CODE = """
from tests.support import apexagent_real as real

class Plugin(real.BaseEnhancedPlugin):
    def __init__(self, plugin_id, plugin_version="1.0.0", **_):
        super().__init__(plugin_id, plugin_version)

    async def run(self, credentials):
        return sorted(credentials)

    def initialize(self):
        pass

    shutdown = get_metadata = get_actions = initialize
"""


def make_async(root: Path):
    return real.AsyncPluginManager([str(root)])


def make_sync(root: Path):
    manager = real.SyncPluginManager(str(root))
    manager.discover_plugins()
    return manager


def make_system(root: Path):
    manager = real.PluginSystem([str(root)])
    manager.discover_plugins()
    return manager


METHODS = {
    make_async: "invoke_plugin_action",
    make_sync: "execute_action",
    make_system: "execute_plugin_action",
}


def put(root: Path, make, *, value: str | None = None) -> Path:
    """A plugin that the build finds; states its own checksum, or another one."""
    folder = root / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo_main.py").write_text(CODE)
    metadata = builds.metadata(
        "demo",
        "openai",
        keyed=make is make_sync,
        main_file="demo_main.py",
        main_module="demo_main",
        class_name="Plugin",
        entry_point="plugins.demo.demo_main.Plugin",
    )
    value = tree_digest(folder) if value is None else value
    metadata["checksum"] = {"algorithm": "sha256", "value": value}
    (folder / "plugin.json").write_text(json.dumps(metadata))
    return folder


async def run(manager, make) -> object:
    result = getattr(manager, METHODS[make])("demo", "run")
    return await result if inspect.isawaitable(result) else result


@pytest.mark.parametrize("make", METHODS)
class TestEveryRealBuild:
    async def test_code_that_is_as_stated_runs(self, world: World, tmp_path, make) -> None:
        put(tmp_path, make)
        manager = make(tmp_path)
        with install(manager, world.middleware):
            assert await run(manager, make) == ["openai"]
            assert await run(manager, make) == ["openai"]

    async def test_code_that_is_not_is_refused_before_it_is_loaded(
        self, world: World, tmp_path, make
    ) -> None:
        put(tmp_path, make, value="00" * 32)
        manager = make(tmp_path)
        with install(manager, world.middleware):
            for _ in range(2):
                with pytest.raises(AccessDeniedError):
                    await run(manager, make)
        assert world.events("denial")[-1].reason == "checksum_mismatch"

    async def test_one_whose_value_was_left_empty_states_nothing(
        self, world: World, tmp_path, make
    ) -> None:
        put(tmp_path, make, value="")
        manager = make(tmp_path)
        with install(manager, world.middleware):
            assert await run(manager, make) == ["openai"]

    async def test_a_checksum_that_nothing_can_be_compared_with_does_not_pass(
        self, world: World, tmp_path, make
    ) -> None:
        folder = put(tmp_path, make)
        manager = make(tmp_path)
        for name in apexagent_plugins._PARTS:
            place = getattr(manager, name, manager)
            getattr(place, "plugin_paths", {}).pop("demo", None)
        record = getattr(manager, "plugin_metadata_registry", {"demo": {}})["demo"]
        record.pop("path", None)
        namespace: dict[str, object] = {"__name__": "nowhere"}
        exec(compile(CODE, str(folder / "demo_main.py"), "exec"), namespace)
        manager.classes["demo"] = namespace["Plugin"]
        with install(manager, world.middleware), pytest.raises(AccessDeniedError):
            await run(manager, make)


@pytest.mark.parametrize("make", [make_sync, make_system])
async def test_what_comes_back_after_it_was_unloaded_is_compared_again(
    world: World, tmp_path, make
) -> None:
    folder = put(tmp_path, make)
    manager = make(tmp_path)
    with install(manager, world.middleware):
        assert await run(manager, make) == ["openai"]
        (folder / "demo_main.py").write_text(CODE + "\n# another\n")
        manager.unload_plugin("demo")
        with pytest.raises(AccessDeniedError):
            await run(manager, make)
