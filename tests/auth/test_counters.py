"""Runs of counters: nothing passes twice, and what is from the future keeps nobody out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.auth.second_factor import MAX_RUNS, PAUSE, Runs, is_fresh, spend

DECADE = 10 * 365 * 2880


def used(*counters: int, newest: int | None = None) -> Runs:
    runs: Runs = ()
    for counter in counters:
        assert is_fresh(runs, counter, newest=newest)
        runs = spend(runs, counter, newest=newest)
    return runs


def test_codes_in_a_row_are_one_run_and_a_pause_begins_another() -> None:
    assert used(5, 6, 6 + PAUSE) == ((5, 6 + PAUSE),)
    assert used(5, 6 + PAUSE) == ((5, 5), (6 + PAUSE, 6 + PAUSE))


def test_what_was_taken_while_the_clock_was_ahead_keeps_nobody_out() -> None:
    runs = spend(used(100), 100 + DECADE, newest=100 + DECADE)
    assert is_fresh(runs, 104, newest=105)
    runs = spend(runs, 104, newest=105)
    assert runs == ((100, 104), (100 + DECADE, 100 + DECADE))
    for spent in (100, 102, 104):
        assert not is_fresh(runs, spent, newest=105)
    assert not is_fresh(runs, 100 + DECADE, newest=100 + DECADE), "when its time has come"


def test_a_clock_that_is_set_back_lets_no_code_of_a_run_pass() -> None:
    runs = used(100, 150, 200)
    for back in range(100, 201):
        assert not is_fresh(runs, back, newest=back + 1)


def test_counters_that_are_no_times_only_grow() -> None:
    runs = used(5, 10**9, newest=None)
    assert not is_fresh(runs, 6, newest=None)
    assert is_fresh(runs, 10**9 + 1, newest=None)


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(-1, 1)), max_size=120))
def test_nothing_passes_twice_whatever_the_clock_does(tries: list[tuple[int, int]]) -> None:
    """The clock jumps to any time before each try; a code is of a step next to it."""
    runs: Runs = ()
    passed: list[int] = []
    for now, away in tries:
        counter, newest = max(0, now + away), now + 1
        if is_fresh(runs, counter, newest=newest):
            assert counter not in passed
            passed.append(counter)
            runs = spend(runs, counter, newest=newest)
            assert len(runs) <= MAX_RUNS
            assert all(a[1] < b[0] for a, b in pairwise(runs))
            assert all(any(a <= c <= b for a, b in runs) for c in passed)


@pytest.mark.parametrize("runs", [(), ((3, 3),), ((1, 2), (9, 9))])
def test_one_more_passes(runs: Runs) -> None:
    assert is_fresh(runs, 10, newest=11)
