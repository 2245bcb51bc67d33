"""What every command prints with ``--json``: one shape, which docs/JSON.md states.

Every command is run, in the lives of a few vaults; what they printed is compared with the page.
``JSON_PAGE=write`` writes the page's shapes anew.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyotp
import pytest
import typer.main

from apex_creds import CredentialMiddleware, Vault
from apex_creds.cli.app import tree
from apex_creds.policy.manifest import parse_manifest
from apex_creds.rotators import configuration
from apex_creds.rotators.protocol import Mode
from apex_creds.rotators.rotation import Rotations
from tests.cli.conftest import Program
from tests.cli.test_snapshots import STEPS, World, commands
from tests.support.commands import under_terminal
from tests.support.fake_rotator import ORIGIN, URI, FakeRotator, Provider
from tests.support.http_servers import serving

PAGE = Path(__file__).parents[2] / "docs/JSON.md"
START, END = "```text\n", "```\n"
TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z")
LIVES = """\
init --master file:{key}
list
grants
set openai --origin https://api.openai.com --expires 2090-01-01 <<< sk-1
set mail --kind basic --for alice <<< user\\npassword
set raw --kind generic <<< bytes
list
show openai
show mail --for alice
edit openai --sensitivity normal
get openai --reveal --force
get raw --reveal --force
get mail --for alice --reveal --force
get mail --for alice --reveal --force --part user
grant weather openai --scope read --until 2090-01-01
grant night openai
% a plugin has a folder
grant folder openai --plugin-dir {tmp}/folder
grant night mail --for alice --sign
grants
audit tail
audit tail --names
revoke night
requests
% a plugin asks
requests
approve 0a1b2c3d --until 2090-01-01
% a plugin asks
approve 0a1b2c3d
% a plugin asks
approve 0a1b2c3d --session
% a plugin asks
deny 0a1b2c3d
checksum {tmp}/plugin
policy check
policy check {tmp}/policy.toml
policy check {tmp}/bad.toml
policy explain weather openai
policy explain night openai forecast --scope read --origin https://api.example.com
policy explain weather nothing
% there is a policy
policy check
policy explain weather openai
policy explain night openai --at 2030-12-31T18:00Z
rm raw --yes
import {tmp}/demo.env
status
doctor
lockdown --reason drill --keep-grants
policy explain weather openai
status
unlock
% there is a provider
connect {tmp}/provider.json --name token --client --client-id me --origin https://api.example.com
show token
list
status
disconnect token --yes

init --master file:{key}
set openai <<< sk-1
set mail --service smtp <<< sk-2
rotation status
rotation history
rotate dek
rotate dek --service smtp
rotate kek
rotate dek --compromised --service smtp
rotate master
rotation status
rotation policy dek
rotation policy dek --interval 30d --grace 7d --max-encryptions 9 --jitter 0
rotation policy kek --interval never --cron "0 3 * * sun"
events emit operator_request
events emit plugin_removed plugin=weather
rotation history
rotation status
% a key is replaced at its provider
show openai
rotate credential openai
show openai
rotation status
list
status
recovery list
recovery keygen {tmp}/recovery.key
% the master key is exported
recovery list
recovery verify <<< {shares}
recovery list
recovery restore <<< {shares}
recovery reset-master <<< {shares}
% the master key is lost
recovery reset-master <<< {shares}

init --master file:{key} --hashed-names
set openai <<< sk-1
factor list
% a factor is enrolled
factor list
recovery-codes --force <<< {code}
factor list
factor verify --plugin weather --credential openai <<< {code}
factor remove phone <<< {recovery}
client list
client keygen {tmp}/client.key
client public {tmp}/client.key
client enrol robot {public} --credential openai --until 2090-01-01
client list
client revoke robot
audit verify
audit verify --incremental
audit accept-rollback --reason moved
% a plugin has run
audit show {lease}
copy --to {tmp}/copied
copy --to sqlite:///{tmp}/vault.db
db status --storage sqlite:///{tmp}/vault.db
--home {tmp}/joined init --join --storage sqlite:///{tmp}/vault.db
db upgrade --storage sqlite:///{tmp}/new.db
backup {tmp}/made
restore {tmp}/made --reason drill --check
restore {tmp}/made --reason drill

