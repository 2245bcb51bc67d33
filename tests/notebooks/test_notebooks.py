"""Each notebook runs, prints what is kept in it, but for times, and is small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "notebooks.py"
BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.e2e


def check(path: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, as in CI and by hand."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), "check", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )


def test_all_four_are_there() -> None:
    assert [path.stem.partition("_")[0] for path in BOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_it_runs_and_prints_what_is_kept(path: Path) -> None:
    done = check(path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"{path.name}: ok\n"


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_small_whole_and_of_no_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert not re.search(r"/tmp/|/home/|/root/|/work/|0x[0-9a-f]{8}", text)
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not [o for cell in code for o in cell.outputs if o.get("name") == "stderr"]
    assert len(book.cells) - len(code) >= 8, "made to be read"


def test_a_notebook_that_prints_something_else_is_found(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook()
    book.cells = [
        nbformat.v4.new_code_cell("print('one')\nprint('two')"),
        nbformat.v4.new_code_cell("import time; time.time()", metadata={"tags": ["varies"]}),
    ]
    path = tmp_path / "one.ipynb"
    nbformat.write(book, path)
    command = [sys.executable, str(SCRIPT), "run", str(path)]
    assert subprocess.run(command, check=True, capture_output=True, timeout=480).returncode == 0
    kept = path.read_text(encoding="utf-8")
    assert check(path).returncode == 0
    path.write_text(kept.replace('"two\\n"', '"three\\n"'), encoding="utf-8")
    done = check(path)
    assert done.returncode == 1
    assert "-three\n+two" in done.stdout


def test_one_that_fails_is_found(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    path = tmp_path / "bad.ipynb"
    nbformat.write(book, path)
    done = check(path)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stdout
