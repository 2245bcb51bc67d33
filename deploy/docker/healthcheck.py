#!/usr/bin/env python3
"""Ends with 0 if a worker's health file is recent and says that all is well, else with 1.

apex-creds-healthcheck FILE [SECONDS] [--alive]: how old it may be; the worker writes it every
ten seconds. With --alive the file's age alone counts: what a restart would not mend is no
reason for one. Says what is wrong in one line. Needs nothing but Python.
"""

from __future__ import annotations

import json
import sys
import time


def judge(path: str, oldest: float, *, alive: bool = False) -> str:
    """What is wrong; empty if nothing is."""
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        age = time.time() - float(report["written"])
        problems = dict(report["problems"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{path} can't be read: {type(error).__name__}"
    if age > oldest:
        return f"the worker did not report for {age:.0f} seconds"
    return "" if alive else "; ".join(f"{name}: {what}" for name, what in problems.items())


def main() -> str | int:
    """What to exit with: 0, or what is wrong, which makes it 1."""
    alive = "--alive" in sys.argv
    given = [word for word in sys.argv[1:] if word != "--alive"]
    if len(given) not in (1, 2):
        return str(__doc__)
    return judge(given[0], float(given[1]) if given[1:] else 60.0, alive=alive) or 0


if __name__ == "__main__":
    sys.exit(main())
