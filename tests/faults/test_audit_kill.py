"""The log through SIGKILL: at every boundary of a rotation, and at random under load."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from apex_creds.audit import EventKind, check, read
from apex_creds.audit.nodes import has_nodes
from apex_creds.audit.segment import segments
from tests.faults.scenarios.audit import VAULT, event, open_log
from tests.support.killer import Point, Scenario

pytestmark = pytest.mark.faults

FILE = Path(__file__).parent / "scenarios" / "audit.py"
ROOT = Path(__file__).parents[2]
BEFORE = [f"before {number}" for number in range(5)]
KILLS = 100


def details(directory: Path) -> list[str]:
    events = read(directory, vault_id=VAULT)
    return [each.detail for each in events if each.kind is not EventKind.RECOVERED]


def test_a_rotation_killed_anywhere_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    with Scenario(FILE, "rotate") as scenario:
        points = scenario.points(tmp_path / "dry")
        assert len(points) > 20
        for number, point in enumerate(points):
            directory = tmp_path / str(number)
            run = scenario.run(directory, at=point)
            assert run.killed, point
            log = open_log(str(directory))
            log.append(event("later"))
            log.close()
            report = check(directory, vault_id=VAULT, complete=True)
            assert report.ok, (point, report)
            found = details(directory)
            assert found[:5] == BEFORE, point
            assert found[-1] == "later", point
            for name in {"between", "after"} & set(run.acknowledged):
                assert name in found, point
            *sealed, _ = segments(directory).values()
            assert all(path.suffix == ".gz" for path in sealed), point
            assert all(has_nodes(path) for path in sealed), point
            assert not list(directory.glob(".*")), point


@pytest.mark.slow
def test_a_hundred_kills_at_boundaries_under_load_lose_nothing_told(tmp_path: Path) -> None:
    directory, chance, most = tmp_path / "audit", random.Random(4), 0
    with Scenario(FILE, "load") as scenario:
        for _ in range(KILLS):
            when = chance.choice(("before", "after", "torn"))
            run = scenario.run(directory, at=Point(nth=chance.randrange(1, 120), when=when))
            assert run.killed
            most = max([most, *map(int, run.acknowledged)])
            whole_up_to(directory, most)
    assert check(directory, vault_id=VAULT, complete=True).count >= most > KILLS


@pytest.mark.slow
def test_kills_at_any_moment_under_load_lose_nothing_told(tmp_path: Path) -> None:
    directory, chance, most = tmp_path / "audit", random.Random(4), 0
    for _ in range(8):
        command = [sys.executable, "-m", "tests.faults.scenarios.audit", str(directory)]
        victim = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"go\n"
        for _ in range(chance.randrange(1, 400)):
            victim.stdout.readline()
        victim.kill()
        rest = victim.communicate(timeout=480)[0].split(b"\n")[:-1]
        most = max([most, *map(int, rest)])
        whole_up_to(directory, most)


def whole_up_to(directory: Path, told: int) -> None:
    """After the next start all verifies, and nothing that was told is missing."""
    numbers = [each.seq for each in read_repaired(directory)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= told


def read_repaired(directory: Path) -> list:
    """The events after the next start, at which everything verifies."""
    log = open_log(str(directory))
    log.close()
    report = check(directory, vault_id=VAULT, complete=True)
    assert report.ok, report
    return list(read(directory, vault_id=VAULT))
