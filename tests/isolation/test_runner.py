"""A call behind the wall is like any other; what a worker does wrong is that call's error."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import gc
import inspect
import logging
import os
from pathlib import Path

import pytest

from apex_creds import AccessDeniedError, CredentialMiddleware
from apex_creds.errors import (
    InvalidInputError,
    InvalidManifestError,
    InvalidPolicyError,
    IsolationError,
    IsolationUnavailableError,
    PluginRaisedError,
    WorkerEndedError,
)
from apex_creds.isolation.code import plugin_function
from apex_creds.isolation.redeeming import LEFT
from apex_creds.isolation.runner import IsolatedRunner, Isolation
from apex_creds.policy.manifest import parse_manifest
from apex_creds.policy.policy_file import parse_policy
from tests.isolation.everyday_plugin import PLUGINS, everyday, world
from tests.isolation.in_host import in_host
from tests.support.worlds import KEY, World, manifest_for

pytestmark = pytest.mark.anyio
__all__ = ["world"]  # the fixture of these tests


class TestCalls:
    async def test_arguments_results_and_handles(self, world: World) -> None:
        assert await world.call(everyday("plain"), 1, b=5) == {"sum": 6, "names": ["key"]}
        assert await world.call(everyday("coroutine"), q="x") == ["x", ["key"]]
        assert world.middleware.broker.open_leases == 0

    async def test_it_runs_in_a_process_of_its_own_that_stays(self, world: World) -> None:
        first = await world.call(everyday("remember"), 1)
        assert await world.call(everyday("remember"), 2) == [*first, 2]
        assert "tests.isolation.plugins.everyday" not in __import__("sys").modules

    async def test_a_function_of_the_host_is_found_by_its_name(self, world: World) -> None:
        value, pid = await world.call(in_host, 7)
        assert value == 7
        assert pid < 100, "another process's number, in a namespace of its own"

    async def test_what_has_no_name_is_refused(self, world: World) -> None:
        with pytest.raises(IsolationError, match="can't be found"):
            await world.call(lambda: 1)

    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            2**200,
            -1.5,
            "text",
            b"bytes",
            bytearray(b"x"),
            [1, (2, {3}), frozenset({4})],
            {"a": {1: None}, (1, 2): []},
            decimal.Decimal("1.10"),
            datetime.date(2026, 1, 2),
        ],
    )
    async def test_plain_data_is_the_same_on_the_other_side(self, world: World, value) -> None:
        found = await world.call(everyday("same"), value)
        assert found == value
        assert type(found) is type(value)

    async def test_other_data_arrives_as_plain_data(self, world: World) -> None:
        assert await world.call(everyday("kinds")) == {
            "point": {"x": 1, "y": 2},
            "colour": "red",
            "when": datetime.datetime(2026, 1, 2, 3, 4, 5),  # noqa: DTZ001
            "price": decimal.Decimal("1.10"),
        }

    async def test_what_is_no_data_is_refused_with_its_type(self, world: World) -> None:
        with pytest.raises(InvalidInputError, match="A lock can't cross"):
            await world.call(everyday("unknown_kind"))
        with pytest.raises(InvalidInputError, match="A module can't cross"):
            await world.call(everyday("same"), asyncio)

    async def test_a_plugin_s_object_lives_as_long_as_its_worker(self, world: World) -> None:
        assert [await world.call(everyday("Plugin.next")) for _ in range(3)] == [1, 2, 3]

    async def test_adapters_that_log_in_say_that_they_are_not_there(self, world: World) -> None:
        found = await world.call(everyday("adapters"))
        assert (found.pop("httpx"), found.pop("requests")) == ("there", "there")
        assert [name for name, said in found.items() if "behind the wall" not in said] == []

    async def test_nothing_of_the_vault_is_loaded_there(self, world: World) -> None:
        loaded = await world.call(everyday("modules"))
        forbidden = ("vault.vault", "keys", "storage", "documents", "audit", "crypto")
        assert not {f"apex_creds.{name}" for name in forbidden} & set(loaded)
        assert not {"nacl", "cryptography"} & set(loaded)


class TestExceptions:
    async def test_type_text_notes_and_cause(self, world: World) -> None:
        with pytest.raises(ValueError, match="no city Roma") as raised:
            await world.call(everyday("no_such_city"))
        assert type(raised.value).__name__ == "NoSuchCityError"
        assert isinstance(raised.value, PluginRaisedError)
        assert raised.value.__notes__ == ["did you mean Rome?"]
        assert type(raised.value.__cause__) is OSError
        assert str(raised.value.__cause__) == "the map is gone"

    async def test_python_s_own_is_itself(self, world: World) -> None:
        with pytest.raises(KeyError) as raised:
            await world.call(everyday("key_error"))
        assert raised.value.args == ("missing",)

    async def test_one_that_takes_more_than_a_text(self, world: World) -> None:
        with pytest.raises(PluginRaisedError, match=r"\(1, 2\)") as raised:
            await world.call(everyday("odd"))
        assert type(raised.value).__name__ == "Odd"

    async def test_what_would_stop_the_host_does_not(self, world: World) -> None:
        with pytest.raises(PluginRaisedError):
            await world.call(everyday("stop_everything"))
        assert await world.call(everyday("same"), 1) == 1


class TestStreams:
    async def test_both_kinds(self, world: World) -> None:
        found = await world.call(everyday("stream"), 3)
        assert inspect.isasyncgen(found)
        assert [each async for each in found] == ["item 0", "item 1", "item 2"]
        steps = await world.call(everyday("steps"), 3)
        assert inspect.isgenerator(steps)
        assert list(steps) == [0, 1, 2]
        assert world.middleware.broker.open_leases == 0

    async def test_it_is_never_ahead_of_its_reader(self, world: World) -> None:
        found = await world.call(everyday("stream"), 100)
        await anext(found)
        await anext(found)
        await found.aclose()
        assert await world.call(everyday("remember"), "end") == [0, 1, "end"]

    async def test_values_and_exceptions_go_in(self, world: World) -> None:
        echo = await world.call(everyday("echo"))
        assert await anext(echo) is None
        assert await echo.asend([1, 2]) == [1, 2]
        assert await echo.athrow(ValueError("no")) == "caught no"
        await echo.aclose()

    async def test_one_that_fails_or_is_dropped_leaves_nothing(self, world: World) -> None:
        broken = await world.call(everyday("broken_stream"))
        assert await anext(broken) == 1
        with pytest.raises(ValueError, match="no more"):
            await anext(broken)
        dropped = await world.call(everyday("stream"), 3)
        del dropped
        gc.collect()
        assert world.middleware.broker.open_leases == 0
        # One call at a time: it would wait for ever.
        assert await world.call(everyday("same"), 1) == 1


class TestCallbacksAndLogs:
    async def test_progress(self, world: World) -> None:
        said = []
        here = asyncio.get_running_loop()

        def report(done, total):
            said.append((done, total, asyncio.get_running_loop() is here))

        assert await world.call(everyday("progress"), report) == "done"
        assert said == [(0, 3, True), (1, 3, True), (2, 3, True)]

        async def awaited(done):
            await asyncio.sleep(0)
            return done * 2

        assert await world.call(everyday("awaited_progress"), awaited) == [0, 2, 4]

    async def test_a_callback_s_error_is_the_plugin_s(self, world: World) -> None:
        def report(done, total):
            raise NotADirectoryError("stop")

        with pytest.raises(NotADirectoryError, match="stop"):
            await world.call(everyday("progress"), report)

    async def test_records_and_prints_are_in_the_host_s_log(self, world: World, caplog) -> None:
        caplog.set_level(logging.INFO)
        await world.call(everyday("talk"))
        assert (
            "plugins.everyday",
            logging.WARNING,
            "a warning about rain",
        ) in caplog.record_tuples
        assert "printed" in caplog.text
        assert "OSError: lost" in caplog.text


class TestHandles:
    async def test_reveal_is_in_the_log_as_having_left_the_host(self, world: World) -> None:
        assert await world.call(everyday("revealed")) == "[redacted:key]"
        assert await world.call(everyday("revealed_in_thread")) == len(KEY)
        assert await world.call(everyday("revealed_beside_the_loop")) == len(KEY)
        assert [event.method for event in world.events("redeem")] == [LEFT] * 3

    async def test_reveal_only_where_manifest_and_grant_say_so(self, world: World) -> None:
        need = {"name": "key", "access": "inject"}
        with pytest.raises(AccessDeniedError):
            await world.call(everyday("revealed"), needs=(need,))
        assert not world.events("redeem")

    async def test_what_was_not_declared_is_refused_and_logged(self, world: World) -> None:
        with pytest.raises(AccessDeniedError):
            await world.call(everyday("undeclared"))
        assert [event.credential for event in world.events("denial")] == ["other"]

    async def test_a_handle_is_worthless_after_its_call(self, world: World) -> None:
        await world.call(everyday("kept"), None)
        assert await world.call(everyday("what_happened")) == "HandleRevokedError"


class TestEnds:
    @pytest.mark.parametrize("how", ["dies", "exits", "segfault"])
    async def test_a_worker_that_ends_is_an_error_and_replaced(self, world: World, how) -> None:
        with pytest.raises(WorkerEndedError, match=r"SIGKILL|SIGSEGV|status 3"):
            await world.call(everyday(how))
        assert world.middleware.broker.open_leases == 0
        assert await world.call(everyday("same"), 1) == 1

    async def test_a_memory_hog_is_a_clear_error(self, world: World) -> None:
        with pytest.raises(MemoryError):
            await world.call(everyday("hog"))

    async def test_a_fork_bomb_is_a_clear_error(self, world: World) -> None:
        with pytest.raises(PermissionError):
            await world.call(everyday("forks"))

    async def test_a_cancelled_call_is_cancelled_there(self, world: World, caplog) -> None:
        caplog.set_level(logging.INFO)
        started = asyncio.Event()

        async def begun():
            started.set()

        task = asyncio.ensure_future(world.call(everyday("hang"), begun))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert world.middleware.broker.open_leases == 0
        assert await world.call(everyday("same"), 1) == 1
        assert "cancelled in time" in caplog.text

    async def test_one_that_can_t_be_cancelled_is_killed(
        self, world: World, monkeypatch
    ) -> None:
        monkeypatch.setattr("apex_creds.isolation.channel.CANCEL_WITHIN", 0.05)
        started = asyncio.Event()
        pid = await world.call(everyday("pid"))
        task = asyncio.ensure_future(world.call(everyday("blocks"), started.set))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await world.call(everyday("pid")) != pid

    async def test_a_deadline(self, tmp_path: Path, world: World, monkeypatch) -> None:
        monkeypatch.setattr("apex_creds.isolation.channel.CANCEL_WITHIN", 0.05)
        runner = IsolatedRunner(timeout=1)
        async with CredentialMiddleware(world.vault, isolation=runner) as middleware:
            with pytest.raises(IsolationError, match="did not answer in 1 s"):
                await middleware.invoke(manifest_for("key"), everyday("blocks"), print)

    async def test_after_so_many_calls_it_is_replaced(self, world: World) -> None:
        runner = IsolatedRunner(max_calls=2)
        async with CredentialMiddleware(world.vault, isolation=runner) as middleware:
            manifest = manifest_for("key")
            pids = [await middleware.invoke(manifest, everyday("pid")) for _ in range(4)]
        assert pids[0] == pids[1] != pids[2] == pids[3]

    async def test_changed_code_is_run_at_once(self, world: World, tmp_path: Path) -> None:
        folder = tmp_path / "plugin"
        folder.mkdir()
        (folder / "main.py").write_text("def run(): return 1\n")
        assert await world.call(plugin_function(folder, "main:run")) == 1
        (folder / "main.py").write_text("def run(): return 20\n")
        assert await world.call(plugin_function(folder, "main:run")) == 20

    async def test_one_call_at_a_time_unless_it_is_reentrant(self, world: World) -> None:
        runner = IsolatedRunner(reentrant=frozenset({"demo"}))
        async with CredentialMiddleware(world.vault, isolation=runner) as middleware:
            both = asyncio.Barrier(2)

            async def met():
                await both.wait()
                raise LookupError("both are here")

            calls = [
                middleware.invoke(manifest_for("key"), everyday("hang"), met) for _ in range(2)
            ]
            found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in found] == [LookupError, LookupError]


class TestWhereItIsRequired:
    async def test_a_middleware_without_isolation_refuses_such_a_plugin(
        self, world: World
    ) -> None:
        asks = parse_manifest({"id": "demo", "credentials": [], "isolation": "required"})
        async with CredentialMiddleware(world.vault) as middleware:
            with pytest.raises(IsolationUnavailableError, match="isolated"):
                await middleware.invoke(asks, in_host, 1)
            with pytest.raises(IsolationUnavailableError):
                middleware.invoke_sync(asks, "x", in_host, (1,))

    async def test_the_others_run_here(self, world: World) -> None:
        other = parse_manifest({"id": "demo", "credentials": []})
        asks = parse_manifest({"id": "demo", "credentials": [], "isolation": "required"})
        async with CredentialMiddleware(
            world.vault, isolation=Isolation.WHERE_REQUIRED
        ) as middleware:
            assert await middleware.invoke(other, in_host, 1) == (1, os.getpid())
            assert await middleware.invoke(asks, in_host, 1) != (1, os.getpid())
        assert other.digest != asks.digest

    async def test_policy_that_begins_to_require_it_is_seen_by_the_next_call(
        self, world: World
    ) -> None:
        policy = world.where / "home" / "security" / "policy.toml"
        async with CredentialMiddleware(world.vault) as middleware:
            assert await middleware.invoke(manifest_for("key"), in_host, 1) == (1, os.getpid())
            policy.write_text('version = 1\n[isolation]\nrequired = "demo"\n')
            policy.chmod(0o600)
            world.clock.now += 3600
            with pytest.raises(IsolationUnavailableError):
                await middleware.invoke(manifest_for("key"), in_host, 1)
            assert middleware.broker.open_leases == 0

    async def test_policy_requires_it_too(self, world: World) -> None:
        policy = world.where / "home" / "security" / "policy.toml"
        policy.write_text('version = 1\n[isolation]\nrequired = ["demo*"]\n')
        policy.chmod(0o600)
        async with CredentialMiddleware(world.vault) as middleware:
            with pytest.raises(IsolationUnavailableError):
                await middleware.invoke(parse_manifest({"id": "demo"}), in_host, 1)
            found = await middleware.invoke(parse_manifest({"id": "other"}), in_host, 1)
            assert found == (1, os.getpid())

    def test_anything_else_is_an_error(self) -> None:
        with pytest.raises(InvalidManifestError, match="isolation"):
            parse_manifest({"id": "demo", "isolation": "please"})
        with pytest.raises(InvalidPolicyError, match="required"):
            parse_policy(b"version = 1\n[isolation]\n")
        assert parse_policy(b'version = 1\n[isolation]\nrequired = "**"\n').isolates("x")


class TestInTurn:
    """Runtimes whose own call is synchronous."""

    async def test_values_coroutines_and_streams(self, world: World) -> None:
        manifest = manifest_for("key")

        def call(name, *args):
            return world.middleware.invoke_sync(manifest, name, everyday(name), args)

        awaited = await asyncio.to_thread(call, "coroutine", "x")
        assert inspect.iscoroutine(awaited)
        assert await awaited == ["x", ["key"]]
        stream = await asyncio.to_thread(call, "stream", 2)
        assert [each async for each in stream] == ["item 0", "item 1"]
        assert await asyncio.to_thread(call, "same", 1) == 1
        assert list(await asyncio.to_thread(call, "steps", 2)) == [0, 1]

    async def test_what_is_never_awaited_holds_nothing(self, world: World) -> None:
        function = everyday("coroutine")
        made = await asyncio.to_thread(
            world.middleware.invoke_sync, manifest_for("key"), "x", function, ("x",)
        )
        made.close()
        assert world.middleware.broker.open_leases == 0
        # One call at a time: it would wait for ever.
        assert await world.call(everyday("same"), 1) == 1


def test_the_plugins_are_there() -> None:
    assert (PLUGINS / "everyday.py").is_file()