init --master file:{key}
migrate off
% an older program was here
migrate --dry-run
migrate
migrate finish
migrate on
migrate

demo --calls 30
"""


# -- steps that no command takes -----------------------------------------------------------


def provided(world: World) -> None:
    """An authorization server, with a token for whoever asks."""
    (world.tmp / "provider.json").write_text(
        json.dumps(
            {
                "name": "own",
                "token_endpoint": f"{world.values['server']}/token",
                "revocation_endpoint": f"{world.values['server']}/revoke",
            }
        )
    )


def answer(asked: BaseHTTPRequestHandler, _: bytes) -> tuple[int, bytes, dict[str, str]]:
    token = {"access_token": "at-1", "token_type": "Bearer", "expires_in": 300, "scope": "read"}
    return 200, json.dumps(token).encode(), {"Content-Type": "application/json"}


def replaced(world: World) -> None:
    """The provider of openai's key takes new ones from now on."""
    provider = Provider(valid={b"sk-1"})

    def find(uri: str) -> FakeRotator:
        return FakeRotator(provider, Mode.DUAL)

    patch = world.cli.monkeypatch.setattr
    patch(configuration, "rotator_from_uri", find)
    patch("apex_creds.rotators.rotation.rotator_from_uri", find)
    patch(Rotations.__init__, "__kwdefaults__", {"find": find})
    options = ("--origin", ORIGIN, "--rotator", URI, "--rotate-every", "30d")
    assert world.cli("edit", "openai", *options).code == 0


def lost(world: World) -> None:
    world.cli.key.unlink()


def used(world: World) -> None:
    async def work(vault: Vault) -> None:
        await vault.grant("weather", "openai")
        manifest = parse_manifest(
            {"id": "weather", "version": "1", "credentials": [{"name": "openai"}]}
        )

        async def use() -> None:
            pass

        async with CredentialMiddleware(vault) as middleware:
            await middleware.invoke(manifest, use)

    world.vault(work)
    events = world.cli("audit", "tail", "--json").json()
    world.values["lease"] = next(event["lease"] for event in events if event.get("lease"))


def foldered(world: World) -> None:
    (world.tmp / "folder").mkdir(mode=0o755)
    manifest = {"id": "folder", "version": "1", "credentials": [{"name": "openai"}]}
    (world.tmp / "folder" / "plugin.json").write_text(json.dumps(manifest))


OWN = {
    "a plugin has a folder": foldered,
    "there is a provider": provided,
    "a key is replaced at its provider": replaced,
    "the master key is lost": lost,
    "a plugin has run": used,
}


# -- shapes --------------------------------------------------------------------------------


class Shape:
    """What values look like: of one kind, or of several."""

    def __init__(self) -> None:
        self.plain: set[str] = set()
        self.items: Shape | None = None
        self.fields: dict[str, Shape] = {}
        self.seen = Counter[str]()
        self.objects = 0

    def add(self, value: object) -> None:
        if isinstance(value, dict):
            self.objects += 1
            self.seen.update(value.keys())
            for name, inner in value.items():
                self.fields.setdefault(name, Shape()).add(inner)
        elif isinstance(value, list):
            self.items = self.items or Shape()
            for inner in value:
                self.items.add(inner)
        else:
            self.plain.add(word_for(value))

    def text(self) -> str:
        """As the page shows it; ``name?`` may be left out."""
        words = sorted(self.plain - {"null"})
        if self.objects:
            names = {n: f"{n}{'?' if self.seen[n] < self.objects else ''}" for n in self.fields}
            members = (f"{names[name]}: {shape.text()}" for name, shape in self.fields.items())
            words.append(f"{{{', '.join(members)}}}")
        if self.items is not None:
            words.append(f"[{self.items.text()}]")
        return " | ".join([*words, *(self.plain & {"null"})])


