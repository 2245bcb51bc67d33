"""What is left when the host is killed, and what ends a program that uses up its limits."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apex_creds.isolation import control_groups
from apex_creds.isolation.programs import run_program
from apex_creds.isolation.sandbox import Limits, MiB, Wall
from apex_creds.model import ApiKey
from tests.isolation.everyday_plugin import PLUGINS
from tests.isolation.test_red_team import below
from tests.isolation.tls import Loopback, loopback
from tests.support.commands import PROGRAM
from tests.support.vendor import SECRET
from tests.support.worlds import World, manifest_for

NEED = {"name": "OPENAI_API_KEY"}
REPOSITORY = Path(__file__).parents[2]
HOST = f"""
import anyio, sys
from pathlib import Path
sys.path.insert(0, {str(REPOSITORY)!r})
from apex_creds import CredentialMiddleware, Vault
from apex_creds.isolation import Isolation, plugin_function
from apex_creds.policy.manifest import parse_manifest

async def main():
    home, ready = map(Path, sys.argv[1:])
    async def begun():
        ready.write_text("ready")
    manifest = parse_manifest({{"id": "demo", "credentials": [{NEED!r}]}})
    hangs = plugin_function({str(PLUGINS)!r}, "everyday:hang")
    async with await Vault.unseal(home) as vault:
        async with CredentialMiddleware(vault, isolation=Isolation.BUBBLEWRAP) as middleware:
            await middleware.invoke(manifest, hangs, begun)

anyio.run(main)
"""


@pytest.fixture
async def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loopback]:
    async with loopback(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
async def allowed(world: World, fake: Loopback) -> World:
    await world.vault.put(NEED["name"], ApiKey(SECRET), origins=[fake.origin])
    await world.vault.grant("demo", NEED["name"])
    return world


def run_command(home: Path, work: Path, script: str) -> list[str]:
    """``apex-creds run`` of a script of the shell that may write to a folder."""
    started = [*PROGRAM, "--home", str(home), "run", "--plugin", "demo", "--write", str(work)]
    return [*started, "--", "/bin/sh", "-c", script]


def named_in(folder: Path) -> list[str]:
    """Mounts and Unix sockets in there; what others on this machine have is theirs."""
    tables = [Path(f"/proc/{name}").read_text() for name in ("self/mounts", "net/unix")]
    return [line for table in tables for line in table.splitlines() if str(folder) in line]


@pytest.mark.parametrize("which", ["run", "middleware"])
async def test_a_host_that_is_killed_leaves_nothing(
    allowed: World, tmp_path: Path, which: str
) -> None:
    home, work, temporary = allowed.where / "home", tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    ready = work / "ready"
    os.mkfifo(ready)
    if which == "run":
        command = run_command(home, work, "sleep 1000 & echo ready >ready; wait")
    else:
        command = [sys.executable, "-c", HOST, str(home), str(ready)]
    files = {path for path in home.rglob("*") if "audit" not in path.parts}
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, cwd=work, env=environment) as host:
        try:
            assert await asyncio.to_thread(ready.read_text)
            inside = [*below(host.pid)][1:]
            assert len(inside) >= 3
            watched = [os.pidfd_open(pid) for pid in inside]
        finally:
            host.kill()
    for each in watched:  # readable when it has ended
        assert await asyncio.to_thread(select.select, [each], [], [], 300)
        os.close(each)
    assert named_in(tmp_path) == []
    assert list(temporary.iterdir()) == []
    assert {path for path in home.rglob("*") if "audit" not in path.parts} <= files
    again = run_command(home, work, "exit 4")
    done = await asyncio.to_thread(subprocess.run, again, cwd=work, capture_output=True)
    assert (done.stderr, done.returncode) == (b"", 4), "nothing of it is in the way"
    groups = control_groups.parent()
    assert groups is None or not [*groups.glob(f"apex-creds-{host.pid}-*")]


BOMB = """
import os, signal
while True:
    if os.fork() == 0:
        signal.pause()
"""


@pytest.mark.parametrize(
    ("script", "limits", "says"),
    [
        (BOMB, Limits(memory=None, processes=40), b"BlockingIOError"),
        ("bytearray(1 << 30)", Limits(memory=None, data=256 * MiB), b"MemoryError"),
        ("open('x', 'wb').write(bytes(9 << 20))", Limits(scratch=MiB), b"No space left"),
        ("while True: pass", Limits(cpu=1), b""),
    ],
    ids=["processes", "memory", "files", "time"],
)
async def test_a_program_that_uses_up_a_limit_ends_with_an_error(
    allowed: World, script: str, limits: Limits, says: bytes
) -> None:
    reading, writing = os.pipe()
    wall = Wall(
        command=["/bin/sh", "-c", 'exec "$0" -c "$1" 2>&1', sys.executable, script],
        limits=limits,
    )
    with open(reading, "rb") as output:
        said = asyncio.create_task(asyncio.to_thread(output.read))
        status = await run_program(allowed.middleware, manifest_for(NEED), wall, stdout=writing)
        os.close(writing)
        assert says in await said
    assert status != 0
    assert allowed.middleware.broker.open_leases == 0


async def test_the_command_s_own_limit_of_memory(allowed: World, tmp_path: Path) -> None:
    script = f"{sys.executable} -c 'bytearray(5 << 30)'"
    (tmp_path / "work").mkdir()
    command = run_command(allowed.where / "home", tmp_path / "work", script)
    done = await asyncio.to_thread(subprocess.run, command, cwd=tmp_path, capture_output=True)
    assert done.returncode == 1
    assert b"MemoryError" in done.stderr
