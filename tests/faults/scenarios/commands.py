"""A command line, as the program runs it, to be killed in."""

from __future__ import annotations

import io
import sys

from apex_creds.cli import app
from tests.support import killer


def command(world: str, stdin: str, *line: str) -> None:
    """Runs it in ``world``; tells the exit code."""
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
    killer.begin()
    code = app.run(line)
    killer.end()
    killer.acknowledge(str(code))