def word_for(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        # Seconds since 1970: a time that was not written as one.
        assert not 1.5e9 < value < 1e10, value
        return "number"
    if value is None:
        return "null"
    assert isinstance(value, str)
    return "time" if TIME.fullmatch(value) else "text"


SHARED = {
    "credential": ("set", "list", "show", "edit", "connect"),
    "grant": ("grant", "grants", "revoke"),
    "client": ("client enrol", "client list", "client revoke"),
    "event": ("audit tail", "audit show"),
    "answer": ("approve", "deny"),
}
"""What several commands print, or lists of it; by the name that the page gives it."""


def page(outputs: Mapping[str, Sequence[object]]) -> str:
    """The commands and what they printed, as the page states it."""
    lines: dict[str, str] = {}
    for name, several in SHARED.items():
        shared = Shape()
        for each in several:
            lists = {isinstance(value, list) for value in outputs[each]}
            assert len(lists) == 1, each
            lines[each] = f"[{name}]" if lists == {True} else name
            for value in outputs[each]:
                for one in value if isinstance(value, list) else [value]:
                    shared.add(one)
        lines[f"{name} ="] = shared.text()
    for path, values in outputs.items():
        if path not in lines:
            shape = Shape()
            for value in values:
                shape.add(value)
            lines[path] = shape.text()
    order = [*(f"{name} =" for name in SHARED), *outputs]
    return "\n".join(
        textwrap.fill(
            f"{name:24}{lines[name]}".replace(": ", ":\N{NO-BREAK SPACE}"),
            width=92,
            subsequent_indent=" " * 24,
            break_long_words=False,
            break_on_hyphens=False,
        ).replace("\N{NO-BREAK SPACE}", " ")
        for name in order
    )


# -- the test ------------------------------------------------------------------------------


def with_json() -> Iterator[tuple[str, ...]]:
    root = typer.main.get_command(tree())
    for path in commands(root):
        command = root
        for name in path:
            command = command.commands[name]
        if any("--json" in parameter.opts for parameter in command.params):
            yield path


LEAVES = list(with_json())


def enrol_an_app(world: World) -> object:
    """As a person does it: what the program shows is typed into the app, then its code."""
    options = ("factor", "enrol", "--no-qr", "--json")
    asked = under_terminal("--home", str(world.cli.home), *options).expect("Code of the new")
    seed = re.search(r"Secret: (\w+)", asked.screen)
    assert seed
    asked.type(pyotp.TOTP(seed[1]).now() + "\n")
    assert asked.end() == 0
    return json.loads(asked.screen[asked.screen.index("{") :])


def printed(world: World, line: str) -> tuple[tuple[str, ...], object]:
    """Which command a line of a life is, and what it printed."""
    words, _, stdin = line.partition(" <<< ")
    if "{code}" in stdin:
        world.values["code"] = world.code()
    filled = [word.format(**world.values) for word in shlex.split(words)]
    stdin = stdin.format(**world.values).replace("\\n", "\n")
    done = world.cli(*filled, "--json", stdin=stdin.encode())
    assert done.code == 0 or done.out, (line, done)
    own = filled[2:] if filled[0] == "--home" else filled
    (path,) = (path for path in LEAVES if tuple(own[: len(path)]) == path)
    value = done.json()
    if path == ("recovery-codes",):
        world.values["recovery"] = value["codes"][0]
    elif path == ("client", "keygen"):
        world.values["public"] = value["public"]
    return path, value


def test_every_command_prints_the_json_that_the_page_states(
    bare: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs: dict[str, list[object]] = {" ".join(path): [] for path in LEAVES}
    with serving(answer) as server:
        for number, life in enumerate(LIVES.split("\n\n")):
            where = bare.home.parent / str(number)
            where.mkdir(mode=0o700)
            own = Program(where / "vault", where / "master.key", bare.capsys, monkeypatch)
            world = World(own)
            world.prepare()
            world.values["server"] = server.origin
            for line in life.splitlines():
                if line.startswith("% "):
                    (OWN | STEPS)[line[2:]](world)
                else:
                    path, value = printed(world, line)
                    outputs[" ".join(path)].append(value)
            if not number:
                outputs["factor enrol"].append(enrol_an_app(world))
    assert [path for path, values in outputs.items() if not values] == []
    text = f"{START}{page(outputs)}\n{END}"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    stated, _, after = rest.partition(END)
    if os.environ.get("JSON_PAGE") == "write":
        PAGE.write_text(f"{before}{text}{after}", encoding="utf-8")
    else:
        assert text == f"{START}{stated}{END}"
