"""Counters that a second factor has proved, so that each passes once. Pure.

Guarantee: a counter that passed never passes again, whatever the clock says. One that is
lower than another that passed does not pass either, unless that other one is from the
future: it was taken while the clock was wrong, and keeps nobody out once it is right.

What is remembered are runs: from the first to the last counter of a time in which codes
were used, so that what lies between them is spent. A pause of ``PAUSE`` begins a new run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

Runs = tuple[tuple[int, int], ...]
"""Ascending, apart from each other."""

PAUSE: Final = 120
"""So many steps without a code: an hour of codes of 30 seconds."""
MAX_RUNS: Final = 32


def passes(runs: Sequence[tuple[int, int]], counter: int, *, newest: int | None) -> bool:
    """Whether a counter is higher than all that count.

    Args:
        runs: What passed.
        counter: What is proved.
        newest: The highest that there can be now, of counters that are times; else None.
    """
    return counter > _floor(runs, newest)


def spend(runs: Sequence[tuple[int, int]], counter: int, *, newest: int | None) -> Runs:
    """The runs after a counter passed."""
    floor = _floor(runs, newest)
    near = floor >= 0 and counter - floor <= PAUSE
    ours = [
        (first, counter) if near and last == floor else (first, last) for first, last in runs
    ]
    made = sorted(ours if near else [*ours, (counter, counter)])
    while len(made) > MAX_RUNS:  # what lay between the oldest two counts as spent, too
        made[:2] = [(made[0][0], made[1][1])]
    return tuple(made)


def _floor(runs: Sequence[tuple[int, int]], newest: int | None) -> int:
    return max((last for first, last in runs if newest is None or first <= newest), default=-1)
