"""A hostile plugin behind the wall: each thing that it tries, and what it gets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from apex_creds.errors import (
    AccessDeniedError,
    ApexCredsError,
    InvalidInputError,
    IsolationError,
    WorkerEndedError,
)
from apex_creds.isolation.code import plugin_function
from apex_creds.isolation.runner import IsolatedRunner
from apex_creds.middleware import CredentialMiddleware
from tests.isolation.everyday_plugin import PLUGINS, everyday, world
from tests.support.vendor import SECRET, Vendor, vendor
from tests.support.worlds import KEY, World, manifest_for

pytestmark = pytest.mark.anyio
__all__ = ["world"]

REFUSED = {"PermissionError", "ConnectionRefusedError", "OSError"}


def hostile(name: str):
    return plugin_function(PLUGINS, f"hostile:{name}")


@pytest.fixture
async def service(world: World) -> AsyncIterator[Vendor]:
    async with vendor() as made:
        await made.allow(world, "web")
        yield made


class TestTheNetwork:
    async def test_no_name_is_resolved(self, world: World) -> None:
        assert await world.call(hostile("resolve")) == "gaierror"

    async def test_no_port_of_the_host_and_nothing_outside(self, world: World) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            assert await world.call(hostile("connect"), "127.0.0.1", port) in REFUSED
        for address in ("1.1.1.1", "169.254.169.254", "10.0.0.1", "::1"):
            assert await world.call(hostile("connect"), address, 80) in REFUSED
        assert await world.call(hostile("datagram"), "8.8.8.8", 53) in REFUSED

    async def test_no_unix_socket_by_path_or_abstract(
        self, world: World, tmp_path: Path
    ) -> None:
        folder = tmp_path / "plugin"
        folder.mkdir()
        (folder / "hostile.py").write_text((PLUGINS / "hostile.py").read_text())
        path, abstract = str(folder / "s"), f"\0apex-creds-test-{os.getpid()}"
        with contextlib.ExitStack() as stack:
            for address in (path, abstract):  # one even lies in the folder that it sees
                listening = stack.enter_context(socket.socket(socket.AF_UNIX))
                listening.bind(address)
                listening.listen()
            unix = plugin_function(folder, "hostile:unix")
            assert await world.call(unix, path) == "PermissionError"
            assert await world.call(unix, abstract) == "PermissionError"


class TestTheMachine:
    async def test_no_process_of_the_host(self, world: World) -> None:
        pids = await world.call(hostile("list_all"), "/proc/[0-9]*")
        assert len(pids) <= 4, "bubblewrap's, the fork server, this one"
        seen = await world.call(hostile("command_lines"))
        assert str(Path.cwd() / "tests") not in str(seen.get("/proc/1/cmdline"))
        mine = os.getpid()
        assert await world.call(hostile("kill"), max(mine, 100_000)) == "ProcessLookupError"
        assert await world.call(hostile("memory_of"), max(mine, 100_000)) == "FileNotFoundError"

    async def test_no_tracing_and_no_memory_of_the_fork_server(self, world: World) -> None:
        assert await world.call(hostile("trace"), 2) == "Operation not permitted"
        assert await world.call(hostile("trace"), 1) == "Operation not permitted"
        assert await world.call(hostile("memory_of"), 2) == "PermissionError"

    async def test_nothing_of_the_process_at_the_other_end_of_its_socket(
        self, world: World
    ) -> None:
        ((*tried,),) = await world.call(hostile("reach_the_host_by_its_socket"))
        assert "done" not in tried
        assert await world.call(everyday("same"), 1) == 1, "and the host is there"

    async def test_no_variable_of_the_host(self, world: World, monkeypatch) -> None:
        monkeypatch.setenv("APEX_CREDS_CANARY", "canary-of-the-host")
        assert "canary-of-the-host" not in str(await world.call(hostile("environment")))

    async def test_no_descriptor_but_its_own(self, world: World) -> None:
        with open(__file__) as mine, socket.socket() as other:
            for each in (mine, other):
                os.set_inheritable(each.fileno(), True)
            found = await world.call(hostile("descriptors"))
        kinds = {each.partition(":")[0] for each in found.values()}
        assert {each for each in kinds if not each.startswith("/proc/")} <= {
            *("/dev/null", "socket", "anon_inode", "pipe"),
        }
        assert not any(
            each.startswith(("/work", "/dev/shm", "/tmp")) for each in found.values()
        )

    async def test_no_file_of_the_host_and_no_way_by_a_link(
        self, world: World, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.write_text("a secret file")
        folder = tmp_path / "plugin"
        folder.mkdir()
        (folder / "hostile.py").write_text((PLUGINS / "hostile.py").read_text())
        (folder / "link").symlink_to(outside)
        (folder / "up").symlink_to("../outside")
        (folder / "vault").symlink_to(world.where / "home")
        read = plugin_function(folder, "hostile:read")
        for path in (
            folder / "link",
            folder / "up",
            folder / "vault" / "security" / "keystore.enc",
            outside,
            "/etc/shadow",
            "/etc/ssl/private",
            "/root/.ssh/id_rsa",
            "/proc/kcore",
            "/proc/1/root/etc/shadow",
            "/proc/2/root/etc/shadow",
        ):
            assert (await world.call(read, str(path))) in (
                *("FileNotFoundError", "PermissionError", "NotADirectoryError"),
                b"",
            ), path

    async def test_what_would_use_the_machine_up_ends(self, world: World) -> None:
        assert await world.call(hostile("threads_without_end")) in {
            "RuntimeError",
            "MemoryError",
        }
        # Its threads are still there, and may leave room for none: another worker.
        fills = world.call(hostile("fill_the_disk"), plugin="other", needs=())
        assert await fills == "OSError"
        with pytest.raises((MemoryError, WorkerEndedError)):
            await world.call(everyday("hog"), plugin="other", needs=())

    async def test_what_a_worker_leaves_ends_before_the_next_one_begins(
        self, world: World
    ) -> None:
        runner = IsolatedRunner(processes=True, max_calls=2)

        async def left() -> bool:
            seen = await middleware.invoke(manifest, hostile("command_lines"))
            return "a-process-that-was-left" in str(seen)

        manifest = manifest_for("key")
        async with CredentialMiddleware(world.vault, isolation=runner) as middleware:
            await middleware.invoke(manifest, hostile("leave_a_process"))
            assert await left(), "of the same worker"
            assert not await left(), "which did enough calls"
            await middleware.invoke(manifest, hostile("leave_a_process"))
            with pytest.raises(WorkerEndedError):
                await middleware.invoke(manifest, hostile("end"))
            assert not await left()


class TestTheFrames:
    @pytest.mark.parametrize("how", ["garbage", "too_large"])
    async def test_what_is_no_frame_ends_the_worker(self, world: World, how: str) -> None:
        with pytest.raises(WorkerEndedError):
            await world.call(hostile(how))
        assert world.middleware.broker.open_leases == 0
        assert await world.call(everyday("same"), 1) == 1

    async def test_what_is_no_result_ends_its_call(self, world: World) -> None:
        runner, manifest = world.middleware._runner, manifest_for()
        assert isinstance(runner, IsolatedRunner)
        await runner.call(manifest, hostile("answer_with_no_result"), (), {})
        awaited = runner.call_in_turn(manifest, hostile("garbage"), (), {})
        with pytest.raises(IsolationError, match="no result"):
            await awaited  # type: ignore[misc]
        assert await runner.call(manifest, everyday("same"), (1,), {}) == 1, "whose turn it is"

    async def test_nothing_is_unpickled(self, world: World) -> None:
        with pytest.raises(InvalidInputError, match="can't cross"):
            await world.call(hostile("sly"))

    async def test_loggers_are_not_made_without_end(self, world: World, caplog) -> None:
        import logging

        await world.call(hostile("log_without_end"))
        made = [each for each in logging.root.manager.loggerDict if each.startswith("hostile.")]
        assert 0 < len(made) <= 64


class TestLeasesOfOthers:
    async def test_of_an_ended_call(self, world: World) -> None:
        ended = await world.call(hostile("keep_handle"))
        for what in ("reveal", "send"):
            with pytest.raises(ApexCredsError, match=r"ended|revoked"):
                await world.call(hostile("ask_with"), ended, what)

    async def test_of_another_plugin_at_the_same_time(self, world: World) -> None:
        await world.vault.grant("other", "key", reveal=True)
        ids: asyncio.Queue[str] = asyncio.Queue()

        async def begun() -> None:
            await ids.put("")

        from apex_creds.leases import broker

        first = asyncio.ensure_future(
            world.call(everyday("hang"), begun, needs=("key",), plugin="other")
        )
        await ids.get()
        (lease,) = broker._OPEN
        for what in ("reveal", "send"):
            with pytest.raises(AccessDeniedError):
                await world.call(hostile("ask_with"), lease, what)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        assert not world.events("redeem")

    async def test_what_is_asked_for_another_call_or_with_other_types(
        self, world: World
    ) -> None:
        with pytest.raises(AccessDeniedError):
            await world.call(hostile("ask_as"), "999", "reveal", ["x", "", None])
        for what, value in (
            ("reveal", [1, 2, 3]),
            ("reveal", []),
            ("send", [[], "GET", "http://x/", [], None, {}, None]),
            ("sign", ["x", [], {}]),
            ("nothing", []),
            ("callback", [7, [], {}]),
        ):
            with pytest.raises(ApexCredsError):
                await world.call(hostile("ask_as"), "", what, value)


# -- memory --------------------------------------------------------------------------------


def below(pid: int) -> Iterator[int]:
    """A process, and all that it has started."""
    yield pid
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for each in (thread / "children").read_text().split():
                yield from below(int(each))


def holds(pid: int, text: bytes) -> bool:
    """Whether a text is anywhere in a process's memory, seen from outside."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            words = line.split()
            start, _, end = words[0].partition("-")
            if "r" not in words[1] or line.rstrip().endswith(("[vvar]", "[vsyscall]")):
                continue
            at, last = int(start, 16), int(end, 16)
            before = b""
            while at < last:
                try:
                    memory.seek(at)
                    data = memory.read(min(1 << 22, last - at))
                except (OSError, ValueError, OverflowError):
                    break
                if not data:
                    break
                if text in before + data:
                    return True
                before, at = data[-len(text) :], at + len(data)
    return False


