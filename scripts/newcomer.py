"""Follows README.md, or another page, as a newcomer with nothing but a clone, in order.

Run by scripts/newcomer.sh in an empty home, with the system's own Python; needs nothing that
is not in the clone. Blocks are those of tests/support/snippets.py, but they are run in
one session, so that ``cd`` and an environment that was activated hold for what follows, and
those that are marked ``no-test`` are run as well, but for ``make test``, whose own time is not
a newcomer's. Ends with 1 at the first command that fails, or prints something else than the
page says. ``--until TEXT`` ends it after the command that printed that; ``--page
docs/QUICKSTART.md`` follows another page that begins in the folder of the clone.
"""

from __future__ import annotations

import argparse
import doctest
import os
import subprocess
import sys
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SOURCE))

from tests.support import snippets  # noqa: E402 - found by the line above

NOT_HERE = ("make test",)
SHOWN = 25
_KEEP = 'code=$?; pwd > "$SESSION/cwd"; env -0 > "$SESSION/env"; exit $code'


class Session:
    """A shell that goes on: each command sees what those before it changed."""

    def __init__(self, notes: Path) -> None:
        self.cwd, self.env = str(SOURCE), {**os.environ, "SESSION": str(notes)}
        self._notes = notes

    def run(self, command: str) -> tuple[int, str]:
        """Returns the exit code and what was printed."""
        script = f"trap '{_KEEP}' EXIT\nset -e\n{command}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.cwd = (self._notes / "cwd").read_text(encoding="utf-8").strip()
        pairs = (self._notes / "env").read_bytes().decode().split("\0")
        self.env = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        return done.returncode, done.stdout

    def write(self, name: str, text: str) -> None:
        """Makes a file where the session is."""
        path = Path(self.cwd, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def steps(page: str) -> list[tuple[str, str, str]]:
    """Returns what to do: ``write``, name and text; or ``run``, command and output."""
    found: list[tuple[str, str, str]] = []
    for block in snippets.blocks(page):
        if block.mark == "file":
            found.append(("write", block.argument, block.text))
        elif block.language in ("bash", "console"):
            lines = [(line, "") for line in block.text.splitlines()]
            told = snippets.commands(block.text) or lines
            found += [("run", command, output) for command, output in told]
    return [step for step in found if not step[1].startswith(NOT_HERE)]


def main(arguments: list[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--page", default="README.md")
    parser.add_argument("--until", default="\n\n\n", metavar="TEXT")
    chosen = parser.parse_args(arguments)
    notes = Path(os.environ["HOME"]) / ".newcomer"
    notes.mkdir()
    session, began = Session(notes), time.monotonic()
    page = (SOURCE / chosen.page).read_text(encoding="utf-8")
    for kind, what, text in steps(page):
        if kind == "write":
            session.write(what, text)
            continue
        print(f"$ {what}", flush=True)
        since = time.monotonic()
        code, printed = session.run(what)
        print(_end_of(printed), f"    ({time.monotonic() - since:.1f} s)", sep="\n", flush=True)
        if code or not _same(text, printed):
            print(f"{chosen.page} is not true here: exit code {code}, it promises:\n{text}")
            return 1
        if chosen.until in printed:
            break
    print(f"{chosen.page} is true here: {time.monotonic() - began:.0f} seconds")
    return 0


def _end_of(printed: str) -> str:
    lines = printed.rstrip().splitlines()
    left_out = [f"… {len(lines) - SHOWN} lines"] if len(lines) > SHOWN else []
    return "\n".join([*left_out, *lines[-SHOWN:]])


def _same(promised: str, printed: str) -> bool:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return not promised or doctest.OutputChecker().check_output(promised, printed, flags)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
