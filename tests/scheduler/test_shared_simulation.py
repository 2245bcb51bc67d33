"""The rules of DESIGN section 6 over random schedules, where sections are in shards.

``python -m tests.scheduler.shared_simulation 5000`` runs five thousand.
"""

from __future__ import annotations

import pytest

from tests.scheduler.shared_simulation import simulate_divided, simulate_shared

PER_TEST = 10


@pytest.mark.parametrize("seed", range(0, 2 * PER_TEST, PER_TEST))
def test_schedules(seed: int) -> None:
    worlds = [simulate_shared(number) for number in range(seed, seed + PER_TEST)]
    assert sum(world.chaos.crashes for world in worlds) > PER_TEST / 2
    assert sum(world.reads for world in worlds) > PER_TEST


@pytest.mark.parametrize("seed", range(0, 4 * PER_TEST, 2 * PER_TEST))
def test_schedules_of_a_home_whose_sections_become_large(seed: int) -> None:
    worlds = [simulate_divided(number) for number in range(seed, seed + 2 * PER_TEST)]
    divided = ["api_keys" not in world.storage._place.documents for world in worlds]
    assert sum(divided) > PER_TEST
    assert sum(world.chaos.crashes for world in worlds) > PER_TEST / 2
    assert sum(world.reads for world in worlds) > PER_TEST
