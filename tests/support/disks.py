"""A small file system, mounted for one test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

as_root = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux"
)


@contextlib.contextmanager
def mounted(where: Path, *options: str) -> Iterator[Callable[..., bool]]:
    """Mounts a tmpfs, private; what is yielded mounts it again, with other options.

    Skips the test where that is not allowed.
    """
    where.mkdir(mode=0o700)

    def mount(*more: str) -> bool:
        chosen = ",".join((*options, "mode=0700", *more))
        command = ["mount", "-t", "tmpfs", "-o", chosen, "tmpfs", str(where)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    if not mount():
        pytest.skip("mounting is not allowed here")
    yield mount
    subprocess.run(["umount", where], check=True)
