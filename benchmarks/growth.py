"""What one operation costs as the vault grows: seconds, and bytes read and written.

``python -m benchmarks.growth [--credentials 100,…] [--grants 10,…] [--events 10000,…] [--cpu]``

Vaults in files, of each size: one put, a KEK and a master rotation with that many
credentials; one grant with that many grants; `audit tail -n 10`, `audit prove` and `status`
with that many events, each as a command of its own. Bytes are what the process passed to and
from the kernel (/proc/self/io), so they are exact to some kilobytes and no other work on the
machine moves them; seconds are medians of rounds in which the sizes take turns, and a ratio is
the median of the paired ones. It prints how much more the largest costs than the
smallest, beside the budgets of DESIGN section 9; ``--plot`` draws both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from apex_creds import ApiKey, Vault
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.schedule import Level
from benchmarks.harness import Budget, UnavailableError, budget_table, duration
from benchmarks.rotation import engine_of, put_items, request, values

CREDENTIALS: Final = (100, 1_000, 10_000, 100_000)
GRANTS: Final = (10, 100, 1_000, 10_000)
EVENTS: Final = (10_000, 1_000_000)
TIMES: Final = 5
COMMANDS: Final = {
    "audit tail": ("audit", "tail", "-n", "10"),
    "audit prove": ("audit", "prove", "7"),
    "status": ("status",),
}
SMALLEST: Final = {"put": 1_000, "grant": 10, "KEK rotation": 1_000, "master rotation": 1_000}
"""The size that a budget compares the largest one with; of commands, the smallest there is."""
LIMITS: Final = {"put": 2.0, "grant": 2.0, "KEK rotation": 1.2, "master rotation": 1.2}
_OF_A_COMMAND: Final = 1.3
_RUN: Final = """
import atexit, sys
counted = sys.argv.pop(1)
atexit.register(lambda: open(counted, "w").write(open("/proc/self/io").read()))
sys.argv[0] = "apex-creds"
from apex_creds.cli import main
main()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one operation cost in a vault of one size: medians, and each round's seconds."""

    what: str
    size: int
    seconds: float
    read: int
    written: int
    rounds: tuple[float, ...] = ()

    def longer_than(self, other: Figure) -> float:
        """How many times as long it takes, paired by round where there are any."""
        if not self.rounds or len(self.rounds) != len(other.rounds):
            return self.seconds / other.seconds
        return median(a / b for a, b in zip(self.rounds, other.rounds, strict=True))


_clock: Callable[[], float] = time.perf_counter


def processor_time() -> float:
    """Seconds of this process, all its threads, and the commands that it waited for."""
    commands = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + commands.ru_utime + commands.ru_stime


Cost = tuple[float, int, int]
"""Seconds, bytes read, bytes written."""


def moved(text: str) -> tuple[int, int]:
    """Bytes read and written, out of a process's ``io`` file."""
    numbers = dict(line.split(": ") for line in text.splitlines())
    return int(numbers["rchar"]), int(numbers["wchar"])


def so_far() -> tuple[int, int]:
    """The bytes of this process.

    Raises:
        UnavailableError: The kernel does not count them.
    """
    try:
        return moved(Path("/proc/self/io").read_text(encoding="ascii"))
    except OSError as error:
        raise UnavailableError("needs Linux, which counts bytes in /proc/self/io") from error


async def measured(
    what: str, size: int, work: Callable[[int], Awaitable[object]], *, times: int = TIMES
) -> Figure:
    """Medians of some runs of ``work``, which is given the number of each."""
    [figure] = await in_turns([(what, size, partial(_counted, work))], times=times)
    return figure


async def in_turns(
    works: Sequence[tuple[str, int, Callable[[int], Awaitable[Cost]]]], *, times: int = TIMES
) -> list[Figure]:
    """Medians of what, by size, costs; a slow moment of the machine falls on all of them."""
    costs: list[list[Cost]] = [[] for _ in works]
    for number in range(times):
        for (_, _, work), found in zip(works, costs, strict=True):
            found.append(await work(number))
    figures = []
    for (what, size, _), found in zip(works, costs, strict=True):
        rounds, read, written = zip(*found, strict=True)
        moved = {"read": int(median(read)), "written": int(median(written))}
        figures.append(
            Figure(what=what, size=size, seconds=median(rounds), rounds=rounds, **moved)
        )
    return figures


async def _counted(work: Callable[[int], Awaitable[object]], number: int) -> Cost:
    before, began = so_far(), _clock()
    await work(number)
    seconds, after = _clock() - began, so_far()
    return seconds, after[0] - before[0], after[1] - before[1]


async def with_credentials(sizes: Sequence[int], where: Path) -> list[Figure]:
    """A put, and whole rotations with no grace, of so many credentials of one service."""

    async def put(vault: Vault, number: int) -> None:
        await vault.put("credential 0", ApiKey(f"changed {number}"), service="service 0")

    async def rotated(engine: Engine, level: Level, _: int) -> None:
        await request(engine, level)
        assert not (await engine.run(lease=False)).failed

    works: dict[str, list[tuple[str, int, Callable[[int], Awaitable[Cost]]]]] = {}
    async with _vaults(sizes, where) as vaults:
        for size, vault in vaults.items():
            await vault.put_many(put_items(values(size), services=1))
            engine = engine_of(vault)
            for what, work in (
                ("put", partial(put, vault)),
                ("KEK rotation", partial(rotated, engine, Level.KEK)),
                ("master rotation", partial(rotated, engine, Level.MASTER)),
            ):
                works.setdefault(what, []).append((what, size, partial(_counted, work)))
        return [each for some in works.values() for each in await in_turns(some)]


