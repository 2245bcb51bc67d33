"""What is due at several places: one that does not answer holds up no other."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from apex_creds import concurrency
from apex_creds.concurrency import in_lanes

pytestmark = pytest.mark.anyio


class Places:
    """``hung`` ones answer, with a failure, when all of ``until`` is done."""

    def __init__(self, due: dict[str, str], *, hung: str = "", until: str = "") -> None:
        self.waits, self.hung, self.until = dict(due), hung, set(until.split())
        self.answer, self.done, self.looks = asyncio.Event(), list[str](), 0
        self.at_once, self.most = Counter[str](), Counter[str]()

    async def due(self) -> dict[str, str]:
        self.looks += 1
        return dict(self.waits)

    async def work(self, item: str) -> bool:
        lane = self.waits[item]
        self.at_once[lane] += 1
        self.most |= self.at_once
        if lane == self.hung:
            await self.answer.wait()
        await asyncio.sleep(0)
        self.at_once[lane] -= 1
        if lane == self.hung:
            return False
        del self.waits[item]
        self.done.append(item)
        if self.until <= set(self.done):
            self.answer.set()
        return True


@pytest.fixture
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "_LOOK", 0.001)


async def test_one_that_hangs_holds_up_no_other() -> None:
    due = {f"{at}{n}": at for n in range(3) for at in "abc"}
    places = Places(due, hung="a", until="b0 b1 b2 c0 c1 c2")
    await in_lanes(places.due, places.work)
    assert Counter(item[0] for item in places.done) == {"b": 3, "c": 3}
    assert places.most == {"a": 1, "b": 1, "c": 1}  # of each place one after the other


async def test_one_that_failed_is_not_asked_again_in_the_same_round(
    looks_at_once: None,
) -> None:
    places = Places({"a0": "a", "a1": "a", "b0": "b"}, hung="a", until="b0")
    asked = []

    async def work(item: str) -> bool:
        asked.append(item)
        return await places.work(item)

    await in_lanes(places.due, work)
    assert sorted(asked) == ["a0", "b0"]


async def test_what_becomes_due_while_one_hangs_is_done(looks_at_once: None) -> None:
    places = Places({"a0": "a", "b0": "b"}, hung="a", until="b0 b1 c0")

    async def due() -> dict[str, str]:
        if places.looks:
            new = {"b1": "b", "c0": "c"}
            places.waits |= {i: at for i, at in new.items() if i not in places.done}
        return await places.due()

    await in_lanes(due, places.work)
    assert sorted(places.done) == ["b0", "b1", "c0"]


async def test_there_are_no_more_at_once_than_there_is_room_for() -> None:
    places = Places({f"i{n}": f"place {n}" for n in range(100)})
    running = most = 0

    async def work(item: str) -> bool:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            return await places.work(item)
        finally:
            running -= 1

    await in_lanes(places.due, work)
    assert len(places.done) == 100
    assert 1 < most <= 16


async def test_what_is_raised_ends_all_and_leaves_nothing_running() -> None:
    places = Places({"a0": "a", "b0": "b"}, hung="a", until="never")

    async def work(item: str) -> bool:
        if item == "b0":
            raise OSError("the disk is full")
        return await places.work(item)

    before = asyncio.all_tasks()
    with pytest.raises(OSError, match="full"):
        await in_lanes(places.due, work)
    assert asyncio.all_tasks() == before


async def test_who_is_cancelled_leaves_nothing_running() -> None:
    places = Places({"a0": "a"}, hung="a", until="never")
    before = asyncio.all_tasks()
    task = asyncio.create_task(in_lanes(places.due, places.work))
    while not places.at_once["a"]:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
