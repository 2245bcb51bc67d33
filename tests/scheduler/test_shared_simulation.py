"""The rules of DESIGN section 6 over random schedules, where workers share a storage.

``python -m tests.scheduler.shared_simulation 5000`` runs five thousand.
"""

from __future__ import annotations

import pytest

from tests.scheduler.shared_simulation import simulate_shared

PER_TEST = 10


@pytest.mark.parametrize("seed", range(0, 2 * PER_TEST, PER_TEST))
def test_schedules(seed: int) -> None:
    worlds = [simulate_shared(number) for number in range(seed, seed + PER_TEST)]
    assert sum(world.chaos.crashes for world in worlds) > PER_TEST / 2
    assert sum(world.reads for world in worlds) > PER_TEST
