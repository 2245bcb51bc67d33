"""The ApexAgent hook keeps its promises on every build."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging

import pytest

from apex_creds import AccessDeniedError, current_credentials
from apex_creds.errors import HandleForeignError, InvalidInputError, InvalidManifestError
from apex_creds.integrations import apexagent_plugins
from apex_creds.integrations.apexagent import Installation, install, uninstall
from tests.integrations.conftest import OTHER, SECRET, World
from tests.support import apexagent_builds as builds
from tests.support import apexagent_real as real

pytestmark = pytest.mark.anyio

MASKED = "[redacted:openai]"


async def text(handle) -> str:
    async with handle.reveal() as secret:
        return secret.expose_str()


def text_now(handle) -> str:
    with handle.reveal() as secret:
        return secret.expose_str()


class Actions:
    """The same actions in every build."""

    def plain(self, q, credentials):
        return {"q": q, "ok": text_now(credentials["openai"]) == SECRET}

    async def coroutine(self, q, *, credentials):
        return {"q": q, "ok": await text(credentials["openai"]) == SECRET}

    async def ambient(self, q):
        return {"q": q, "ok": await text(current_credentials()["openai"]) == SECRET}

    async def stream(self, q, credentials):
        found = await text(credentials["openai"])
        yield f"{q} {found[:7]}"
        yield f"{found[7:]} end"

    def steps(self, q, credentials):
        found = text_now(credentials["openai"])
        yield f"{q} {found[:7]}"
        yield f"{found[7:]} end"

    async def leak(self, q, credentials):
        return [q, await text(credentials["openai"])]

    async def fail(self, q, credentials):
        raise ValueError(f"{q} {await text(credentials['openai'])}")


class Enhanced(Actions, builds.EnhancedPlugin):
    pass


class Dispatching(Actions, builds.DispatchingPlugin):
    pass


class Plain(Actions):
    def __init__(self, plugin_id):
        self.plugin_id = plugin_id


class RealEnhanced(Actions, real.BaseEnhancedPlugin):
    pass


class RealPlain(Actions):
    """What the synchronous builds make, and all that ``PluginSystem`` asks for."""

    def __init__(self, plugin_id, plugin_name, version, description, config):
        self.plugin_id = plugin_id

    def initialize(self):
        pass

    shutdown = get_metadata = get_actions = initialize

    async def execute_action(self, action_name, params=None, progress_callback=None):
        result = getattr(self, action_name)(**(params or {}))
        return await result if inspect.isawaitable(result) else result


async def call_async(manager, action, **kwargs):
    return await manager.invoke_plugin_action("demo", action, **kwargs)


async def call_sync(manager, action, **kwargs):
    result = manager.execute_action("demo", action, **kwargs)
    return await result if inspect.isawaitable(result) else result


async def call_system(manager, action, **kwargs):
    result = manager.execute_plugin_action("demo", action, **kwargs)
    return await result if inspect.isawaitable(result) else result


async def call_dispatcher(manager, action, **kwargs):
    return await manager.execute_action("demo", "execute_action", action, params=kwargs)


BUILDS = {
    "async": (builds.AsyncManager, Enhanced, call_async),
    "async-older": (lambda: builds.AsyncManager(wrap=False), Enhanced, call_async),
    "async-params": (builds.ParamsManager, Dispatching, call_async),
    "sync": (builds.SyncManager, Plain, call_sync),
    "sync-dispatcher": (builds.SyncManager, Dispatching, call_dispatcher),
    "real-async": (real.AsyncPluginManager, RealEnhanced, call_async),
    "real-sync": (real.SyncPluginManager, RealPlain, call_sync),
    "real-sync-dispatcher": (real.SyncPluginManager, RealPlain, call_dispatcher),
    "real-system": (real.PluginSystem, RealPlain, call_system),
}


@pytest.fixture(params=BUILDS)
def build(request, world: World):
    make, plugin_class, call = BUILDS[request.param]
    manager = make()
    keyed = "sync" in request.param.split("-")
    manager.register(builds.metadata("demo", "openai", keyed=keyed), plugin_class)
    return manager, call


async def collect(stream) -> list:
    if hasattr(stream, "__aiter__"):
        return [chunk async for chunk in stream]
    return list(stream)


class TestEveryBuild:
    @pytest.mark.parametrize("action", ["plain", "coroutine", "ambient"])
    async def test_a_method_gets_its_handles(self, world: World, build, action) -> None:
        manager, call = build
        before = world.left
        with install(manager, world.middleware):
            assert await call(manager, action, q="x") == {"q": "x", "ok": True}
        assert world.left == before
        assert {event.action for event in world.events("redeem")} == {action}

    @pytest.mark.parametrize("action", ["stream", "steps"])
    async def test_a_stream_holds_its_lease_and_is_redacted(
        self, world: World, build, action
    ) -> None:
        manager, call = build
        with install(manager, world.middleware):
            stream = await call(manager, action, q="x")
            assert world.middleware.broker.open_leases == 1
            chunks = await collect(stream)
        assert "".join(chunks) == f"x {MASKED} end"
        assert world.middleware.broker.open_leases == 0
        assert {event.credential for event in world.events("leak")} == {"openai"}

    @pytest.mark.parametrize("action", ["stream", "steps"])
    async def test_a_stream_that_is_dropped_or_closed_leaves_nothing(
        self, world: World, build, action
    ) -> None:
        manager, call = build
        before = world.left
        with install(manager, world.middleware):
            await call(manager, action, q="x")
            gc.collect()
            await asyncio.sleep(0)
            stream = await call(manager, action, q="x")
            if hasattr(stream, "__aiter__"):
                await anext(stream)
                await stream.aclose()
            else:
                next(stream)
                stream.close()
            del stream
        await asyncio.sleep(0)
        assert world.left == before

    async def test_results_errors_and_logs_are_redacted(
        self, world: World, build, caplog
    ) -> None:
        manager, call = build
        caplog.set_level(logging.DEBUG)
        with install(manager, world.middleware):
            assert await call(manager, "leak", q="x") == ["x", MASKED]
            with pytest.raises(Exception, match=r"redacted:openai") as caught:
                await call(manager, "fail", q="x")
        assert SECRET not in repr(caught.value) + str(caught.value) + caplog.text
        assert SECRET not in str(caught.value.__cause__)

    async def test_the_log_of_arguments_has_no_handle(
        self, world: World, build, caplog
    ) -> None:
        manager, call = build
        caplog.set_level(logging.INFO)
        with install(manager, world.middleware):
            await call(manager, "coroutine", q="question")
        assert "credentials" not in caplog.text
        assert "openai" not in caplog.text

    async def test_what_a_caller_passes_as_credentials_is_not_taken_for_handles(
        self, world: World, build
    ) -> None:
        manager, call = build
        with install(manager, world.middleware):
            result = await call(manager, "coroutine", q="x", credentials={"openai": "spoof"})
        assert result["ok"]

    async def test_uninstall_restores_manager_and_plugin(self, world: World, build) -> None:
        manager, call = build
        names = [
            name
            for name in ("invoke_plugin_action", "execute_action", "execute_plugin_action")
            if hasattr(manager, name)
        ]
        assert not set(names) & set(vars(manager))
        installation = install(manager, world.middleware)
        assert set(names) <= set(vars(manager))
        await call(manager, "coroutine", q="x")
        plugin = apexagent_plugins.loaded(manager, "demo")
        bound = set(vars(plugin))
        installation.uninstall()
        installation.uninstall()
        assert not set(names) & set(vars(manager))
        assert bound - set(vars(plugin)) == {"coroutine"}
        errors = (TypeError, builds.PluginExecutionError, real.PluginExecutionError)
        with pytest.raises(errors):
            await call(manager, "coroutine", q="x")

    @pytest.mark.slow
    async def test_thousands_at_once_leave_nothing(self, world: World, build) -> None:
        manager, call = build
        with install(manager, world.middleware):
            await call(manager, "coroutine", q=0)
            before = world.left
            results = await asyncio.gather(
                *(self.one(manager, call, number) for number in range(2_000))
            )
        assert all(results)
        assert world.left == before

    @staticmethod
    async def one(manager, call, number: int) -> bool:
        action = ("coroutine", "plain", "stream", "steps", "ambient")[number % 5]
        result = await call(manager, action, q=number)
        if isinstance(result, dict):
            return result == {"q": number, "ok": True}
        if number % 3 == 0:  # abandoned, or closed in the middle
            if hasattr(result, "__aiter__"):
                await result.aclose()
            return True
        return "".join(await collect(result)) == f"{number} {MASKED} end"


class Quiet(builds.EnhancedPlugin):
    async def same(self, value):
        return value

    async def numbers(self):
        yield 1

    async def seen(self):
        return dict(current_credentials())


class TestPluginsThatDeclareNothing:
    @pytest.mark.parametrize("extra", [{}, {"credentials": []}, {"version": "\n"}])
    async def test_they_run_untouched(self, world: World, extra) -> None:
        manager = builds.AsyncManager()
        manager.register(builds.metadata("quiet", **extra), Quiet)
        count = len(world.events())
        value = object()
        with install(manager, world.middleware):
            assert await manager.invoke_plugin_action("quiet", "same", value=value) is value
            stream = await manager.invoke_plugin_action("quiet", "numbers")
            assert stream.ag_code is Quiet.numbers.__code__
            assert await collect(stream) == [1]
            plugin = manager.loaded_plugins["quiet"]
            assert set(vars(plugin)) == {"plugin_id", "plugin_version", "logger", "agent"}
        assert len(world.events()) == count

    async def test_errors_are_the_managers_own(self, world: World) -> None:
        asynchronous, synchronous = builds.AsyncManager(), builds.SyncManager()
        synchronous.register(builds.metadata("demo", "openai"), Plain)
        install(asynchronous, world.middleware)
        install(synchronous, world.middleware)
        with pytest.raises(builds.PluginNotFoundError):
            await asynchronous.invoke_plugin_action("nobody", "run")
        with pytest.raises(builds.PluginNotFoundError):
            synchronous.execute_action("nobody", "run")
        with pytest.raises(AttributeError):
            synchronous.execute_action("demo", "no_such_action")
        with pytest.raises(TypeError):
            synchronous.execute_action("demo")
        with pytest.raises(TypeError):
            await asynchronous.invoke_plugin_action()

    async def test_ids_may_be_keywords(self, world: World) -> None:
        manager = builds.AsyncManager()
        manager.register(builds.metadata("demo", "openai"), Enhanced)
        with install(manager, world.middleware):
            result = await manager.invoke_plugin_action(
                action_name="coroutine", plugin_id="demo", q="x"
            )
        assert result["ok"]


class TestManifests:
    @pytest.mark.parametrize(
        "extra",
        [
            {"credentials": [{"name": "openai", "acess": "reveal"}]},
            {"credentials": None},
            {"credentials": [{"name": "openai"}, {"name": "openai"}]},
            {"credentials": [{"name": object()}]},
            {"credentials": [{"name": "openai"}], "version": "1\n2"},
        ],
    )
    async def test_a_malformed_one_is_refused_and_audited(self, world: World, extra) -> None:
        manager = builds.AsyncManager()
        manager.register(builds.metadata("demo", **extra), Enhanced)
        with install(manager, world.middleware), pytest.raises(InvalidManifestError):
            await manager.invoke_plugin_action("demo", "coroutine", q="x")
        assert manager.loaded_plugins == {}
        denial = world.events("denial")[-1]
        assert (denial.plugin, denial.action) == ("demo", "coroutine")
        assert denial.reason == "invalid_manifest"

    async def test_one_under_the_id_of_another_plugin_is_refused(self, world: World) -> None:
        manager = builds.SyncManager()
        manager.register(builds.metadata("rogue", "openai"), Plain)
        manager.plugin_metadata["rogue"]["id"] = "demo"
        with install(manager, world.middleware), pytest.raises(InvalidManifestError):
            manager.execute_action("rogue", "plain", q="x")

    async def test_a_change_is_noticed_also_in_place(self, world: World) -> None:
        manager = builds.AsyncManager()
        described = builds.metadata("demo", "openai")
        manager.register(described, Enhanced)
        with install(manager, world.middleware):
            assert (await manager.invoke_plugin_action("demo", "coroutine", q=1))["ok"]
            described["credentials"][0]["access"] = "inject"
            with pytest.raises(builds.PluginExecutionError, match="was refused"):
                await manager.invoke_plugin_action("demo", "coroutine", q=1)
            described["credentials"][0]["access"] = "reveal"
            assert (await manager.invoke_plugin_action("demo", "coroutine", q=1))["ok"]
            described["credentials"][0]["name"] = "github"
            with pytest.raises(AccessDeniedError):
                await manager.invoke_plugin_action("demo", "coroutine", q=1)

    async def test_an_older_record_may_have_a_field_named_metadata(self, world: World) -> None:
        manager = builds.SyncManager()
        manager.register(builds.metadata("demo", "openai", metadata={"tags": []}), Plain)
        with install(manager, world.middleware):
            assert manager.execute_action("demo", "plain", q="x")["ok"]

    async def test_what_is_not_granted_is_refused_before_the_plugin_runs(
        self, world: World
    ) -> None:
        manager = builds.AsyncManager()
        manager.register(builds.metadata("stranger", "openai"), Enhanced)
        with install(manager, world.middleware), pytest.raises(AccessDeniedError):
            await manager.invoke_plugin_action("stranger", "ambient", q="x")
        assert world.events("denial")[-1].reason == "not_granted"


class Outer(builds.EnhancedPlugin):
    async def pass_attenuated(self, credentials):
        narrow = credentials["openai"].attenuate(max_uses=1)
        return await self.agent.invoke_plugin_action("inner", "use", passed=narrow)

    async def pass_whole(self, credentials):
        whole = credentials["openai"]
        return await self.agent.invoke_plugin_action("inner", "use", passed=whole)

    async def ask_quiet(self, credentials):
        mine = dict(credentials)
        return bool(mine), await self.agent.invoke_plugin_action("quiet", "seen")

    async def after(self, credentials):
        await self.agent.invoke_plugin_action("inner", "own")
        return await text(current_credentials()["openai"]) == SECRET


class Inner(builds.EnhancedPlugin):
    async def use(self, passed, credentials):
        own = await text(credentials["github"]) == OTHER
        return own, await text(passed) == SECRET, sorted(current_credentials())

    async def own(self):
        return sorted(current_credentials())


@pytest.fixture
def nest(world: World):
    manager = builds.AsyncManager()
    manager.register(builds.metadata("outer", "openai"), Outer)
    manager.register(builds.metadata("inner", "github"), Inner)
    manager.register(builds.metadata("quiet"), Quiet)
    install(manager, world.middleware)
    return manager


class TestNested:
    async def test_an_attenuated_handle_can_be_passed_on(self, world: World, nest) -> None:
        result = await nest.invoke_plugin_action("outer", "pass_attenuated")
        assert result == (True, True, ["github"])
        assert world.middleware.broker.open_leases == 0

    async def test_a_whole_one_can_not(self, world: World, nest) -> None:
        with pytest.raises(builds.PluginExecutionError) as caught:
            await nest.invoke_plugin_action("outer", "pass_whole")
        root = caught.value
        while root.__cause__ is not None:
            root = root.__cause__
        assert isinstance(root, HandleForeignError)
        assert world.middleware.broker.open_leases == 0

    async def test_one_that_declares_nothing_does_not_see_its_callers(self, nest) -> None:
        assert await nest.invoke_plugin_action("outer", "ask_quiet") == (True, {})

    async def test_the_outer_one_goes_on_afterwards(self, nest) -> None:
        assert await nest.invoke_plugin_action("outer", "after")


class Slotted:
    __slots__ = ("agent",)

    def __init__(self, plugin_id):
        pass

    def plain(self, q, credentials):
        return text_now(credentials["openai"]) == SECRET


class SlottedDispatcher(Slotted):
    __slots__ = ()

    async def execute_action(self, action_name, params=None):
        return text_now(current_credentials()["openai"]) == SECRET


class Both(builds.SyncManager):
    """A manager with both methods, one of which calls the other."""

    async def invoke_plugin_action(self, plugin_id, action_name, **kwargs):
        result = self.execute_action(plugin_id, action_name, **kwargs)
        return await result if inspect.isawaitable(result) else result


class NoQuestions(builds.SyncManager):
    """Records by id, and no (or only an asynchronous) method to ask for them."""

    async def get_plugin_metadata(self, plugin_id):
        raise AssertionError("a synchronous call can't wait for this")


class Closed:
    """A manager whose tables are nobody's business: there is only what it answers."""

    def __init__(self, getter: str) -> None:
        made = Plain("demo")
        setattr(self, getter, lambda plugin_id: made)

    def get_plugin_metadata(self, plugin_id):
        return builds.metadata("demo", "openai")

    def execute_plugin_action(self, plugin_id, action, *args, **kwargs):
        getter = getattr(self, "get_plugin", None) or self.get_plugin_instance
        return getattr(getter(plugin_id), action)(*args, **kwargs)


