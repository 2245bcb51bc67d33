"""The measuring itself: pairs by round, turns the order, and says what it left out."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from apex_creds import Vault
from benchmarks import client, growth, harness, invoke

pytestmark = pytest.mark.anyio


class FakeClock:
    """Time that only the measured operations spend."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def spender(self, name: str, seconds: float) -> harness.Operation:
        def spend() -> None:
            self.now += seconds
            self.log.append(name)

        return spend


def subject(name: str, operation: harness.Operation, closed: list[str]) -> harness.Subject:
    @asynccontextmanager
    async def opened() -> AsyncIterator[harness.Operation]:
        yield operation
        closed.append(name)

    return harness.Subject(name, f"what {name} is", opened)


@asynccontextmanager
async def absent() -> AsyncIterator[harness.Operation]:
    raise harness.UnavailableError("apt-get install it")
    yield


async def test_ratios_are_of_what_was_spent() -> None:
    clock, closed = FakeClock(), []
    subjects = [
        subject("one", clock.spender("one", 0.001), closed),
        subject("two", clock.spender("two", 0.004), closed),
        harness.Subject("gone", "", absent),
    ]
    run = await harness.measure(subjects, rounds=4, clock=clock)
    one, two = run.results["one"], run.results["two"]
    assert two.ratio_to(one) == pytest.approx(4)
    assert len(one.seconds) == len(two.seconds) == 4
    assert run.skipped == {"gone": "apt-get install it"}
    assert sorted(closed) == ["one", "two"]


async def test_the_order_turns_from_round_to_round() -> None:
    clock = FakeClock()
    names = ("a", "b", "c")
    subjects = [subject(name, clock.spender(name, harness.BATCH_SECONDS), []) for name in names]
    await harness.measure(subjects, rounds=3, clock=clock)
    assert "".join(clock.log[-9:]) == "abc" + "bca" + "cab"


async def test_coroutine_functions_are_awaited_and_between_is_not_timed() -> None:
    clock = FakeClock()
    spend = clock.spender("async", 0.001)

    async def operation() -> None:
        spend()  # type: ignore[unused-coroutine]

    @asynccontextmanager
    async def opened() -> AsyncIterator[harness.Operation]:
        yield operation

    between: Callable[[], object] = clock.spender("between", 5.0)
    one = harness.Subject("async", "", opened, between)  # type: ignore[arg-type]
    run = await harness.measure([one], rounds=2, clock=clock)
    assert run.results["async"].median == pytest.approx(0.001)
    assert "between" in clock.log


