"""What several test modules here share."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tests.support.terminals import Terminal

PROGRAM = [sys.executable, "-W", "error", "-m", "apex_creds.cli"]


def under_terminal(*arguments: str, env: Mapping[str, str] | None = None) -> Terminal:
    """``apex-creds`` with these arguments, under a terminal."""
    return Terminal([*PROGRAM, *arguments], env=env)
