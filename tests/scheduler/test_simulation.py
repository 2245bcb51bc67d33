"""The rules of DESIGN section 6 over a thousand random schedules in CI, and more by hand.

``python -m tests.scheduler.simulation 20000`` runs twenty thousand; a failure names its seed,
and how to replay it. ``APEX_CREDS_SCHEDULES`` and ``APEX_CREDS_SEED`` set how many run here,
and from which.
"""

from __future__ import annotations

import os

import pytest
from _pytest.mark import ParameterSet

from tests.scheduler.simulation import simulate

FIRST = int(os.environ.get("APEX_CREDS_SEED", "0"))
COUNT = int(os.environ.get("APEX_CREDS_SCHEDULES", "1000"))
PER_TEST = 50


def parts() -> list[ParameterSet]:
    """The first seed of each test; ``make check`` runs every fifth."""
    firsts = range(FIRST, FIRST + COUNT, PER_TEST)
    return [
        pytest.param(first, marks=[pytest.mark.slow] if number % 5 else [])
        for number, first in enumerate(firsts)
    ]


@pytest.mark.parametrize("seed", parts())
def test_schedules(seed: int) -> None:
    print(f"seeds {seed} to {seed + PER_TEST - 1}")
    worlds = [simulate(number) for number in range(seed, seed + PER_TEST)]
    assert sum(world.chaos.crashes for world in worlds) > PER_TEST / 3
    assert sum(world.reads for world in worlds) > PER_TEST
    assert sum(len(world.events) for world in worlds) > PER_TEST / 2
    assert sum(world.server.refreshes for world in worlds) > PER_TEST / 2


def test_a_seed_replays_the_same_schedule() -> None:
    one, two = simulate(7), simulate(7)
    assert (one.chaos.calls, one.chaos.crashes) == (two.chaos.calls, two.chaos.crashes)
    assert (one.acknowledged, one.events) == (two.acknowledged, two.events)
    assert one.chaos.calls != simulate(8).chaos.calls
