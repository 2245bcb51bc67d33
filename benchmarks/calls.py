"""How many Python functions one invocation calls: exact, so that a test can hold them.

``python -m benchmarks.calls [--list NAME]``

Counted are calls of Python functions (and resumed coroutines) in the thread of the event
loop, with `sys.setprofile`: tracing off, everything warm, the vault in files. What C calls
costs is not in it; `benchmarks.invoke` measures time.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from types import FrameType
from typing import Final

from rich.console import Console

from benchmarks.harness import Subject
from benchmarks.invoke import (
    DECLARED,
    INVOCATION,
    PLAIN_HTTP,
    PLAIN_HTTP_IN_MEMORY,
    WITH_CLIENT,
    WITH_CLIENT_IN_MEMORY,
)

COUNTED: Final = (DECLARED, INVOCATION, WITH_CLIENT_IN_MEMORY)
_SHOWN: Final = (*COUNTED, PLAIN_HTTP_IN_MEMORY, WITH_CLIENT, PLAIN_HTTP)
BUDGETS: Final = {DECLARED.name: 42, INVOCATION.name: 98, WITH_CLIENT_IN_MEMORY.name: 560}
"""Calls; with the margin, those of DESIGN section 9."""
MARGIN: Final = 1.05
"""Versions of Python and of httpx differ by a few."""
_WARM: Final = 200
_ROUNDS: Final = 25

Place = tuple[str, str]
"""A file, and a function in it."""


async def counted(subject: Subject) -> Counter[Place]:
    """What one operation calls, at its least: a timer may come in between."""
    async with AsyncExitStack() as stack:
        operation = await stack.enter_async_context(subject.open())
        for _ in range(_WARM):
            await operation()  # type: ignore[misc]
        found = [await _once(operation) for _ in range(_ROUNDS)]  # type: ignore[arg-type]
    return min(found, key=Counter.total)


async def _once(operation: Callable[[], Awaitable[object]]) -> Counter[Place]:
    calls: Counter[Place] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG001
        if event == "call":
            code = frame.f_code
            calls[code.co_filename, code.co_qualname] += 1

    sys.setprofile(note)
    try:
        await operation()
    finally:
        sys.setprofile(None)
    return calls


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the counts; 1 when one is over its budget."""
    parser = argparse.ArgumentParser(prog="benchmarks.calls", description=__doc__)
    parser.add_argument("--list", metavar="NAME", help="what this one calls, instead")
    chosen = parser.parse_args(argv).list
    out, missed = Console(highlight=False), False
    for subject in _SHOWN:
        if chosen not in (None, subject.name):
            continue
        found = asyncio.run(counted(subject))
        limit = BUDGETS.get(subject.name)
        missed |= limit is not None and found.total() > limit * MARGIN
        out.print(f"{found.total():6} {limit or '':6} {subject.name}: {subject.what}")
        if chosen is not None:
            for (file, function), times in found.most_common():
                out.print(f"{times:10}  {file.rpartition('site-packages/')[2]} {function}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
