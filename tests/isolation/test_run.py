"""Programs behind the wall, with placeholders: by base URL and by proxy."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from apex_creds import CredentialMiddleware
from apex_creds.isolation import Isolation
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.programs import run_program
from apex_creds.isolation.sandbox import Wall, Walled
from apex_creds.model import ApiKey
from tests.isolation.programs import output_of
from tests.isolation.test_red_team import below, holds
from tests.isolation.tls import Loopback, loopback
from tests.support.commands import PROGRAM, under_terminal
from tests.support.vendor import SECRET
from tests.support.worlds import World, manifest_for

NEED = ({"name": "OPENAI_API_KEY"},)


@pytest.fixture
async def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Loopback]:
    async with loopback(tmp_path, monkeypatch) as made:
        yield made


async def allow(world: World, fake: Loopback, name: str = "OPENAI_API_KEY", **how: str) -> None:
    await world.vault.put(name, ApiKey(SECRET), origins=[fake.origin], **how)
    await world.vault.grant("demo", name)


async def run(world: World, fake: Loopback, *command: str) -> str:
    return await output_of(world, *command, needs=NEED, dialer=fake.dialer)


async def test_a_program_has_placeholders_and_sends_with_the_key(
    world: World, fake: Loopback
) -> None:
    await allow(world, fake)
    script = """
import json, os, urllib.request
key, base = os.environ["OPENAI_API_KEY"], os.environ["OPENAI_BASE_URL"]
request = urllib.request.Request(base + "/models", headers={"Authorization": "Bearer " + key})
print(json.dumps([key, dict(os.environ), json.load(urllib.request.urlopen(request))]))
"""
    key, environment, answer = json.loads(await run(world, fake, sys.executable, "-c", script))
    assert key.startswith("sk-proj-apexCredsPlaceholder")
    assert answer == {"path": "/v1/models"}
    assert SECRET not in str(environment)
    assert [event.origin for event in world.events("redeem")] == [fake.origin]
    assert [event.action for event in world.events("invocation")] == ["run"]
    assert world.middleware.broker.open_leases == 0


async def test_curl_goes_by_the_proxy_with_a_certificate_of_the_run(
    world: World, fake: Loopback
) -> None:
    await allow(world, fake)
    script = f'curl -sS -H "Authorization: Bearer $OPENAI_API_KEY" {fake.origin}/v1/by-proxy'
    said = await run(world, fake, "/bin/sh", "-c", script)
    assert json.loads(said) == {"path": "/v1/by-proxy"}
    (_, _, headers, _) = fake.requests[-1]
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert fake.requests[-1][2]["host"] == fake.origin[8:]


async def test_elsewhere_there_is_no_tunnel_and_no_certificate(
    world: World, fake: Loopback
) -> None:
    await allow(world, fake)
    script = f"""
curl -sS -o /dev/null -w '%{{http_connect}}\\n' https://evil.example.com/ 2>/dev/null
curl -sS -o /dev/null -w '%{{http_connect}}\\n' https://{fake.host}:1/ 2>/dev/null
curl -sS --noproxy '*' -o /dev/null -w '%{{http_code}}\\n' https://1.1.1.1/ 2>/dev/null
curl -sS -o /dev/null --connect-to ::{fake.host}:{fake.port} -w '%{{http_code}}\\n' \\
    https://evil.example.com/ 2>/dev/null
true
"""
    said = await run(world, fake, "/bin/sh", "-c", script)
    assert said.split() == ["403", "403", "000", "000"]
    assert fake.requests == []
    asked = [(event.method, event.origin) for event in world.events("denial")]
    assert asked == [
        ("CONNECT", "https://evil.example.com"),
        ("CONNECT", f"https://{fake.host}:1"),
    ]


async def test_an_address_that_is_inside_is_not_dialled(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    looked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        looked.append(host)
        return ["93.184.216.34", "169.254.169.254"]

    fake.dialer = Dialer(resolve=resolve)
    script = f'curl -sS -H "Authorization: Bearer $OPENAI_API_KEY" {fake.origin}/v1'
    said = await run(world, fake, "/bin/sh", "-c", script)
    assert "169.254.169.254, which is not public" in said
    assert looked == [fake.host]
    assert fake.requests == []


async def test_the_exit_status_is_the_program_s(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    wall = Wall(command=["/bin/sh", "-c", "exit 7"])
    assert await run_program(world.middleware, manifest_for(*NEED), wall) == 7
    wall = Wall(command=["/bin/sh", "-c", "kill -9 $$"])
    assert await run_program(world.middleware, manifest_for(*NEED), wall) in (-9, 137)


@pytest.mark.parametrize("answer", ["once", "no"])
async def test_a_person_is_asked_before_the_program_begins(
    world: World, fake: Loopback, tmp_path: Path, answer: str
) -> None:
    await world.vault.put("OPENAI_API_KEY", ApiKey(SECRET), origins=[fake.origin])
    (tmp_path / "plugin").mkdir()
    metadata = {"id": "demo", "version": "1.0.0", "credentials": list(NEED)}
    (tmp_path / "plugin" / "plugin.json").write_text(json.dumps(metadata))
    command = [
        *("--home", str(world.where / "home"), "run", "--plugin", "demo"),
        *("--plugin-dir", str(tmp_path / "plugin"), "--", "/bin/sh", "-c"),
        'echo "it has $OPENAI_API_KEY"',
    ]

    def person() -> tuple[int, str]:
        terminal = under_terminal(*command)
        terminal.expect("Allow?").type(f"{answer}\n")
        return terminal.end(), terminal.screen

    code, screen = await asyncio.to_thread(person)
    assert (code, "it has sk-proj-apexCreds" in screen) == (
        (0, True) if answer == "once" else (code or 1, False)
    )
    if answer == "no":
        alone = await asyncio.to_thread(
            subprocess.run,
            [*PROGRAM, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=True,
            timeout=480,
        )
        assert alone.returncode != 0
        assert "no terminal" in alone.stderr
        assert "it has" not in alone.stdout


async def test_the_manifest_names_variables(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    await allow(world, fake, "other")
    needs = (
        {"name": "OPENAI_API_KEY", "variables": ["LLM_KEY", "OTHER_API_KEY"]},
        {"name": "other"},
    )
    script = """
