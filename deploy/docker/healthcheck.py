#!/usr/bin/env python3
"""Ends with 0 if a worker's health file is recent and says that all is well, else with 1.

apex-creds-healthcheck FILE [SECONDS] [--alive]: how old it may be; the worker writes it every
ten seconds. Its age is told by the clock that goes on since the machine started, so that
setting the time of day neither fakes health nor hides it. With --alive the file's age alone
counts: what a restart would not mend is no reason for one. Says what is wrong in one line.
Needs nothing but Python.
"""

from __future__ import annotations

import json
import math
import sys
import time


def judge(path: str, oldest: float, *, alive: bool = False) -> str:
    """What is wrong; empty if nothing is."""
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        age = _age(report)
        problems = dict(report["problems"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{path} can't be read: {type(error).__name__}"
    if age == math.inf:
        return "the worker did not report since the machine was started"
    if age > oldest:
        return f"the worker did not report for {age:.0f} seconds"
    return "" if alive else "; ".join(f"{name}: {what}" for name, what in problems.items())


def _age(report: dict[str, object]) -> float:
    """Seconds since it was written; for ever, if that was before the machine started."""
    if "beat" not in report:  # of an earlier program
        return time.time() - float(str(report["written"]))
    if report["boot"] != _boot_id():
        return math.inf
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    now = time.monotonic() if clock is None else time.clock_gettime(clock)
    return now - float(str(report["beat"]))


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def main() -> str | int:
    """What to exit with: 0, or what is wrong, which makes it 1."""
    alive = "--alive" in sys.argv
    given = [word for word in sys.argv[1:] if word != "--alive"]
    if len(given) not in (1, 2):
        return str(__doc__)
    return judge(given[0], float(given[1]) if given[1:] else 60.0, alive=alive) or 0


if __name__ == "__main__":
    sys.exit(main())
