"""What a program behind the wall can see and do, and what is left when it has ended."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from apex_creds.errors import IsolationError, IsolationUnavailableError
from apex_creds.isolation import control_groups, sandbox, seccomp
from apex_creds.isolation.sandbox import Limits, MiB, Wall, Walled
from tests.support.worlds import world_in

pytestmark = pytest.mark.anyio


async def said(script: str, **wall: object) -> str:
    """What a Python script prints in there."""
    folders = wall.pop("folders", ())
    started = await Wall(command=[sys.executable, "-c", script], folders=folders, **wall).start(
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        output, _ = started.process.communicate(timeout=300)
    finally:
        started.close()
    return output.decode()


async def tried(expression: str, **wall: object) -> str:
    """The name of the error that an expression ends with; ``done`` if with none."""
    script = f"""
import ctypes, os, socket, subprocess, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "")
try:
    {expression}
    print("done")
except Exception as error:
    print(type(error).__name__)
"""
    return (await said(script, **wall)).strip()


class TestTheWall:
    async def test_there_is_nothing_but_the_system_and_what_was_given(
        self, tmp_path: Path
    ) -> None:
        plugin = tmp_path / "plugin"
        plugin.mkdir()
        (plugin / "main.py").write_text("x = 1")
        (tmp_path / "beside").write_text("secret")
        script = f"import os; print(os.listdir({str(tmp_path)!r}), os.listdir('/root'))"
        seen = await said(script, folders=[plugin])
        assert seen.startswith("['plugin']")
        assert "beside" not in seen
        assert (
            await tried(f"open({str(plugin / 'main.py')!r}, 'a')", folders=[plugin])
            == "OSError"
        )

    async def test_no_variable_capability_or_identity_of_the_host(self, monkeypatch) -> None:
        monkeypatch.setenv("APEX_CREDS_CANARY", "canary")
        seen = await said(
            "import os; print(dict(os.environ), os.getuid(), open('/proc/self/status').read())"
        )
        assert "canary" not in seen
        assert "65534" in seen
        assert f"CapBnd:\t{'0' * 16}" in seen
        assert f"CapEff:\t{'0' * 16}" in seen
        assert "Seccomp:\t2" in seen
        assert "NoNewPrivs:\t1" in seen

    async def test_no_process_of_the_host(self) -> None:
        pids = await said("import os; print(*[p for p in os.listdir('/proc') if p.isdigit()])")
        assert len(pids.split()) == 2, "bubblewrap's own, and this one"

    async def test_no_descriptor_but_those_that_were_handed_over(self) -> None:
        with open(os.devnull) as mine:
            os.set_inheritable(mine.fileno(), True)
            seen = await said("import os; print(*os.listdir('/proc/self/fd'))", listen=["8080"])
        assert seen.split() == ["0", "1", "2", "3"], "the last is that of the listing itself"

    async def test_it_connects_only_to_what_was_handed_out(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            script = f"""
import socket
for port in (8080, {port}):
    try:
        with socket.create_connection(("127.0.0.1", port)) as there:
            print(there.recv(5).decode())
    except OSError as error:
        print(type(error).__name__)
