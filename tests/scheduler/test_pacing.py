"""Periodic work is paced by a clock that the test moves; the loop only wakes it up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise

import pytest

from apex_creds.scheduler import worker as worker_module
from apex_creds.scheduler.worker import Periodic

pytestmark = pytest.mark.anyio


class Ticks:
    """A boot-time clock; each look at it while a turn is waited for lets it go on."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


async def taken(
    turns: Periodic, count: int, done: list[object], stop: Callable[[], None]
) -> None:
    task = asyncio.create_task(turns.run())
    async with asyncio.timeout(60):
        while len(done) < count:
            await asyncio.sleep(0)
    stop()
    await task


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "LONGEST_SLEEP", 0.0)


async def test_the_first_turn_is_at_once_and_the_next_when_its_time_has_passed() -> None:
    ticks, at = Ticks(1.0), list[float]()

    async def work() -> None:
        at.append(ticks.now)

    turns = Periodic(work, seconds=10.0, now=ticks)
    await taken(turns, 3, at, turns.stop)
    assert at[0] == 0.0
    assert all(10.0 <= later - earlier <= 13.0 for earlier, later in pairwise(at))


async def test_turns_missed_in_a_long_sleep_are_one_turn() -> None:
    ticks, at = Ticks(0.001), list[float]()

    async def work() -> None:
        at.append(ticks.now)
        if len(at) == 2:
            ticks.now += 365 * 86_400.0

    turns = Periodic(work, seconds=2.0, now=ticks)
    await taken(turns, 4, at, turns.stop)
    assert at[3] - at[2] < 3.0


async def test_one_who_is_woken_does_not_wait() -> None:
    done: list[object] = []

    async def work() -> None:
        done.append(None)
        turns.wake()

    turns = Periodic(work, seconds=1e9)
    await taken(turns, 5, done, turns.stop)
    assert len(done) <= 6


async def test_the_turn_that_is_under_way_ends_and_none_follows() -> None:
    done: list[str] = []

    async def work() -> None:
        done.append("begun")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.append("ended")

    turns = Periodic(work, seconds=0.0)
    await taken(turns, 1, done, turns.stop)
    assert done == ["begun", "ended"]
