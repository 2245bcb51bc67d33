"""The program of docs/RUNTIMES.md for the runtime that is here does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.snippets import blocks
from tests.support.worlds import REPOSITORY

PAGE = REPOSITORY / "docs/RUNTIMES.md"
FOUND = blocks(PAGE.read_text(encoding="utf-8"))
PROGRAMS = {
    name.group(1): block.text
    for block in FOUND
    if (name := re.search(r"apex_creds\.integrations\.(?!tools)(\w+)", block.text))
    and block.language == "python"
}


RUNTIME = os.environ["TESTED_RUNTIME"]  # of scripts/runtime_tests.sh


@pytest.mark.skipif(RUNTIME not in PROGRAMS, reason="the page has no program for it")
def test_the_program_of_the_page(tmp_path: Path) -> None:
    for block in FOUND:
        if block.mark == "file":
            (tmp_path / block.argument).write_text(block.text, encoding="utf-8")
    program = PROGRAMS[RUNTIME]
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (wanted,) = re.findall(r"print\(.*\)  # (.+)$", program, re.MULTILINE)
    assert done.stdout.strip() == wanted
