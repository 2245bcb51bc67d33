"""The public names mean to a type checker what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_mypy_finds_the_errors_that_are_marked_and_no_other() -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "tests/typing/program.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
