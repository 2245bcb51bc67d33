"""A plugin that its manager removes loses its leases and its grants."""

from __future__ import annotations

import asyncio

import pytest

from apex_creds import AccessDeniedError, current_credentials
from apex_creds.errors import InvalidInputError, LeaseEndedError
from apex_creds.integrations.apexagent import install
from apex_creds.policy.grants import GrantDecision
from tests.integrations.conftest import World
from tests.support import apexagent_builds as builds
from tests.support import apexagent_real as real

pytestmark = pytest.mark.anyio


class Plugin(builds.EnhancedPlugin):
    """Holds a secret open until it is told to go on."""

    started: asyncio.Event
    may_go_on: asyncio.Event

    async def run(self) -> str:
        async with current_credentials()["openai"].reveal():
            return "done"

    async def hold(self) -> bool:
        handle = current_credentials()["openai"]
        async with handle.reveal() as secret:
            self.started.set()
            await self.may_go_on.wait()
            wiped = secret.closed
        with pytest.raises(LeaseEndedError):
            async with handle.reveal():
                pass
        return wiped


class Removing(builds.AsyncManager):
    async def uninstall_plugin(self, plugin_id: str) -> bool:
        self.loaded_plugins.pop(plugin_id, None)
        return plugin_id in self._records

    async def unload_plugin(self, plugin_id: str) -> None:
        self.loaded_plugins.pop(plugin_id, None)


class RemovingNow(builds.SyncManager):
    def remove_plugin(self, plugin_id: str) -> str:
        self.plugins.pop(plugin_id, None)
        return "gone"


METADATA = builds.metadata("demo", "openai")


async def start(world: World, manager: Removing) -> asyncio.Task[object]:
    Plugin.started, Plugin.may_go_on = asyncio.Event(), asyncio.Event()
    task = asyncio.ensure_future(manager.invoke_plugin_action("demo", "hold"))
    await Plugin.started.wait()
    return task


async def test_a_removal_ends_what_is_open_and_takes_the_grants(world: World) -> None:
    manager = Removing()
    manager.register(METADATA, Plugin)
    await world.vault.grant("demo", "github", decision=GrantDecision.DENY)
    with install(manager, world.middleware):
        task = await start(world, manager)
        assert await manager.uninstall_plugin("demo")
        Plugin.may_go_on.set()
        assert await task is True
        left = [g for g in await world.vault.grants() if g.plugin == "demo"]
        assert [(g.credential, g.decision) for g in left] == [("github", GrantDecision.DENY)]
        with pytest.raises(AccessDeniedError):
            await manager.invoke_plugin_action("demo", "run")
    assert "uninstall_plugin" not in vars(manager)


async def test_one_that_is_unloaded_keeps_its_grants(world: World) -> None:
    manager = Removing()
    manager.register(METADATA, Plugin)
    with install(manager, world.middleware):
        task = await start(world, manager)
        await manager.unload_plugin(plugin_id="demo")
        Plugin.may_go_on.set()
        assert await task is True
        assert await manager.invoke_plugin_action("demo", "run") == "done"


async def test_a_synchronous_removal_is_in_force_before_it_is_stored(world: World) -> None:
    manager = RemovingNow()
    manager.register(METADATA, Plugin)
    with install(manager, world.middleware):
        assert await manager.execute_action("demo", "run") == "done"
        assert manager.remove_plugin("demo") == "gone"
        with pytest.raises(AccessDeniedError):
            manager.execute_action("demo", "run")
        while (await world.vault.grants()).find("demo", "openai") is not None:
            await asyncio.sleep(0)
        with pytest.raises(AccessDeniedError):
            manager.execute_action("demo", "run")


async def test_a_removal_that_can_not_be_stored_is_in_force_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Removing()
    manager.register(METADATA, Plugin)
    await manager.load_plugin("demo")

    async def fails(plugin: str) -> None:
        raise AccessDeniedError("no")

    with install(manager, world.middleware):
        with monkeypatch.context() as patched:
            patched.setattr(world.middleware, "remove_plugin", fails)
            with pytest.raises(AccessDeniedError, match="no"):
                await manager.uninstall_plugin("demo")
            assert manager.loaded_plugins
            assert "still there" in caplog.text
            with pytest.raises(AccessDeniedError):
                await manager.invoke_plugin_action("demo", "run")
        with pytest.raises(AccessDeniedError):
            await manager.invoke_plugin_action("demo", "run")
        assert (await world.vault.grants()).find("demo", "openai") is None


class Meant:
    def __init__(self, **fields: object) -> None:
        self.__dict__.update(fields)