async def with_grants(sizes: Sequence[int], where: Path) -> list[Figure]:
    """A grant beside so many others, each of another plugin."""

    async def grant(vault: Vault, number: int) -> None:
        await vault.grant(f"another{number}", "openai")

    async with _vaults(sizes, where) as vaults:
        for size, vault in vaults.items():
            await vault.put("openai", ApiKey("x" * 32))
            for number in range(size):
                await vault.grant(f"plugin{number}", "openai")
        return await in_turns(
            [
                ("grant", size, partial(_counted, partial(grant, vault)))
                for size, vault in vaults.items()
            ],
            times=3 * TIMES,
        )


@asynccontextmanager
async def _vaults(sizes: Sequence[int], where: Path) -> AsyncIterator[dict[int, Vault]]:
    async with AsyncExitStack() as stack:
        made = {}
        for size in sizes:
            vault = await Vault.create(where / str(size), master=f"file:{where}/{size}.key")
            made[size] = await stack.enter_async_context(vault)
        yield made


async def with_events(sizes: Sequence[int], where: Path) -> list[Figure]:
    """Commands that read a log of so many events."""
    async with _vaults(sizes, where) as vaults:
        for size, vault in vaults.items():
            now = vault.clock.time()
            for _ in range(size):
                vault.audit.append(AuditEvent(now, EventKind.LEASE, plugin="p", credential="c"))
    figures: list[Figure] = []
    for what, line in COMMANDS.items():
        works = [(what, size, partial(_command, where, size, line)) for size in sizes]
        figures += await in_turns(works)
    return figures


async def _command(where: Path, size: int, line: Sequence[str], _: int) -> Cost:
    counted, master = where / "io", f"file:{where}/{size}.key"
    arguments = [*line, "--home", str(where / str(size)), "--master", master]
    began = _clock()
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _RUN, str(counted), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = _clock() - began
    if done.returncode:
        raise UnavailableError(f"{line[0]}: {done.stderr.strip()}")
    return seconds, *moved(counted.read_text(encoding="ascii"))


async def run(
    credentials: Sequence[int], grants: Sequence[int], events: Sequence[int]
) -> list[Figure]:
    """Makes a vault of each size, and measures in all of them by turns."""
    figures: list[Figure] = []
    for measure, sizes in (
        (with_credentials, credentials),
        (with_grants, grants),
        (with_events, events),
    ):
        with tempfile.TemporaryDirectory() as where:
            figures += await measure(sizes, Path(where))
    return figures


def budgets(figures: Sequence[Figure]) -> list[Budget]:
    """How much more the largest costs, in bytes and in time."""
    found: list[Budget] = []
    for what in dict.fromkeys(figure.what for figure in figures):
        by_size = {figure.size: figure for figure in figures if figure.what == what}
        least = SMALLEST.get(what, min(by_size))
        small, big = by_size.get(least), by_size[max(by_size)]
        if small is None or small is big:
            continue
        about, limit = f"{what}, {big.size:,} over {least:,}", LIMITS.get(what, _OF_A_COMMAND)
        more = (big.read + big.written) / max(small.read + small.written, 1)
        found.append(Budget(f"{about}: bytes", more, limit, "×"))
        found.append(Budget(f"{about}: time", big.longer_than(small), limit, "×"))
    return found


def show(figures: Sequence[Figure]) -> None:
    """Prints a table, and where the budgets stand."""
    out = Console()
    table = Table("what", "size", "time", "KiB read", "KiB written", title="growth")
    for each in figures:
        numbers = (f"{each.read / 1024:,.0f}", f"{each.written / 1024:,.0f}")
        table.add_row(each.what, f"{each.size:,}", duration(each.seconds), *numbers)
    out.print(table)
    out.print(budget_table(budgets(figures)))


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Bytes and time against size; needs matplotlib."""
    try:
        import matplotlib as drawing_library
    except ImportError:
        raise UnavailableError("pip install matplotlib") from None
    drawing_library.use("Agg")
    from matplotlib import pyplot

    drawing, (left, right) = pyplot.subplots(1, 2, figsize=(13, 6), layout="constrained")
    for what in dict.fromkeys(figure.what for figure in figures):
        rows: list[Any] = sorted((f for f in figures if f.what == what), key=lambda f: f.size)
        sizes = [each.size for each in rows]
        left.loglog(sizes, [each.read + each.written for each in rows], "o-", label=what)
        right.loglog(sizes, [each.seconds for each in rows], "o-", label=what)
    left.set(xlabel="credentials, grants or events", ylabel="bytes read and written")
    right.set(xlabel="credentials, grants or events", ylabel="seconds")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    for name, sizes in (("credentials", CREDENTIALS), ("grants", GRANTS), ("events", EVENTS)):
        parser.add_argument(f"--{name}", default=",".join(map(str, sizes)))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--cpu", action="store_true", help="processor time of the process: a busy machine"
    )
    chosen = parser.parse_args()
    if chosen.cpu:
        global _clock
        _clock = processor_time
    wanted = [_sizes(chosen.credentials), _sizes(chosen.grants), _sizes(chosen.events)]
    figures = asyncio.run(run(*wanted))
    show(figures)
    if chosen.json:
        rows = [asdict(figure) for figure in figures]
        chosen.json.write_text(json.dumps({"cpus": os.cpu_count(), "figures": rows}, indent=2))
    if chosen.plot:
        plot(figures, chosen.plot)


def _sizes(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


if __name__ == "__main__":
    main()
