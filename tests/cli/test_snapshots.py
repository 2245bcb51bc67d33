"""What every command prints and ends with, byte for byte but for what differs each time.

A file in ``snapshots/`` is a script and its record: lines that begin with ``$`` are run
(``<<<`` is standard input), those with ``%`` are steps of this module; what follows is standard
output, standard error with ``! `` before it, and the exit code where it is not 0.
``SNAPSHOTS=write`` writes them anew.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import msgspec
import pyotp
import pytest
import typer.main
from typer.testing import CliRunner

from apex_creds import Vault
from apex_creds.auth.access_document import PendingRequest
from apex_creds.auth.enrolment import Factors
from apex_creds.cli.app import tree
from apex_creds.policy.consent import ConsentRequest
from apex_creds.policy.manifest import Access
from tests.cli.conftest import Program
from tests.support import old

FOLDER = Path(__file__).with_name("snapshots")
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.txt") if path.stem != "help")

POLICY = """\
version = 1
[levels.normal]
decision = "allow"
[levels.critical]
decision = "ask"
second_factor = 15
[[rules]]
id = "no-night"
decision = "deny"
plugin = "night*"
[[rules]]
id = "weather"
decision = "allow"
plugin = "weather"
credential = "open*"
[[rules]]
id = "all"
decision = "ask"
[[limits]]
per = "pair"
of = "redeems"
limit = "100/minute"
"""
DOTENV = "OPENAI=sk-1\nEMPTY=\nREF=${OTHER}\nbad name=1\nGITHUB='gh-2'\n"
CHANGING = [
    (r"(?m)[ \t]+$", ""),
    (r"20\d\d-\d\d-\d\dT[\d:.]+Z", "<time>"),
    (r"20\d{6}T\d{6}Z-[0-9a-f]{4}", "<stamp>"),
    (r"\b[0-9a-f]{16,}\b", "<hex>"),
    (r"[A-Za-z0-9+/]{42,}={0,2}", "<base64>"),
    (r"\b[A-Z2-7]{32}\b", "<seed>"),
    (r"(\b[0-9A-Z]{4}-){5}[0-9A-Z]{4}\b", "<code>"),
    (r"\b1[789]\d{8}(\.\d+)?\b", "<seconds>"),
    (r"\(\d+ seconds left\)", "(<n> seconds left)"),
    # A slow machine has one for two events now and then.
    (r"by \d+ checkpoints", "by <n> checkpoints"),
    (r'"checkpoints": \d+', '"checkpoints": <n>'),
    (r'"signed": \d+', '"signed": <n>'),
    # What the machine is like, and not what the program does.
    (
        r"verified: zeros were read back[^\n]*|tried, but this file system[^\n]*",
        "<verified or tried>",
    ),
    (r"\((overwritten|copies may remain)\)", "(<overwritten or tried>)"),
    (r"\b\d+\.\d+\.\d+\b", "<version>"),
    (
        r"(?m)^ (memory locking|core dumps|isolation)( +)\w+ .*|^(memory \w+|core \w+): .*\n",
        r" \1",
    ),
    (r'("name": "(?:memory locking|core dumps|isolation)"),(\n.*){3}', r"\1"),
]
ROWS = [(r"(?m)^ ?─+$", "─"), (r"(?m)(?<=\S) {2,}", "  ")]
"""Columns are as wide as what is in them."""


def shown(text: str, names: dict[str, str], *, rows: bool) -> str:
    for value, name in sorted(names.items(), key=lambda item: -len(item[0])):
        text = text.replace(value, name)
    for pattern, name in [*CHANGING, *(ROWS if rows else ())]:
        text = re.sub(pattern, name, text)
    return text


@dataclass
class World:
    cli: Program
    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    seed: str = ""
    codes: int = 0

    @property
    def tmp(self) -> Path:
        return self.cli.home.parent

    def name(self, key: str, value: str) -> None:
        self.values[key] = value
        self.names[value] = f"<{key}>"

    def prepare(self) -> None:
        self.name("home", str(self.cli.home))
        self.name("key", str(self.cli.key))
        self.name("tmp", str(self.tmp))
        self.cli.monkeypatch.setenv("LOGNAME", "operator")
        self.cli.monkeypatch.setenv("COLUMNS", "80")
        for path, text in {
            "demo.env": DOTENV,
            "policy.toml": POLICY,
            "bad.toml": "x = ",
        }.items():
            (self.tmp / path).write_text(text)
            (self.tmp / path).chmod(0o600)
        (self.tmp / "plugin").mkdir(mode=0o755)
        (self.tmp / "plugin" / "main.py").write_text("x = 1\n")

    def run(self, script: str) -> str:
        lines = [line for line in script.splitlines() if line.startswith(("$ ", "% ", "# "))]
        return "\n".join("\n".join(self._line(line)) for line in lines) + "\n"

    def _line(self, line: str) -> Iterator[str]:
        yield line
        kind, _, rest = line.partition(" ")
        if kind == "#":
            return
        if kind == "%":
            STEPS[rest](self)
            return
        words, _, stdin = rest.partition(" <<< ")
        if "{code}" in stdin:
            self.values["code"] = self.code()
        filled = [word.format(**self.values) for word in shlex.split(words)]
        done = self.cli(
            *filled, stdin=stdin.format(**self.values).replace("\\n", "\n").encode()
        )
        rows = "Usage: " not in done.out and "--json" not in filled
        yield from shown(done.out, self.names, rows=rows).splitlines()
        yield from (
            f"! {each}" for each in shown(done.err, self.names, rows=False).splitlines()
        )
        if done.code:
            yield f"= {done.code}"

    def code(self) -> str:
        """A code that was not used before; those of this step and the next are accepted."""
        assert self.codes < 2, "a script has two codes"
        self.codes += 1
        return pyotp.TOTP(self.seed).at(int(time.time()) + 30 * (self.codes - 1))

    def vault(self, work: Callable[[Vault], object]) -> None:
        async def run() -> None:
            async with await Vault.unseal(self.cli.home) as vault:
                await work(vault)

        anyio.run(run)


def enrol(world: World) -> None:
    async def work(vault: Vault) -> None:
        factors = Factors(vault)
        with factors.begin("phone") as new:
            world.seed = new.base32()
            earlier = pyotp.TOTP(world.seed).at(int(time.time()) - 30)
            await factors.confirm(new, earlier)

    world.vault(work)


def ask(world: World) -> None:
    async def work(vault: Vault) -> None:
        access = Factors(vault).access
        now = access.moment()
        request = ConsentRequest(
            plugin="weather",
            version="1.2.0",
            action="forecast",
            credential="openai",
            level="sensitive",
            scopes=("read",),
            origins=("https://api.example.com",),
            access=Access.REVEAL,
            reason="to ask\x1b[2J the model",
            why="not_granted",
        )
        made = PendingRequest(
            id="0a1b2c3d", request=request, asked=now.wall, expires=now.wall + 300, moment=now
        )
        await access.change(lambda s, _: msgspec.structs.replace(s, requests=(made,)))

    world.vault(work)


def legacy(world: World) -> None:
    world.cli.monkeypatch.setenv(old.VARIABLE, old.ENV[old.VARIABLE])
    old.fernet_file(world.tmp)


def open_a_file(world: World) -> None:
    (world.cli.home / "credentials/api_keys.enc").chmod(0o644)


def exported(world: World) -> None:
    done = world.cli("recovery", "export", "--force", "-k", "2", "-n", "2")
    shares = [line for line in done.out.splitlines() if not line.startswith("#")]
    world.values["shares"] = "\n".join(shares)


def keyed(world: World) -> None:
    done = world.cli("client", "keygen", str(world.tmp / "client.key"))
    world.values["public"] = done.out.strip()


def policed(world: World) -> None:
    (world.cli.home / "security/policy.toml").write_text(POLICY)
    (world.cli.home / "security/policy.toml").chmod(0o600)


def tampered(world: World) -> None:
    [log] = (world.cli.home / "security/audit").glob("*.jsonl")
    data = log.read_bytes()
    log.write_bytes(data.replace(b'"openai"', b'"openal"', 1))


STEPS: dict[str, Callable[[World], None]] = {
    "a factor is enrolled": enrol,
    "a plugin asks": ask,
    "an older program was here": legacy,
    "a file is open to others": open_a_file,
    "the master key is exported": exported,
    "a client has a key": keyed,
    "there is a policy": policed,
    "the log is changed": tampered,
}


def compare(path: Path, text: str) -> None:
    if os.environ.get("SNAPSHOTS") == "write":
        path.write_text(text, encoding="utf-8")
    assert text.splitlines() == path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", SCRIPTS)
def test_commands_print_what_they_always_did(bare: Program, name: str) -> None:
    world = World(bare)
    world.prepare()
    path = FOLDER / f"{name}.txt"
    compare(path, world.run(path.read_text(encoding="utf-8")))


def commands(command: typer.main.TyperGroup, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


def test_help_is_what_it_always_was() -> None:
    env = {"COLUMNS": "100", "NO_COLOR": "1"}  # not TERMINAL_WIDTH: typer reads that once
    texts = []
    for path in commands(typer.main.get_command(tree())):
        found = CliRunner().invoke(tree(path[0] if path else None), [*path, "--help"], env=env)
        assert found.exit_code == 0, found.exception
        texts.append(f"$ {' '.join([*path, '--help'])}\n{shown(found.output, {}, rows=False)}")
    compare(FOLDER / "help.txt", "\n".join(texts))
