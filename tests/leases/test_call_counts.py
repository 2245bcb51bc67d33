"""What an invocation costs in calls of Python functions: the hot path does not grow unseen."""

from __future__ import annotations

import pytest

from benchmarks.calls import BUDGETS, COUNTED, MARGIN, counted
from benchmarks.harness import Subject

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("subject", COUNTED, ids=lambda subject: subject.name)
async def test_an_invocation_calls_no_more_than_it_may(subject: Subject) -> None:
    calls = await counted(subject)
    assert calls.total() <= BUDGETS[subject.name] * MARGIN, calls.most_common(30)