async def test_table_and_json_say_the_same() -> None:
    clock = FakeClock()
    subjects = [
        subject("invocation", clock.spender("i", 30e-6), []),
        subject("traced", clock.spender("t", 100e-6), []),
        subject("injector", clock.spender("j", 15e-6), []),
        subject("openbao", clock.spender("o", 900e-6), []),
        harness.Subject("keyring", "", absent),
    ]
    run = await harness.measure(subjects, rounds=2, clock=clock)
    judged = invoke.budgets(run)
    text = io.StringIO()
    console = Console(file=text, width=120)
    harness.show(run, reference="invocation", budgets=judged, console=console)
    told = json.loads(harness.as_json(run, reference="invocation", budgets=judged))
    assert "30 µs" in text.getvalue()
    assert "skipped keyring: apt-get install it" in text.getvalue()
    assert {one["name"]: round(one["ratio"]) for one in told["results"]}["openbao"] == 30
    budgets = [(one["kept"], round(one["measured"])) for one in told["budgets"]]
    assert budgets == [(True, 2), (False, 9)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (9.87e-3, "9.87 ms"), (12.34e-6, "12.3 µs"), (640e-9, "640 ns")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert harness.duration(seconds) == text


def figure(what: str, size: int, *, seconds: float, moved: int) -> growth.Figure:
    return growth.Figure(what=what, size=size, seconds=seconds, read=moved, written=moved)


def test_growth_is_judged_by_bytes_and_by_time() -> None:
    found = growth.budgets(
        [
            figure("put", 100, seconds=9.0, moved=1),  # smaller than what the budget names
            figure("put", 1_000, seconds=1.0, moved=10),
            figure("put", 100_000, seconds=1.5, moved=30),
            figure("status", 10, seconds=1.0, moved=10),
            figure("status", 1_000, seconds=2.0, moved=10),
        ]
    )
    assert [(each.what, each.measured, each.kept) for each in found] == [
        ("put, 100,000 over 1,000: bytes", 3.0, False),
        ("put, 100,000 over 1,000: time", 1.5, True),
        ("status, 1,000 over 10: bytes", 1.0, True),
        ("status, 1,000 over 10: time", 2.0, False),
    ]


async def test_growth_is_paired_by_round() -> None:
    """A slow moment of the machine is in the figures of all sizes."""
    slow, calls = (1.0, 10.0, 2.0), list[tuple[int, int]]()

    async def cost(size: int, number: int) -> growth.Cost:
        calls.append((size, number))
        return slow[number] * size, 0, size

    works = [("put", size, partial(cost, size)) for size in (1_000, 3_000)]
    small, large = await growth.in_turns(works, times=3)
    assert calls == [(size, number) for number in range(3) for size in (1_000, 3_000)]
    assert (large.longer_than(small), large.seconds, large.written) == (3.0, 6_000.0, 3_000)


@pytest.mark.skipif(sys.platform != "linux", reason="counts bytes in /proc")
async def test_growth_counts_what_a_put_writes() -> None:
    [put, kek, master] = (await growth.run([3], [], []))[:3]
    assert (put.what, put.size) == ("put", 3)
    assert put.written > 1_000
    assert kek.written > put.written  # the key store, too
    assert master.seconds > 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts bytes in /proc")
async def test_growth_of_commands_is_measured_in_their_own_process() -> None:
    found = await growth.run([], [], [20])
    assert [each.what for each in found] == list(growth.COMMANDS)
    assert all(each.read > 1_000 for each in found)


@pytest.mark.parametrize("searched", [True, False])
async def test_answers_are_read_whole_with_the_search_and_without(searched: bool) -> None:
    for name in ("1-mib", "events"):
        async with client.reading(name, searched=searched) as call:
            chunks = client.BODIES[name][1]
            ends = 2 * len(chunks) if name == "events" else 0  # of lines
            assert await call() == sum(map(len, chunks)) - ends


def test_the_search_is_judged_by_its_budgets() -> None:
    run = harness.Run(1)
    for name, seconds in (("events-plain", 1.0), ("events-searched", 1.2)):
        run.results[name] = harness.Result(name, "", (seconds,), 1)
    (budget,) = client.budgets(run)
    assert (budget.measured, budget.limit, budget.kept) == (1.2, 1.15, False)


def test_what_a_page_of_a_large_vault_costs_is_a_ratio_to_a_small_one() -> None:
    page = pytest.importorskip("benchmarks.dashboard")
    found = {what: page.Pair(small=0.5, large=0.75) for what in page.LIMITS}
    assert [each.measured for each in page.budgets(found)] == [1.5] * len(page.LIMITS)
    assert all(each.kept for each in page.budgets(found))
    found["first content"] = page.Pair(small=0.5, large=1.5)
    assert [each.kept for each in page.budgets(found)].count(False) == 1


async def test_the_vault_of_a_page_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    page = pytest.importorskip("benchmarks.dashboard")
    home = await page.build(tmp_path, page.Size(plugins=2, credentials=3, events=7))
    assert await page.build(tmp_path, page.SMALL) == home, "what is there is taken"
    async with await Vault.unseal(home, master=f"file:{tmp_path}/key") as vault:
        assert len(await vault.list()) == 3
        assert len(await vault.grants()) == 2
