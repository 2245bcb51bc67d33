"""``scripts/bootstrap.sh`` where there is no network: one line of ours says what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOBODY = "http://127.0.0.1:9"
"""The port of ``discard``, where nothing listens: refused at once."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="a script for bash"),
]


@pytest.mark.parametrize(
    ("profile", "lock"), [("core", "requirements/core.txt"), ("dev", "requirements/dev.txt")]
)
def test_without_a_network_one_line_says_what_is_missing(
    fresh_home: Path, tmp_path: Path, profile: str, lock: str
) -> None:
    clone = tmp_path / "clone"
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, clone / name)
    shutil.copy(ROOT / "pyproject.toml", clone)
    kept = {k: v for k, v in os.environ.items() if not k.upper().startswith(("PIP_", "UV_"))}
    refused = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": f"{NOBODY}/simple",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "1",
        "PACKAGES": "no",
        "PYTHON": getattr(sys, "_base_executable", sys.executable),
    }
    done = subprocess.run(
        ["bash", str(clone / "scripts/bootstrap.sh"), ".venv", profile],
        env={**kept, **refused},
        capture_output=True,
        text=True,
        timeout=480,
    )
    assert done.returncode != 0
    assert done.stdout == ""
    said = done.stderr.splitlines()
    assert all(line.startswith("bootstrap: ") for line in said), said
    assert f"what {lock} lists is missing" in said[-1]
    assert "no network" in said[-1]
    assert not list((clone / ".venv").glob(".apex-creds-*"))  # so that the next run goes on
