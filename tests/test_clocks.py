"""Which clock is asked: the boot-time clock within one boot, else the wall clock."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds import clocks
from apex_creds.clocks import Ends, Moment, SystemClock, boot_id, boot_time
from tests.support.clocks import TwoClocks

seconds = st.floats(-1e9, 1e9)


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


@given(seconds, st.floats(0, 1e9))
def test_a_moment_keeps_its_distance_when_the_clock_is_set(jump: float, passed: float) -> None:
    clock = TwoClocks()
    before = Moment.now(clock)
    clock.go_on(passed)
    clock.set_by(jump)
    now = Moment.now(clock)
    assert now.wall - before.wall_by(now) == pytest.approx(passed, abs=1e-3)


@given(st.lists(seconds, max_size=8), st.floats(0, 1e6))
def test_what_has_ended_does_not_begin_again(jumps: list[float], passed: float) -> None:
    clock = TwoClocks()
    ends = Ends(clock)
    began = ends.now()
    for jump in jumps:
        clock.set_by(jump)
        assert ends.now() >= began - 1e-3
    clock.go_on(passed)
    assert ends.now() >= began + passed - 1e-3


def test_a_clock_that_was_behind_when_it_began_may_be_put_right() -> None:
    clock = TwoClocks()
    ends = Ends(clock)
    clock.set_by(1e6)
    assert ends.now() == clock.wall
    clock.set_by(-1e6)
    assert ends.now() == pytest.approx(clock.wall)
