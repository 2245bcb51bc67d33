"""The public names mean to a type checker what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "checker", [["mypy"], ["pyright", "--pythonpath", sys.executable]], ids=lambda it: it[0]
)
def test_a_checker_finds_the_errors_that_are_marked_and_no_other(checker: list[str]) -> None:
    pytest.importorskip(checker[0])
    command = [sys.executable, "-m", *checker, "tests/typing/program.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "checker", [["mypy"], ["pyright", "--pythonpath", sys.executable]], ids=lambda it: it[0]
)
def test_a_checker_finds_an_error_that_is_not_marked(
    checker: list[str], tmp_path: Path
) -> None:
    pytest.importorskip(checker[0])
    marked = "# type: ignore[arg-type]"
    text = (ROOT / "tests/typing/program.py").read_text()
    (tmp_path / "program.py").write_text(text.replace(marked, "", 1))
    command = [sys.executable, "-m", *checker, str(tmp_path / "program.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