class TestMemory:
    """The search is able to find: what a plugin has, it finds there."""

    async def held(
        self, world: World, name: str, *args: object, needs, text: str
    ) -> list[bool]:
        """Whether each of the processes behind the wall has a text while a call goes on."""
        if os.geteuid() != 0:
            pytest.skip("The kernel lets root alone look into them from outside.")
        started = asyncio.Event()

        async def begun() -> None:
            started.set()

        task = asyncio.ensure_future(world.call(hostile(name), *args, begun, needs=needs))
        done, _ = await asyncio.wait(
            {task, asyncio.ensure_future(started.wait())}, return_when=asyncio.FIRST_COMPLETED
        )
        assert task not in done, await task
        runner = world.middleware._runner
        assert isinstance(runner, IsolatedRunner)
        (plugin,) = runner._plugins.values()
        outer = plugin._sandbox._walled.process.pid
        found = [await asyncio.to_thread(holds, pid, text.encode()) for pid in below(outer)]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return found

    async def test_what_it_was_given_is_found(self, world: World) -> None:
        canary = "a-canary-" + os.urandom(8).hex()
        assert any(await self.held(world, "hold", canary, needs=(), text=canary))

    async def test_what_it_revealed_is_found(self, world: World) -> None:
        assert any(await self.held(world, "reveal_and_hold", needs=("key",), text=KEY))

    async def test_what_was_sent_for_it_is_not(self, world: World, service: Vendor) -> None:
        await service.allow(world, "key")
        needs = ({"name": "key"},)
        found = await self.held(world, "get_and_hold", service.origin, needs=needs, text=SECRET)
        assert service.requests[-1][2]["authorization"] == f"Bearer {SECRET}"
        assert len(found) >= 3
        assert not any(found)

    async def test_it_leaves_no_core(self, world: World) -> None:
        with pytest.raises(WorkerEndedError, match="SIGSEGV"):
            await world.call(everyday("segfault"))
        limits = await world.call(hostile("read"), "/proc/self/limits")
        assert isinstance(limits, bytes)


# -- the host's end ------------------------------------------------------------------------


async def test_a_second_plugin_sees_nothing_of_the_first(world: World) -> None:
    canary = "a-canary-" + os.urandom(8).hex()
    await world.call(everyday("remember"), canary)
    other = await world.call(everyday("remember"), "x", plugin="other", needs=())
    assert other == ["x"]


def test_isolation_errors_say_what_to_do() -> None:
    with pytest.raises(IsolationError) as refused:
        plugin_function(PLUGINS, "everyday:__import__('os')")
    assert refused.value.hint