import os
values = [os.environ[name] for name in ("LLM_KEY", "OTHER_API_KEY", "OPENAI_API_KEY")]
print(values.count(values[0]), "OTHER_BASE_URL" in os.environ)
"""
    assert await output_of(world, sys.executable, "-c", script, needs=needs) == "3 True\n"


@pytest.mark.parametrize("says", ["metadata", "policy"])
@pytest.mark.parametrize("isolation", [None, Isolation.BUBBLEWRAP])
async def test_a_program_satisfies_what_requires_isolation(
    world: World, fake: Loopback, says: str, isolation: Isolation | None
) -> None:
    await allow(world, fake)
    manifest = manifest_for(*NEED)
    if says == "metadata":
        manifest = msgspec.structs.replace(manifest, isolated=True)
    else:
        policy = world.where / "home" / "security" / "policy.toml"
        policy.write_text('version = 1\n[isolation]\nrequired = "demo"\n')
        policy.chmod(0o600)
    async with CredentialMiddleware(world.vault, isolation=isolation) as middleware:
        wall = Wall(command=["/bin/sh", "-c", "exit 3"])
        assert await run_program(middleware, manifest, wall) == 3


async def test_a_cancelled_run_leaves_nothing(world: World, fake: Loopback) -> None:
    await allow(world, fake)
    began: list[object] = []
    task = asyncio.create_task(
        run_program(
            world.middleware,
            manifest_for(*NEED),
            Wall(command=["sleep", "1000"]),
            began=began.append,
        )
    )
    while not began:
        await asyncio.sleep(0)
    (walled,) = began
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert walled.process.poll() is not None  # type: ignore[attr-defined]
    assert world.middleware.broker.open_leases == 0


async def test_the_command_runs_what_it_is_given(
    world: World, fake: Loopback, tmp_path: Path
) -> None:
    await allow(world, fake)
    home = str(world.where / "home")
    (tmp_path / "work").mkdir()
    script = 'printf %s "$OPENAI_API_KEY" >made; exit 5'
    work = str(tmp_path / "work")
    done = await asyncio.to_thread(
        subprocess.run,
        [
            *(*PROGRAM, "--home", home, "run", "--plugin", "demo", "--write", work),
            *("--", "/bin/sh", "-c", script),
        ],
        cwd=tmp_path / "work",
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert (done.stderr, done.returncode) == ("", 5)
    assert "Placeholder" in (tmp_path / "work" / "made").read_text()
    nobody = await asyncio.to_thread(
        subprocess.run,
        [*PROGRAM, "--home", home, "run", "--plugin", "nobody", "--", "true"],
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert nobody.returncode == 8
    assert "granted nothing" in nobody.stderr


async def test_the_key_is_not_in_the_program_s_memory(world: World, fake: Loopback) -> None:
    """Though the service sends it back, in header and body; the search finds what is there."""
    await allow(world, fake)
    fake.answer = lambda *_: {"echo": SECRET, "text": "is-in-the-answer"}
    script = """
import os, signal, urllib.request
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/echo")
request.add_header("Authorization", "Bearer " + os.environ["OPENAI_API_KEY"])
answer = urllib.request.urlopen(request).read()
print("ready", flush=True)
signal.pause()
"""
    reading, writing = os.pipe()
    found: dict[str, list[int]] = {}

    def search(walled: Walled) -> None:
        with open(reading, "rb") as said:
            assert said.readline() == b"ready\n"
        for text in (SECRET, "is-in-the-answer", "PlaceholderNotASecret"):
            pids = [pid for pid in below(walled.process.pid) if holds(pid, text.encode())]
            found[text] = pids
        walled.process.kill()

    searching: list[asyncio.Future[None]] = []
    loop = asyncio.get_running_loop()
    await run_program(
        world.middleware,
        manifest_for(*NEED),
        Wall(command=[sys.executable, "-c", script]),
        dialer=fake.dialer,
        began=lambda walled: searching.append(loop.run_in_executor(None, search, walled)),
        stdout=writing,
    )
    await searching[0]
    os.close(writing)
    assert found["is-in-the-answer"]
    assert found["PlaceholderNotASecret"]
    assert found[SECRET] == []
    assert [event.detail for event in world.events("leak")] == ["response"]