class TestOddOnes:
    @pytest.mark.parametrize("getter", ["get_plugin", "get_plugin_instance"])
    async def test_what_a_manager_answers_is_enough(self, world: World, getter) -> None:
        manager = Closed(getter)
        with install(manager, world.middleware):
            assert manager.execute_plugin_action("demo", "plain", q="x")["ok"]

    async def test_records_by_id_are_enough(self, world: World) -> None:
        manager = NoQuestions()
        manager.register(builds.metadata("demo", "openai", keyed=True), Plain)
        with install(manager, world.middleware):
            assert manager.execute_action("demo", "plain", q="x")["ok"]

    async def test_a_plugin_without_attributes_gets_them_as_a_keyword(
        self, world: World
    ) -> None:
        manager = builds.SyncManager()
        manager.register(builds.metadata("demo", "openai"), Slotted)
        with install(manager, world.middleware):
            assert manager.execute_action("demo", "plain", q="x")

    async def test_or_from_the_context_where_there_is_no_way_for_a_keyword(
        self, world: World
    ) -> None:
        manager = builds.ParamsManager()
        manager.register(builds.metadata("demo", "openai"), SlottedDispatcher)
        with install(manager, world.middleware):
            assert await manager.invoke_plugin_action("demo", "plain", q="x")

    async def test_a_manager_with_both_methods(self, world: World) -> None:
        manager = Both()
        manager.register(builds.metadata("demo", "openai"), Plain)
        with install(manager, world.middleware):
            assert (await manager.invoke_plugin_action("demo", "coroutine", q="x"))["ok"]
            stream = await manager.invoke_plugin_action("demo", "stream", q="x")
            assert "".join(await collect(stream)) == f"x {MASKED} end"
        assert world.middleware.broker.open_leases == 0

    async def test_a_bound_method_looks_as_it_did(self, world: World) -> None:
        manager = builds.SyncManager()
        manager.register(builds.metadata("demo", "openai"), Plain)
        with install(manager, world.middleware):
            for action in ("coroutine", "stream", "steps", "plain"):
                result = manager.execute_action("demo", action, q="x")
                with contextlib.suppress(AttributeError):
                    await result if inspect.isawaitable(result) else result.close()
            plugin = manager.plugins["demo"]
            assert inspect.iscoroutinefunction(plugin.coroutine)
            assert inspect.isasyncgenfunction(plugin.stream)
            assert inspect.isgeneratorfunction(plugin.steps)
            assert list(inspect.signature(plugin.plain).parameters) == ["q"]
            assert plugin.plain.__name__ == "plain"
            with pytest.raises(TypeError):  # outside of an invocation there is nothing
                plugin.plain("x")
            assert plugin.plain("x", {"openai": FakeHandle()})["ok"]


