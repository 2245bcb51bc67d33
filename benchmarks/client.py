"""What the search of answers costs: one invocation with ``client()``, with it and without.

``python -m benchmarks.client [--json] [--cpu] [--rounds N] [--only NAME …] [--strict]``

A small answer (beside httpx alone), 1 MiB, 100 MiB and 10,000 events of a stream, over the
loopback; none has the secret in it. One run measures all of them, interleaved, and judges the
budgets of DESIGN section 9 by paired ratios. `benchmarks.calls` counts the Python calls.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final

from apex_creds import CredentialMap, CredentialMiddleware
from benchmarks.harness import (
    Budget,
    Operation,
    Run,
    Subject,
    as_json,
    measure,
    serving,
    show,
)
from benchmarks.invoke import PLAIN_HTTP, WITH_CLIENT, manifest_for, vault_for

_MIB: Final = 1 << 20
_TEXT: Final = json.dumps(
    [{"id": n, "name": f"user {n}", "text": "the quick brown fox"} for n in range(20_000)]
).encode()[:_MIB]
_EVENT: Final = b'data: {"id":"chatcmpl-1","choices":[{"delta":{"content":"hello"}}]}\n\n'
_EVENTS: Final = 10_000
BODIES: Final[dict[str, tuple[str, list[bytes], float]]] = {
    "1-mib": ("an answer of 1 MiB", [_TEXT], 1.6),
    "100-mib": ("an answer of 100 MiB", [_TEXT] * 100, 1.6),
    "events": ("10,000 events of a stream", [_EVENT] * _EVENTS, 1.15),
}
"""What they are, their chunks, and the budget for the search, over none."""


@asynccontextmanager
async def reading(name: str, *, searched: bool) -> AsyncIterator[Operation]:
    """An invocation that reads one of the bodies, as its lines where it is of events."""
    with serving({each: body[1] for each, body in BODIES.items()}) as origin:
        manifest, url = manifest_for(origin, access="inject"), f"{origin}/{name}"

        async def action(credentials: CredentialMap) -> int:
            size = 0
            http = credentials["openai"].client(timeout=60)
            async with http, http.stream("GET", url) as answer:
                pieces = answer.aiter_lines() if name == "events" else answer.aiter_bytes()
                async for piece in pieces:
                    size += len(piece)
            return size

        async with vault_for(origin) as vault, CredentialMiddleware(vault) as middleware:
            if not searched:
                middleware.broker.search = None

            async def call() -> object:
                return await middleware.invoke_action(manifest, "chat", action)

            yield call


def _subject(name: str, *, searched: bool) -> Subject:
    how = "searched" if searched else "as it comes"
    opened: Callable[[], AbstractAsyncContextManager[Operation]] = partial(
        reading, name, searched=searched
    )
    return Subject(f"{name}-{'searched' if searched else 'plain'}",
                   f"{BODIES[name][0]}, {how}", opened)  # fmt: skip


SUBJECTS: Final = (
    WITH_CLIENT,
    PLAIN_HTTP,
    *(_subject(name, searched=searched) for name in BODIES for searched in (True, False)),
)


def budgets(run: Run) -> list[Budget]:
    """The budgets of DESIGN section 9 that this run can judge."""
    found, judged = run.results, []
    if "client" in found and "httpx" in found:
        times = found["client"].ratio_to(found["httpx"])
        judged.append(Budget("client() and one GET, over httpx alone", times, 1.15, "×"))
    for name, (what, _, limit) in BODIES.items():
        one, other = found.get(f"{name}-searched"), found.get(f"{name}-plain")
        if one is not None and other is not None:
            judged.append(Budget(f"{what}, searched", one.ratio_to(other), limit, "×"))
    return judged


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0, or 1 when ``--strict`` and a budget is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks.client", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, no tables")
    parser.add_argument("--rounds", type=int, default=10, help="figures for each subject")
    parser.add_argument(
        "--cpu", action="store_true", help="processor time of the loop's thread: a busy machine"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="what begins so alone")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a budget is missed")
    chosen = parser.parse_args(argv)
    wanted = tuple(chosen.only or ("",))
    subjects = [subject for subject in SUBJECTS if subject.name.startswith(wanted)]
    clock = time.thread_time if chosen.cpu else time.perf_counter
    run = asyncio.run(measure(subjects, rounds=max(chosen.rounds, 1), clock=clock))
    judged = budgets(run)
    if chosen.json:
        print(as_json(run, reference=subjects[-1].name, budgets=judged))
    else:
        show(run, reference=subjects[-1].name, budgets=judged)
    return int(chosen.strict and not all(budget.kept for budget in judged))


if __name__ == "__main__":
    sys.exit(main())
