"""Eight processes on one vault in PostgreSQL: killed, cut off, and right all the same.

By hand, for a minute or more: ``python -m tests.e2e.many_processes 60``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.many_processes import Story, Write, allowed, judge_guests, judge_reads, whole
from tests.e2e.many_worker import GATE, GUEST, PLUGIN

pytestmark = pytest.mark.e2e


def test_eight_processes(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    print(whole(tmp_path, seconds=9, seed=1))


# -- the judges themselves --------------------------------------------------------------


def test_a_reader_may_find_what_was_written_last_or_meanwhile() -> None:
    writes = [Write(1, 1.0, 2.0), Write(2, 3.0, None), Write(-3, 5.0, 6.0), Write(4, 8.0)]
    assert allowed([], 0.0, 9.0) == {0}
    assert allowed(writes, 0.5, 1.5) == {0, 1}
    assert allowed(writes, 2.5, 2.6) == {1}
    assert allowed(writes, 4.0, 4.5) == {1, 2}
    assert allowed(writes, 7.0, 7.5) == {0}
    assert allowed(writes, 7.0, 8.5) == {0, 4}


def test_a_stale_read_is_found() -> None:
    story = Story(
        [
            [1.0, 0, 0, "write", "n", 1],
            [2.0, 0, 0, "wrote", "n", 1],
            [3.0, 0, 0, "write", "n", 2],
            [4.0, 0, 0, "wrote", "n", 2],
            [5.5, 1, 0, "read", PLUGIN, "n", 1, 5.0, 0.0],
        ]
    )
    with pytest.raises(AssertionError):
        judge_reads(story)
    story.said[-1][-1] = 3.5  # the server was away for so long
    assert judge_reads(story) == 1


def test_a_use_after_its_revocation_is_found() -> None:
    story = Story(
        [
            [1.0, 0, 0, "grant"],
            [2.0, 0, 0, "granted"],
            [3.0, 0, 0, "revoke"],
            [4.0, 0, 0, "revoked"],
            [5.5, 1, 0, "read", GUEST, GATE, 1, 5.0, 0.0],
        ]
    )
    with pytest.raises(AssertionError):
        judge_guests(story)
    story.said[-1][-2] = 3.5  # it began before that
    assert judge_guests(story) == 1
