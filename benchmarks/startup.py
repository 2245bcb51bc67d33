"""What it costs to start: the library and the command, over ``python -c pass``.

    python -m benchmarks.startup [--rounds N] [--json]

Processor time (user and system) of whole processes, one of each in turn, the least of all
rounds: other work on the machine makes a process slower, never quicker. Budgets: DESIGN
section 9.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

_BUDGETS: Final = {"apex-creds --version": 2.5, "apex-creds list": 12.0}
# No command that opens a vault can cost less, without a line of this project.
_LIBRARIES: Final = """
import anyio, asyncio, filelock, msgspec, nacl.bindings, typer
import cryptography.hazmat.primitives.kdf.hkdf

async def nothing(): pass

anyio.run(nothing)
"""
_SCRIPT: Final = "import re, sys; from apex_creds.cli import main; sys.exit(main())"


def measure(rounds: int) -> dict[str, float]:
    """Seconds of processor time, for each program."""
    with tempfile.TemporaryDirectory() as folder:
        where = ("--home", f"{folder}/home", "--master", f"file:{folder}/master.key")
        # As where it is installed: compiled once, not at every start.
        environment = {**os.environ, "HOME": folder, "XDG_STATE_HOME": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        programs = {
            "python -c pass": ("-c", "pass"),
            "import apex_creds": ("-c", "import apex_creds"),
            "from apex_creds import Vault": ("-c", "from apex_creds import Vault"),
            "from apex_creds import CredentialMiddleware, Vault": (
                "-c",
                "from apex_creds import CredentialMiddleware, Vault",
            ),
            "apex-creds --version": ("-c", _SCRIPT, "--version"),
            "apex-creds --help": ("-c", _SCRIPT, "--help"),
            "the libraries of list alone": ("-c", _LIBRARIES),
            "apex-creds list": ("-c", _SCRIPT, *where, "list"),
        }
        _seconds(("-c", _SCRIPT, *where, "init"), environment)
        found = {name: [_seconds(words, environment)] for name, words in programs.items()}
        for _ in range(rounds - 1):
            for name, words in programs.items():
                found[name].append(_seconds(words, environment))
    return {name: min(times) for name, times in found.items()}


def _seconds(words: tuple[str, ...], environment: dict[str, str]) -> float:
    nothing = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1, 2)]
    command = [sys.executable, *words]
    pid = os.posix_spawn(sys.executable, command, environment, file_actions=nothing)
    _, status, used = os.wait4(pid, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(words)} failed")
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What it costs to start.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.rounds)
    if asked.json:
        print(json.dumps(found))
        return
    least = found["python -c pass"]
    print(f"Python {sys.version.split()[0]}, {Path(sys.executable)}")
    for name, seconds in found.items():
        budget = f"  (budget {_BUDGETS[name]} x)" if name in _BUDGETS else ""
        print(f"{seconds * 1000:8.1f} ms  {seconds / least:5.1f} x  {name}{budget}")


if __name__ == "__main__":
    main()