class FakeHandle:
    @contextlib.contextmanager
    def reveal(self):
        class Fake:
            expose_str = staticmethod(lambda: SECRET)

        yield Fake()


class TestInstalling:
    async def test_twice_is_once(self, world: World) -> None:
        manager = builds.AsyncManager()
        first = install(manager, world.middleware)
        assert install(manager, world.middleware) is first
        assert isinstance(first, Installation)
        assert uninstall(manager)
        assert not uninstall(manager)
        assert "invoke_plugin_action" not in vars(manager)
        assert install(manager, world.middleware) is not first

    async def test_two_middlewares_are_refused(self, world: World) -> None:
        from apex_creds import CredentialMiddleware

        manager = builds.AsyncManager()
        install(manager, world.middleware)
        async with CredentialMiddleware(world.vault) as other:
            with pytest.raises(InvalidInputError, match="Uninstall"):
                install(manager, other)

    async def test_what_is_no_manager_is_refused(self, world: World) -> None:
        class Frozen:
            __slots__ = ()

            def execute_action(self, plugin_id, action):
                pass

        for thing in (object(), Frozen()):
            with pytest.raises(InvalidInputError):
                install(thing, world.middleware)

    async def test_a_synchronous_action_may_say_that_it_is_exhausted(
        self, world: World
    ) -> None:
        """It runs in no coroutine of the hook's, out of which that would be another error."""

        class Exhausted:
            def __init__(self, plugin_id):
                self.plugin_id = plugin_id

            def take(self):
                raise StopIteration("no more")

        manager = builds.SyncManager()
        for plugin, needs in (("demo", ("openai",)), ("quiet", ())):
            manager.register(builds.metadata(plugin, *needs, keyed=True), Exhausted)
            ended = pytest.raises(StopIteration, match="no more")
            with install(manager, world.middleware), ended:
                manager.execute_action(plugin, "take")

    async def test_under_another_wrapper_the_hook_becomes_a_call_through(
        self, world: World
    ) -> None:
        manager = builds.AsyncManager()
        manager.register(builds.metadata("demo", "openai"), Enhanced)
        manager.register(builds.metadata("quiet"), Quiet)
        installation = install(manager, world.middleware)
        hooked = manager.invoke_plugin_action

        async def theirs(*args, **kwargs):
            return [await hooked(*args, **kwargs)]

        manager.invoke_plugin_action = theirs
        assert (await manager.invoke_plugin_action("demo", "coroutine", q=1))[0]["ok"]
        installation.uninstall()
        assert manager.invoke_plugin_action is theirs
        count = len(world.events())
        assert await manager.invoke_plugin_action("quiet", "same", value=1) == [1]
        with pytest.raises(builds.PluginExecutionError):
            await manager.invoke_plugin_action("demo", "coroutine", q=1)
        assert len(world.events()) == count
        with install(manager, world.middleware):
            assert (await manager.invoke_plugin_action("demo", "coroutine", q=1))[0]["ok"]
        assert manager.invoke_plugin_action is theirs

    async def test_a_wrapper_from_before_is_put_back(self, world: World) -> None:
        manager = builds.SyncManager()
        original = manager.execute_action
        manager.execute_action = before = lambda *a, **k: original(*a, **k)
        install(manager, world.middleware).uninstall()
        assert vars(manager)["execute_action"] is before

    async def test_the_hook_looks_like_the_method(self, world: World) -> None:
        manager = builds.AsyncManager()
        with install(manager, world.middleware):
            assert inspect.iscoroutinefunction(manager.invoke_plugin_action)
            assert manager.invoke_plugin_action.__doc__ == "Invokes."
            parameters = inspect.signature(manager.invoke_plugin_action).parameters
            assert list(parameters) == ["plugin_id", "action_name", "kwargs"]

    async def test_a_manager_that_is_dropped_is_freed(self, world: World) -> None:
        import weakref

        manager = builds.AsyncManager()
        manager.register(builds.metadata("demo", "openai"), Enhanced)
        install(manager, world.middleware)
        await manager.invoke_plugin_action("demo", "coroutine", q=1)
        gone = weakref.ref(manager)
        del manager
        gc.collect()
        assert gone() is None