"""
            started = await Wall(command=[sys.executable, "-c", script], listen=["8080"]).start(
                stdout=subprocess.PIPE
            )
            (listener,) = started.listeners
            with listener.accept()[0] as connection:
                connection.sendall(b"hello")
            output, _ = started.process.communicate(timeout=300)
            started.close()
        assert output.decode().split() == ["hello", "ConnectionRefusedError"]

    async def test_the_exit_status_is_the_command_s_own(self) -> None:
        started = await Wall(command=["/bin/sh", "-c", "exit 7"]).start()
        assert started.process.wait(300) == 7
        started.close()

    async def test_a_command_that_is_not_there_is_an_error_of_the_shell(self) -> None:
        started = await Wall(command=["no-such-command"]).start(stderr=subprocess.DEVNULL)
        assert started.process.wait(300) == 127
        started.close()


@pytest.mark.parametrize(
    "forbidden",
    [
        "call(101, 16, 1, 0, 0)",  # ptrace, attach
        "call(310, 1, 0, 0, 0, 0, 0)",  # process_vm_readv
        "call(272, 0x10000000)",  # unshare, user namespace
        "call(56, 0x10000011, 0, 0, 0, 0)",  # clone, user namespace
        "call(425, 1, 0)",  # io_uring_setup
        "call(321, 0, 0, 0)",  # bpf
        "call(250, 0, 0, 0)",  # keyctl
        "call(165, 0, 0, 0, 0, 0)",  # mount
        "socket.socket(socket.AF_UNIX)",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socket(38)",  # AF_ALG
        "socket.socket(40)",  # AF_VSOCK, to the hypervisor
        "socket.socket(proto=262)",  # MPTCP
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)",  # UDP-Lite
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",  # it can send to others
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_RAW)",  # the same, by another name
        "call(206, 1, 0)",  # io_setup
        "call(467, 0, 0, 0, 0, 0)",  # open_tree_attr
        "os.chmod('/tmp', 0o4755)",
        "os.chmod('/tmp', 0o2755)",
        "os.fchmod(os.open('/tmp', 0), 0o4755)",
        "call(452, -100, b'/tmp', 0o4755, 0)",  # fchmodat2
        "os.open('/tmp/x', os.O_CREAT | os.O_WRONLY, 0o4755)",
        "call(2, b'/tmp/x', os.O_CREAT, 0o2755)",  # open
        "call(85, b'/tmp/x', 0o4755)",  # creat
        "os.open('/tmp', os.O_TMPFILE | os.O_WRONLY, 0o4755)",
        "os.mknod('/tmp/x', 0o104755)",
        "os.kill(0, 0)",  # the group has processes of the host
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are of x86-64")
async def test_a_system_call_that_is_forbidden(forbidden: str) -> None:
    assert await tried(forbidden, terminal=True) == "PermissionError"


@pytest.mark.parametrize(
    "forbidden",
    [
        "os.memfd_create('x')",
        "call(29, 0, 4096, 0o1600)",  # shmget
        "call(68, 0, 0o1600)",  # msgget
        "call(253)",  # inotify_init
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are of x86-64")
async def test_what_no_limit_counts_is_not_for_one_process_alone(forbidden: str) -> None:
    assert await tried(forbidden, processes=False) == "PermissionError"


async def test_what_the_filter_lets_through() -> None:
    for allowed in (
        "os.chmod('/tmp', 0o1777)",
        "os.fchmod(os.open('/tmp/x', os.O_CREAT), 0o755)",
        "os.open('/dev/null', os.O_RDONLY, 0o4755)",  # it makes none: that is no mode
        "subprocess.run('true', stdin=subprocess.DEVNULL)",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)",
        "socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP)",
        "os.kill(0, 0)",
        "os.memfd_create('x')",
    ):
        assert await tried(allowed) == "done", allowed
    assert await tried("socket.socket(socket.AF_UNIX)", unix_sockets=True) == "done"


async def test_no_setting_and_no_key_of_the_kernel() -> None:
    """Settings belong to root, also to one that has no right: the runtime may be run so."""
    script = """
import os
for base, folders, files in os.walk("/proc/sys"):
    for name in files:
        try:
            os.close(os.open(os.path.join(base, name), os.O_WRONLY))
            print(base, name)
        except OSError:
            pass
for path in ("/proc/keys", "/proc/key-users"):
    try:
        print(open(path).read())
    except OSError:
        pass
for path in ("/proc/sysrq-trigger", "/proc/self/oom_score_adj", "/proc/pressure/memory"):
    try:
        open(path, "r+b")
        print(path)
    except OSError:
        pass
