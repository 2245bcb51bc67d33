"""What one plugin invocation costs with a handle instead of a secret, beside the peers.

``python -m benchmarks.invoke [--json] [--rounds N] [--only NAME ...] [--strict]``

One run measures the whole invocation through the middleware (lease, policy, audit write,
redeem, revoke), the bare call that it is over, a redeem alone, and each peer that is here; it
prints medians, paired ratios, and where the budgets of DESIGN section 9 stand.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from benchmarks.harness import (
    Budget,
    Operation,
    Run,
    Subject,
    UnavailableError,
    as_json,
    measure,
    show,
)
from benchmarks.peers import PEERS

_NOT_YET: Final = "the middleware is not here yet"


@asynccontextmanager
async def bare_call() -> AsyncIterator[Operation]:
    """The plugin's action, called directly: what every overhead is over."""

    async def action(prompt: str) -> int:
        return len(prompt)

    async def call() -> int:
        return await action("hello")

    yield call


# OWN SIDE: one function for each measured thing, to be finished with the middleware. Each opens
# a vault in a temporary home under a `file:` master key, stores benchmarks.peers.SECRET with
# `bearer` delivery, grants it, and yields the operation.


@asynccontextmanager
async def invocation() -> AsyncIterator[Operation]:
    """OWN SIDE: `bare_call`'s action through the middleware, redeeming once; tracing off."""
    raise UnavailableError(_NOT_YET)
    yield bare_call  # type: ignore[unreachable]  # a generator, as the finished one is


@asynccontextmanager
async def traced_invocation() -> AsyncIterator[Operation]:
    """OWN SIDE: the same with an SDK tracer provider that records three spans in memory."""
    raise UnavailableError(_NOT_YET)
    yield bare_call  # type: ignore[unreachable]


@asynccontextmanager
async def redeem() -> AsyncIterator[Operation]:
    """OWN SIDE: one redeem of a handle of an open lease: checks, audit write, decrypt, wipe."""
    raise UnavailableError(_NOT_YET)
    yield bare_call  # type: ignore[unreachable]


OWN: Final = (
    Subject("bare", "the action, called directly", bare_call),
    Subject("invocation", "the whole invocation, tracing off", invocation),
    Subject("traced", "the whole invocation, three recorded spans", traced_invocation),
    Subject("redeem", "one redeem of an open lease", redeem),
)


def budgets(run: Run) -> list[Budget]:
    """The budgets of DESIGN section 9 that this run can judge."""
    found = run.results
    judged: list[Budget] = []
    if "invocation" in found and "bare" in found:
        over = found["invocation"].over(found["bare"]) * 1e6
        judged.append(Budget("whole invocation over the bare call", over, 40, "µs"))
    if "traced" in found and "bare" in found:
        over = found["traced"].over(found["bare"]) * 1e6
        judged.append(Budget("the same with three recorded spans", over, 100, "µs"))
    if "traced" in found and "openbao" in found:
        times = found["openbao"].ratio_to(found["traced"])
        judged.append(Budget("faster than one OpenBao kv get", times, 7, "×", at_least=True))
    if "redeem" in found:
        judged.append(Budget("redeem alone", found["redeem"].median * 1e6, 12, "µs"))
    return judged


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.invoke", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, no tables")
    parser.add_argument("--rounds", type=int, default=30, help="figures for each subject")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these alone")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a budget is missed")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 0, or 1 when ``--strict`` and a budget is missed."""
    arguments = _arguments(argv)
    subjects = [one for one in (*OWN, *PEERS) if _wanted(one, arguments.only)]
    run = asyncio.run(measure(subjects, rounds=max(arguments.rounds, 1)))
    judged = budgets(run)
    if arguments.json:
        print(as_json(run, reference="invocation", budgets=judged))
    else:
        show(run, reference="invocation", budgets=judged)
    missed = [budget for budget in judged if not budget.kept]
    return 1 if arguments.strict and missed else 0


def _wanted(subject: Subject, only: Sequence[str] | None) -> bool:
    return only is None or subject.name in only


if __name__ == "__main__":
    sys.exit(main())
