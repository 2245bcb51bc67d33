"""Measures operations side by side, so that what counts is a ratio within one run.

Guarantees: every subject is warmed up; subjects are timed in interleaved rounds, in an order
that turns from round to round, so that a slow moment of the machine falls on all of them; a
ratio or a difference is the median over rounds of the *paired* value, never a quotient of two
numbers from different moments. What can't be started here is left out, with the reason.
"""

from __future__ import annotations

import cProfile
import gc
import inspect
import io
import json
import platform
import pstats
import socketserver
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Final

from rich.console import Console
from rich.table import Table

WARM_UP_SECONDS: Final = 0.1
WARM_UP_RUNS: Final = 5
BATCH_SECONDS: Final = 0.02

Operation = Callable[[], object] | Callable[[], Awaitable[object]]
Clock = Callable[[], float]


class UnavailableError(Exception):
    """A subject can't be measured here; the text says why, and what to install."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One thing to measure.

    ``open`` starts whatever the operation needs, yields the operation (plain or a coroutine
    function; it does the thing once), and stops it all; it raises `UnavailableError` instead
    where that can't be. ``between`` runs untimed before each batch.
    """

    name: str
    what: str
    open: Callable[[], AbstractAsyncContextManager[Operation]]
    between: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds for one operation of a subject, one figure for each round."""

    name: str
    what: str
    seconds: tuple[float, ...]
    batch: int

    @property
    def median(self) -> float:
        """The figure to quote."""
        return median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and 90th percentile."""
        if len(self.seconds) < 2:
            return self.median, self.median
        cuts = quantiles(self.seconds, n=10, method="inclusive")
        return cuts[0], cuts[-1]

    def ratio_to(self, other: Result) -> float:
        """How many times as long as ``other`` it takes, paired by round."""
        return median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


@dataclass(frozen=True, slots=True)
class Budget:
    """A promise of DESIGN section 9, and where it stands. ``at_least`` turns it around."""

    what: str
    measured: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the measured value is on the right side of the limit."""
        if self.at_least:
            return self.measured >= self.limit
        return self.measured <= self.limit


@dataclass(slots=True)
class Run:
    """All that one run found: results by name, and the reason for each subject left out."""

    rounds: int
    results: dict[str, Result] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Lane:
    subject: Subject
    operation: Operation
    is_async: bool
    batch: int = 1
    seconds: list[float] = field(default_factory=list)


async def measure(
    subjects: Sequence[Subject], *, rounds: int = 30, clock: Clock = time.perf_counter
) -> Run:
    """Starts the subjects, times them in interleaved rounds, and stops them.

    Args:
        subjects: what to measure, names unique.
        rounds: how many paired figures each subject gets.
        clock: seconds, monotonic.
    """
    run = Run(rounds)
    async with _started(subjects, run) as lanes:
        for lane in lanes:
            await _warm_up(lane, clock)
        gc.collect()
        for number in range(rounds):
            turn = number % max(len(lanes), 1)
            for lane in lanes[turn:] + lanes[:turn]:
                lane.seconds.append(await _timed(lane, clock))
    for lane in lanes:
        subject = lane.subject
        run.results[subject.name] = Result(
            subject.name, subject.what, tuple(lane.seconds), lane.batch
        )
    return run


@asynccontextmanager
async def _started(subjects: Sequence[Subject], run: Run) -> AsyncIterator[list[_Lane]]:
    async with AsyncExitStack() as stack:
        lanes: list[_Lane] = []
        for subject in subjects:
            try:
                operation = await stack.enter_async_context(subject.open())
            except UnavailableError as reason:
                run.skipped[subject.name] = str(reason)
                continue
            lanes.append(_Lane(subject, operation, inspect.iscoroutinefunction(operation)))
        yield lanes


async def _warm_up(lane: _Lane, clock: Clock) -> None:
    """Runs a subject until it is warm, then sizes its batches to about BATCH_SECONDS."""
    end, runs = clock() + WARM_UP_SECONDS, 1
    one = await _timed(lane, clock)
    while clock() < end or runs < WARM_UP_RUNS:  # the first may take all of the time
        one, runs = min(one, await _timed(lane, clock)), runs + 1
    lane.batch = max(1, int(BATCH_SECONDS / max(one, 1e-9)))
    await _timed(lane, clock)


async def _timed(lane: _Lane, clock: Clock) -> float:
    if lane.subject.between is not None:
        lane.subject.between()
    if lane.is_async:
        return await _async_batch(lane.operation, lane.batch, clock)
    return _plain_batch(lane.operation, lane.batch, clock)


def _plain_batch(operation: Operation, batch: int, clock: Clock) -> float:
    turns = range(batch)
    began = clock()
    for _ in turns:
        operation()
    return (clock() - began) / batch


async def _async_batch(operation: Operation, batch: int, clock: Clock) -> float:
    turns = range(batch)
    began = clock()
    for _ in turns:
        await operation()  # type: ignore[misc]
    return (clock() - began) / batch


@contextmanager
def serving(bodies: Mapping[str, Sequence[bytes]] | None = None) -> Iterator[str]:
    """An HTTP server on the loopback, in threads; yields its origin.

    Args:
        bodies: The chunks of an answer, by the path that asks for it; any other is ``hello``.
    """

    class Answering(socketserver.StreamRequestHandler):
        """Answers each request of a connection, which has no body."""

        def handle(self) -> None:
            path = ""
            for line in self.rfile:
                if line.startswith(b"GET "):
                    path = line.split()[1].decode().strip("/")
                if line != b"\r\n":
                    continue
                first, *others = (bodies or {}).get(path, [b"hello"])
                length = len(first) + sum(map(len, others))
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
                self.wfile.write(head.encode() + first)
                for chunk in others:
                    self.wfile.write(chunk)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


async def profile(subject: Subject, *, times: int = 5000) -> str:
    """Where the time of one subject goes: cProfile's table, by the time in each function."""
    async with subject.open() as operation:
        lane = _Lane(subject, operation, inspect.iscoroutinefunction(operation), batch=times)
        await _timed(lane, time.perf_counter)
        profiler = cProfile.Profile()
        with profiler:
            await _timed(lane, time.perf_counter)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(30)
    return text.getvalue()


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best: ``640 ns``, ``12.3 µs``, ``9.87 ms``."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def show(
    run: Run, *, reference: str, budgets: Sequence[Budget] = (), console: Console | None = None
) -> None:
    """Prints the results as a table, with ratios to ``reference`` where that was measured."""
    out = console or Console()
    out.print(_results_table(run, reference))
    for name, reason in run.skipped.items():
        out.print(f"[yellow]skipped[/] {name}: {reason}", highlight=False)
    if budgets:
        out.print(budget_table(budgets))