class Odd(builds.AsyncManager):
    """Says which plugin is removed in the ways that managers have."""

    async def remove_plugin(self, user=None, plugin_id=None, *, force=False) -> str:
        return "removed"

    async def uninstall_plugin(self, plugin: object) -> str:
        return "removed"

    async def delete_plugin(self, *args: object, **kwargs: object) -> str:
        return "removed"

    async def unregister_plugin(self, first: str, second: str) -> str:
        return "removed"

    async def deregister_plugin(self, plugin_id: str, by: str) -> str:
        return "removed"

    async def unload_plugin(self) -> str:
        return "unloaded"


REMOVALS = {
    "the id is the second argument": ("remove_plugin", ("admin", "demo"), {}),
    "another keyword is first": ("remove_plugin", (), {"force": True, "plugin_id": "demo"}),
    "two keywords": ("remove_plugin", (), {"user": "admin", "plugin_id": "demo"}),
    "an object with an id": ("uninstall_plugin", (Meant(id="demo"),), {}),
    "by name, with an id of its own": (
        "uninstall_plugin",
        (Meant(id="7c1d", name="demo"),),
        {},
    ),
    "an object with metadata": ("uninstall_plugin", (Meant(metadata={"id": "demo"}),), {}),
    "a manifest": ("uninstall_plugin", ({"manifest": Meant(plugin="demo")},), {}),
    "no names": ("delete_plugin", ("admin", "demo"), {}),
    "only keywords": ("delete_plugin", (), {"reason": "unused", "name": "demo"}),
    "unusual names": ("unregister_plugin", ("unused", "demo"), {}),
}


@pytest.mark.parametrize("how", REMOVALS)
async def test_however_a_manager_is_told_what_to_remove(world: World, how: str) -> None:
    manager = Odd()
    manager.register(METADATA, Plugin)
    method, args, kwargs = REMOVALS[how]
    with install(manager, world.middleware):
        assert await manager.invoke_plugin_action("demo", "run") == "done"
        assert await getattr(manager, method)(*args, **kwargs) == "removed"
        assert (await world.vault.grants()).find("demo", "openai") is None


async def test_a_removal_of_nobody_knows_what_is_refused(world: World, caplog) -> None:
    manager = Odd()
    manager.register(METADATA, Plugin)
    with install(manager, world.middleware):
        for call in (
            lambda: manager.remove_plugin(force=True),
            lambda: manager.uninstall_plugin(object()),
            lambda: manager.unregister_plugin("one", "another"),
        ):
            with pytest.raises(InvalidInputError, match="which plugin"):
                await call()
        assert "which plugin" in caplog.text
        assert [event.reason for event in world.events("denial")] == ["plugin_not_told"] * 3
        with pytest.raises(TypeError):  # the manager's own
            await manager.uninstall_plugin()
        assert await manager.unload_plugin() == "unloaded"
        assert await manager.invoke_plugin_action("demo", "run") == "done"


async def test_one_that_the_manager_forgot_is_not_taken_for_another(world: World) -> None:
    manager = Odd()
    manager.register(METADATA, Plugin)
    with install(manager, world.middleware):
        assert await manager.invoke_plugin_action("demo", "run") == "done"
        assert await manager.deregister_plugin("inner", by="demo") == "removed"
    left = {grant.plugin for grant in await world.vault.grants()}
    assert left == {"demo", "outer"}


@pytest.mark.parametrize("build", [Removing, RemovingNow])
async def test_a_removal_in_a_lockdown_is_not_forgotten(world: World, build: type) -> None:
    manager = build()
    manager.register(METADATA, Plugin)
    with install(manager, world.middleware):
        await world.vault.lockdown(keep_grants=True)
        if build is Removing:
            assert await manager.uninstall_plugin("demo")
        else:
            assert manager.remove_plugin("demo") == "gone"
        while (await world.vault.grants()).find("demo", "openai") is not None:
            await asyncio.sleep(0)
        while not world.vault.store.sealed:  # in the task of a synchronous one
            await asyncio.sleep(0)
        await world.vault.unlock()
    assert {grant.plugin for grant in await world.vault.grants()} == {"outer", "inner"}


async def test_a_marketplace_that_only_removes_is_hooked_for_that(
    world: World, tmp_path
) -> None:
    market = real.PluginMarketplaceSystem(str(tmp_path))
    market.manager.installed_plugins["demo"] = object()
    (tmp_path / "demo").mkdir()
    with install(market, world.middleware):
        market.disable_plugin("demo")
        assert (await world.vault.grants()).find("demo", "openai") is not None
        assert market.uninstall_plugin("demo")
        while (await world.vault.grants()).find("demo", "openai") is not None:
            await asyncio.sleep(0)
    assert not (tmp_path / "demo").exists()
