"""Invocations while all three levels rotate: no error, and no wrong secret, ever.

``python -m benchmarks.under_load`` is the same for a minute, at 500 a second, with latencies.
"""

from __future__ import annotations

import pytest

from benchmarks.under_load import load

pytestmark = pytest.mark.anyio


@pytest.mark.slow
async def test_nobody_notices() -> None:
    found = await load(3.0, 100.0, 0.5, rotations=2)
    assert found.errors == []
    assert found.wrong == 0
    assert found.invocations >= 300
    assert min(found.versions.values()) >= 3