def _results_table(run: Run, reference: str) -> Table:
    table = Table(title=f"medians of {run.rounds} interleaved rounds", title_justify="left")
    base = run.results.get(reference)
    table.add_column("what")
    for column in ("median", "10–90 %", "batch"):
        table.add_column(column, justify="right", no_wrap=True)
    if base is not None:
        table.add_column(f"× {reference}", justify="right")
    for result in sorted(run.results.values(), key=lambda one: one.median):
        low, high = (duration(edge) for edge in result.spread)
        row = [f"[bold]{result.name}[/]\n{result.what}", duration(result.median)]
        row += [f"{low} – {high}", f"{result.batch:,}"]
        if base is not None:
            row.append(f"{result.ratio_to(base):.3g}")
        table.add_row(*row)
    return table


def budget_table(budgets: Sequence[Budget]) -> Table:
    """Where each budget stands."""
    table = Table(
        "budget", "measured", "limit", "", title="DESIGN section 9", title_justify="left"
    )
    for budget in budgets:
        sign = "≥" if budget.at_least else "≤"
        table.add_row(
            budget.what,
            f"{budget.measured:.3g} {budget.unit}",
            f"{sign} {budget.limit:g} {budget.unit}",
            "[green]kept[/]" if budget.kept else "[red]missed[/]",
        )
    return table


def as_json(run: Run, *, reference: str, budgets: Sequence[Budget] = ()) -> str:
    """The same as `show`, for a program: one JSON object, seconds as numbers."""
    base = run.results.get(reference)
    return json.dumps(
        {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "rounds": run.rounds,
            "reference": reference if base is not None else None,
            "results": [_result_json(result, base) for result in run.results.values()],
            "skipped": run.skipped,
            "budgets": [_budget_json(budget) for budget in budgets],
        },
        indent=2,
    )


def _result_json(result: Result, base: Result | None) -> Mapping[str, object]:
    low, high = result.spread
    return {
        "name": result.name,
        "what": result.what,
        "median_seconds": result.median,
        "p10_seconds": low,
        "p90_seconds": high,
        "operations_per_round": result.batch,
        "ratio": result.ratio_to(base) if base is not None else None,
    }


def _budget_json(budget: Budget) -> Mapping[str, object]:
    return {
        "what": budget.what,
        "measured": budget.measured,
        "limit": budget.limit,
        "unit": budget.unit,
        "at_least": budget.at_least,
        "kept": budget.kept,
    }