"""
    assert await said(script) == ""


class TestProcesses:
    async def test_none_where_none_are_allowed_but_threads(self) -> None:
        assert await tried("os.fork()", processes=False) == "PermissionError"
        assert await tried("subprocess.run('true')", processes=False) == "PermissionError"
        thread = "threading.Thread(target=print).start()"
        assert (await tried(thread, processes=False)).strip() == "done"
        assert await tried("socket.socketpair()", processes=False) == "done"
        assert await tried("subprocess.run('true')") == "done"


class TestLimits:
    async def test_memory(self) -> None:
        limits = Limits(memory=512 * MiB)
        assert await tried("bytearray(1 << 30)", limits=limits) == "MemoryError"

    async def test_files(self) -> None:
        limits = Limits(files=64)
        assert await tried("[open('/dev/null') for _ in range(99)]", limits=limits) == "OSError"

    async def test_descriptors_on_their_way_leave_room_for_the_host_s(self) -> None:
        """They count for a user: who fills that up keeps the host from starting workers."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        try:
            script = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
            assert int(await said(script, limits=Limits(files=4096))) + 253 < 1024
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    async def test_what_is_written(self) -> None:
        limits = Limits(scratch=1 * MiB)
        for folder in ("/tmp", "/home/plugin", "/run", "/dev/shm"):
            wrote = f"open('{folder}/x', 'wb').write(bytes(2 << 20))"
            assert await tried(wrote, limits=limits) == "OSError"

    async def test_no_core_file(self) -> None:
        assert (await said("import resource; print(resource.getrlimit(4))")).strip() == "(0, 0)"

    async def test_processes_also_of_root(self) -> None:
        """Wherever a control group can be made; ``doctor`` says where it can't."""
        bomb = """
import os, signal
children = []
try:
    while len(children) < 500:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError as error:
    print(error.strerror, len(children) < 40)
"""
        assert await said(bomb, limits=Limits(processes=40)) == (
            "Resource temporarily unavailable True\n"
        )

    async def test_a_group_is_gone_with_its_wall_and_one_that_was_left_with_the_next(
        self, monkeypatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(control_groups, "parent", lambda: tmp_path)
        ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout
        left, other = tmp_path / f"apex-creds-{ended.strip()}-1", tmp_path / "apex-creds-1-1"
        left.mkdir()
        other.mkdir()
        made = control_groups.make(7)
        assert (made / "pids.max").read_text() == "7"
        assert (left.exists(), other.exists()) == (False, True)

    async def test_a_group_of_another_pid_namespace_is_left_alone(
        self, monkeypatch, tmp_path: Path
    ) -> None:
        """The kernel shows its processes as 0, which ``kill`` takes for the caller's group."""
        monkeypatch.setattr(control_groups, "parent", lambda: tmp_path)
        killed: list[int] = []
        monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
        ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True).stdout
        other = tmp_path / f"apex-creds-{ended.strip()}-1"
        other.mkdir()
        (other / "cgroup.procs").write_text("0\n0\n")
        assert control_groups.make(7) is not None
        assert (killed, other.exists()) == ([], True)


