"""The log through SIGKILL: at every boundary of a rotation, and at random under load."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from apex_creds.audit import EventKind, check, read
from apex_creds.audit.archive import segments
from tests.faults.killer import Scenario
from tests.faults.scenarios.audit import VAULT, event, open_log

pytestmark = pytest.mark.faults

FILE = Path(__file__).parent / "scenarios" / "audit.py"
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
            assert not list(directory.glob(".*")), point


_LOAD = """
import os, sys
from tests.faults.scenarios.audit import VAULT, event
from pathlib import Path
from apex_creds.audit import AuditLog
from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.upkeep import Cadence
from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.signing import SigningKey
from apex_creds.model import SystemClock
key = LogKey(VAULT, SigningKey.from_seed(SecretBytes.from_bytes(bytes(range(32)))))
log = AuditLog(Path(sys.argv[1]), vault_id=VAULT, clock=SystemClock(), key=key,
    durable_within=0.01, cadence=Cadence(events=50, seconds=0.05, segment_bytes=20_000))
os.write(1, b"go\\n")
number = 0
while True:
    number += 1
    seq = log.append(event("x" * 60), flush=number % 3 != 0)
    if seq is not None:
        os.write(1, b"%d\\n" % seq)
"""


@pytest.mark.slow
def test_a_hundred_kills_under_load_lose_nothing_acknowledged(tmp_path: Path) -> None:
    directory, chance = tmp_path / "audit", random.Random(4)
    acknowledged = 0
    for _ in range(KILLS):
        command = [sys.executable, "-c", _LOAD, str(directory)]
        victim = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"go\n"
        for _ in range(chance.randrange(1, 400)):
            victim.stdout.readline()
        victim.kill()
        rest = victim.communicate(timeout=60)[0].split(b"\n")[:-1]
        acknowledged = max([acknowledged, *map(int, rest)])
        numbers = [each.seq for each in read_repaired(directory)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= acknowledged
    report = check(directory, vault_id=VAULT, complete=True)
    assert report.ok
    assert report.count >= acknowledged > KILLS


def read_repaired(directory: Path) -> list:
    """The events after the next start, at which everything verifies."""
    log = open_log(str(directory))
    log.close()
    report = check(directory, vault_id=VAULT, complete=True)
    assert report.ok, report
    return list(read(directory, vault_id=VAULT))
