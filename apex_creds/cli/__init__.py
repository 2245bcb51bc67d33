"""The ``apex-creds`` command: thin commands over the public API.

Guarantee: no secret reaches the arguments, the environment, an error or a log; what comes
from outside is shown without control characters or markup; every failure is one or two
lines on standard error and the exit code that docs/CLI.md lists.
"""

from __future__ import annotations

from apex_creds.cli.entry import main

__all__ = ["main"]