class TestRefusals:
    async def test_no_folder_that_is_more_than_a_plugin_s(self) -> None:
        for folder in (
            *("/", "/proc/self", "/dev", "/run", "/etc", "/tmp", "/var"),
            *(str(Path.home()), str(Path.home() / "no-such")),
        ):
            with pytest.raises(IsolationError):
                await Wall(command=["true"], folders=[Path(folder)]).start()
        groups = control_groups.parent()
        assert groups is None or not [*groups.glob(f"apex-creds-{os.getpid()}-*")]

    async def test_no_folder_that_the_home_is_somewhere_in(
        self, monkeypatch, tmp_path: Path
    ) -> None:
        home = tmp_path / "people" / "of" / "here" / "me"
        home.mkdir(parents=True)
        monkeypatch.setenv("HOME", str(home))
        for folder in (home, *home.parents[:3]):
            with pytest.raises(IsolationError, match="more than a plugin's"):
                await Wall(command=["true"], folders=[folder]).start()
            with pytest.raises(IsolationError, match="more than a plugin's"):
                await Wall(command=["true"], writable=[folder]).start()

    async def test_no_folder_that_the_vault_is_in(self, monkeypatch, tmp_path: Path) -> None:
        guarded: set[Path] = set()  # and not what other tests have opened
        monkeypatch.setattr("apex_creds.fs.home._GUARDED", guarded)
        async with world_in(tmp_path) as world:
            home, (key,) = world.vault.home, [each for each in guarded if "key" in each.name]
            assert {home / "security", home / "credentials"} <= guarded
            for folder in (tmp_path, home, home / "security", home / "security" / "audit"):
                for seen in ({"folders": [folder]}, {"writable": [folder]}):
                    with pytest.raises(IsolationError, match="the vault's"):
                        await Wall(command=["true"], **seen).start()  # type: ignore[arg-type]
            with pytest.raises(IsolationError, match="the vault's"):
                await Wall(command=["true"], folders=[key.parent]).start()
            (home / "plugins" / "one").mkdir(parents=True)
            started = await Wall(command=["true"], folders=[home / "plugins" / "one"]).start()
            assert started.process.wait(300) == 0
            started.close()

    def test_no_bubblewrap(self, monkeypatch, fresh_probe) -> None:
        monkeypatch.setattr(sandbox.shutil, "which", lambda *_, **__: None)
        with pytest.raises(IsolationUnavailableError, match="not installed"):
            sandbox.bubblewrap()

    def test_another_system(self, monkeypatch, fresh_probe) -> None:
        monkeypatch.setattr(sandbox.sys, "platform", "darwin")
        with pytest.raises(IsolationUnavailableError, match="need Linux"):
            sandbox.bubblewrap()

    def test_a_bubblewrap_that_is_not_let_work(
        self, monkeypatch, tmp_path: Path, fresh_probe
    ) -> None:
        broken = tmp_path / "bwrap"
        broken.write_text(
            "#!/bin/sh\necho 'bwrap: No permissions to create namespace' >&2; exit 1"
        )
        broken.chmod(0o755)
        monkeypatch.setattr(sandbox.shutil, "which", lambda *_, **__: str(broken))
        with pytest.raises(IsolationUnavailableError, match="No permissions") as refused:
            sandbox.bubblewrap()
        assert "user.max_user_namespaces" in refused.value.hint

    def test_another_processor(self, monkeypatch, fresh_probe) -> None:
        assert not seccomp.is_known("riscv64")
        monkeypatch.setattr(seccomp.platform, "machine", lambda: "riscv64")
        with pytest.raises(IsolationUnavailableError, match="processor"):
            sandbox.bubblewrap()


@pytest.fixture
def fresh_probe():
    """What was found to work is not remembered."""
    sandbox.bubblewrap.cache_clear()
    yield
    sandbox.bubblewrap.cache_clear()


async def test_who_is_cancelled_while_it_starts_leaves_no_process_and_no_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A descriptor that is inherited by its number stays open until it has been."""
    begun, gate, made = threading.Event(), threading.Event(), []
    spawn = Wall._spawn

    def late(wall: Wall, program: str, control: int, streams: tuple) -> Walled:
        begun.set()
        gate.wait()
        os.fstat(control)
        made.append(spawn(wall, program, control, streams))
        return made[0]

    monkeypatch.setattr(Wall, "_spawn", late)
    starting = asyncio.ensure_future(Wall(command=["sleep", "1000"]).start())
    await anyio.to_thread.run_sync(begun.wait)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    gate.set()
    while not made or made[0].process.returncode is None:
        await asyncio.sleep(0)
    assert made[0].process.returncode in (-9, 137)


@pytest.mark.parametrize("late", range(0, 40, 2))
async def test_one_that_is_ended_while_it_begins_leaves_no_child(late: int) -> None:
    """Bubblewrap's child waits for its parent for ever, also for one that was killed."""
    wall, (control, theirs) = Wall(command=["sleep", "1000"]), socket.socketpair()
    control.settimeout(300)
    with control, theirs:
        walled = wall._spawn(sandbox.bubblewrap(), theirs.fileno(), (None, None, None))
        for _ in range(late * 1000):  # at some moment of its start
            os.getppid()
        walled.close()
        theirs.close()
        assert control.recv(1) == b"", "nobody has the other end any more"


def test_one_whose_caller_and_loop_are_gone_when_it_is_there_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawn, entered, go_on, made = Wall._spawn, threading.Event(), threading.Event(), []

    def late(self: Wall, *given: Any) -> Walled:
        entered.set()
        go_on.wait()
        made.append(spawn(self, *given))
        return made[0]

    async def cancelled() -> None:
        starting = asyncio.ensure_future(Wall(command=["sleep", "1000"]).start())
        while not entered.is_set():
            await asyncio.sleep(0)
        starting.cancel()

    monkeypatch.setattr(Wall, "_spawn", late)
    asyncio.run(cancelled())
    go_on.set()
    while not made or made[0].process.returncode is None:
        os.sched_yield()
