"""Any one call to the system fails, in any command: a specific error, and the vault goes on.

All calls of all commands take hours; here is a sample, by a prime step, so that each change
of the program has others. ``APEX_EVERY_BOUNDARY=1`` runs all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.commands import COMMANDS

ROOT = Path(__file__).parents[2]
STEP = 1 if os.environ.get("APEX_EVERY_BOUNDARY") else 311

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


@pytest.mark.parametrize("name", COMMANDS)
def test_one_failing_call(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.failing", tmp_path / "world", name, str(STEP)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    *wrong, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert not wrong, json.dumps(wrong, indent=2)
    assert last["runs"] > 0, last
