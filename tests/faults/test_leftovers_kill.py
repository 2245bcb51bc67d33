"""DESIGN rule 13: what is interrupted is finished or undone by the next command.

Each command is killed at each of its write boundaries. Then any other command runs, and
after it nothing is left that holds a key; then the same command again, and after it nothing
is left at all, the vault opens, and what was stored is there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.commands import CANARY, COMMANDS, World
from tests.support.killer import Point, Run, Scenario

FILE = Path(__file__).parent / "scenarios" / "commands.py"
EVERY = bool(os.environ.get("APEX_EVERY_BOUNDARY"))

pytestmark = [pytest.mark.faults, pytest.mark.slow]

STATUS = "status"
EXPECTED = re.compile(
    r"copy\.tar|master\.key(\.[0-9a-f]{32}\.(?:anchor|home))?|\.master\.key\.lock"
    r"|[a-z]+/\.restore\.lock"
    r"|[a-z]+/(?:\.before-restore-\w+-\w+/)?(?:security|credentials)/"
    r"(?:\.(?:[a-z]+\.)?lock|\.epoch|[a-z_0-9]+\.(?:enc|json|toml)"
    r"|audit/(?:\d{6}\.jsonl(?:\.gz)?|checkpoints|vkeys?|cosigned|(?:torn|rolled-back)-[\w.-]+))"
    r"|made/backup\.json|made\.tar|new\.key(\.[0-9a-f]{32}\.(?:anchor|home))?|\.new\.key\.lock"
)  # fmt: skip


def sampled(points: list[Point]) -> list[Point]:
    """Each point costs several commands: two dozen, and every change of a name of a key."""
    named = [p for p in points if p.call in ("replace", "link") and "key" in p.name]
    few = points[:: max(1, len(points) // 20)]
    return points if EVERY else [p for p in points if p in named or p in few]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def killed(world: World, name: str) -> Iterator[tuple[Scenario, Run, Point]]:
    command = COMMANDS[name]
    with Scenario(FILE, "command") as scenario:
        arguments = (world.live, command.stdin.decode(), *world.line(command))
        world.fresh()
        for point in sampled(scenario.points(*arguments, torn=False)):
            world.fresh()
            yield scenario, scenario.run(*arguments, at=point), point


def ran(scenario: Scenario, world: World, text: str, stdin: bytes = b"") -> int:
    run = scenario.run(world.live, stdin.decode(), *world.line(COMMANDS[STATUS], text))
    return int(run.acknowledged[-1])


def files(world: World) -> list[Path]:
    return [path for path in world.live.rglob("*") if path.is_file()]


def unexpected(world: World) -> list[str]:
    names = [path.relative_to(world.live).as_posix() for path in files(world)]
    return [name for name in names if not EXPECTED.fullmatch(name)]


def holding_keys(world: World) -> list[str]:
    """Files beside the key file that have a line of its form."""
    line = re.compile(rb"^v[0-9]+ [A-Za-z0-9+/]{43}=$", re.MULTILINE)
    own = [world.live / name for name in ("master.key", "new.key", "new2.key")]
    return [str(p) for p in files(world) if p not in own and line.search(p.read_bytes())]


def nothing_in_clear(world: World, point: Point) -> None:
    for path in files(world):
        assert CANARY.encode() not in path.read_bytes(), (point, path)


@pytest.mark.parametrize("name", ["rotate-master", "put", "put-again", "rotate-kek", "grant"])
def test_a_command_that_changes_the_vault(world: World, name: str) -> None:
    command = COMMANDS[name]
    for scenario, run, point in killed(world, name):
        assert ran(scenario, world, STATUS) == 0, point
        assert not holding_keys(world), point
        state = world.state()
        assert state["values"]["first"] in (CANARY, "other"), point
        assert not run.acknowledged or command.done(state), point
        assert ran(scenario, world, command.arguments, command.stdin) in command.again, point
        assert command.done(world.state()), point
        assert not unexpected(world), point
        nothing_in_clear(world, point)


def test_a_deletion(world: World) -> None:
    """A second one finishes the shredding; the exit code says whether there was any to do."""
    for scenario, run, point in killed(world, "rm"):
        there = "first" in world.state()["values"]
        assert not (there and run.acknowledged), point
        left = world.live_versions()
        code = ran(scenario, world, "rm first --yes")
        assert code == (0 if there or left else 8), (point, left)
        assert not world.live_versions(), point
        assert world.state()["values"] == {"second": "kept"}, point
        assert not unexpected(world), point


@pytest.mark.parametrize("name", ["backup", "backup-tar"])
def test_a_backup(world: World, name: str) -> None:
    """A copy that is not in its place has no key store, but for the moment before."""
    command = COMMANDS[name]
    wholes = 0
    for scenario, _, point in killed(world, name):
        partial = list(world.live.glob(".*.partial"))
        whole = [path for path in partial if (path / "security/keystore.enc").exists()]
        wholes += bool(whole)
        assert not whole or point.call in ("write", "fsync", "link", "rename", "open", "rmdir",
                                           "unlink", "remove", "utime", "file.write",
                                           "file.open"), point  # fmt: skip
        again = world.live / "another"
        assert ran(scenario, world, f"backup {again}") == 0, point
        assert not list(world.live.glob(".*.partial*")), point
        assert ran(scenario, world, command.arguments) in command.again, point
        assert ran(scenario, world, f"restore {world.live}/another --check --reason x") == 0
        assert world.state()["values"]["first"] == CANARY, point
    assert wholes < 30


def test_a_restore(world: World) -> None:
    """Until it is done again, every hint leads to it."""
    command = COMMANDS["restore"]
    seen = set()
    for scenario, _, point in killed(world, "restore"):
        code = ran(scenario, world, STATUS)
        seen.add(code)
        stages = list(world.home.glob(".restoring-*"))
        assert code == 3 or not stages, point
        assert ran(scenario, world, f"init --master file:{world.live}/new.key") == 3, point
        assert not (world.live / "new.key").exists(), point
        assert ran(scenario, world, command.arguments) == 0, point
        assert world.state()["values"]["first"] == CANARY, point
        assert not unexpected(world), point
    assert seen == {0, 3, 5} or seen == {0, 3}, "old or new, none, or a log that is older"


def test_a_copy(world: World) -> None:
    command = COMMANDS["copy"]
    for scenario, _, point in killed(world, "copy"):
        assert ran(scenario, world, command.arguments) == 0, point
        assert world.state()["values"]["first"] == CANARY, point
        assert not unexpected(world), point


@pytest.mark.parametrize("other", [False, True], ids=["same key file", "another key file"])
def test_an_init(world: World, other: bool) -> None:
    """The next one finishes it; one that puts its key elsewhere takes the first key back."""
    first = COMMANDS["init"].arguments
    line = first.replace("new.key", "new2.key") if other else first
    seen = set()
    for scenario, run, point in killed(world, "init"):
        code = ran(scenario, world, line)
        seen.add(code)
        whole = code == 3
        assert not whole or run.acknowledged or (world.live / "new").exists(), point
        assert ran(scenario, world, f"--home {world.live}/new status") == 0, point
        assert not (world.live / "new/.init").exists(), point
        keys = sorted(path.name for path in world.live.glob("new*.key"))
        assert len(keys) == 1, (point, keys)
        assert ran(scenario, world, line) == 3, "it is there now"
        assert not holding_keys(world), point
        assert world.state()["values"]["first"] == CANARY, point
    assert 0 in seen


def test_an_init_never_takes_a_key_that_it_did_not_make(world: World) -> None:
    """Another vault's key was put in the same place, after the first was killed."""
    for scenario, _, point in killed(world, "init"):
        key = world.live / "new.key"
        if key.exists():
            continue
        assert ran(scenario, world, f"--home {world.live}/b init --master file:{key}") == 0
        before = key.read_bytes()
        assert ran(scenario, world, COMMANDS["init"].arguments) == 4, point
        elsewhere = f"--home {world.live}/new init --master file:{world.live}/new2.key"
        assert ran(scenario, world, elsewhere) == 0, point
        assert key.read_bytes() == before, point
        assert ran(scenario, world, f"--home {world.live}/b status") == 0, point
