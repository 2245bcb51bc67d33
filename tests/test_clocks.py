"""Which clock is asked: the boot-time clock within one boot, else the wall clock."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds import clocks
from apex_creds.clocks import Moment, SystemClock, boot_id, boot_time

seconds = st.floats(-1e9, 1e9)


class TwoClocks:
    """A wall clock that anybody sets, and one that goes on."""

    def __init__(self) -> None:
        self.wall, self.ticks = 1_700_000_000.0, 50.0

    def time(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.ticks


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no such clock")
def test_the_monotonic_clock_goes_on_while_the_machine_sleeps() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= SystemClock().monotonic() <= boot_time()
    assert boot_time() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_a_system_without_that_clock_has_the_monotonic_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    assert clocks._boot_clock() is time.monotonic


@given(seconds, st.floats(0, 1e9))
def test_within_one_boot_the_wall_clock_is_not_asked(jump: float, passed: float) -> None:
    clock = TwoClocks()
    before = Moment.now(clock)
    clock.wall += jump
    clock.ticks += passed
    assert Moment.now(clock).since(before) == clock.ticks - 50.0


@given(seconds)
def test_between_machines_the_wall_clock_is_all_there_is(apart: float) -> None:
    here, there = TwoClocks(), TwoClocks()
    there.wall += apart
    there.ticks += 7.0
    assert Moment.now(there).since(Moment.now(here)) == there.wall - here.wall


def test_moments_of_the_machine_s_clock_are_of_this_boot() -> None:
    one, two = Moment.now(SystemClock()), Moment.now(SystemClock())
    assert one.boot == two.boot == boot_id()
    assert two.since(one) >= 0.0


def test_a_system_without_boot_ids_compares_by_the_wall_clock() -> None:
    assert Moment(wall=5.0).since(Moment(wall=3.0, ticks=1.0)) == 2.0
