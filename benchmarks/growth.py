"""What one operation costs as the vault grows: seconds, and bytes read and written.

``python -m benchmarks.growth [--credentials 100,1000,…] [--grants 10,…] [--events 10000,…]``

Vaults in files, of each size: one put, a KEK and a master rotation with that many
credentials; one grant with that many grants; `audit tail -n 10`, `audit prove` and `status`
with that many events, each as a command of its own. Bytes are what the process passed to and
from the kernel (/proc/self/io), so they are exact to some kilobytes and no other work on the
machine moves them; seconds are medians. It prints how much more the largest costs than the
smallest, beside the budgets of DESIGN section 9; ``--plot`` draws both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from apex_creds import ApiKey, Vault
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.scheduler.schedule import Level
from benchmarks.harness import Budget, UnavailableError, duration
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
    """What one operation cost in a vault of one size."""

    what: str
    size: int
    seconds: float
    read: int
    written: int


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
    found: list[tuple[float, int, int]] = []
    for number in range(times):
        before, began = so_far(), time.perf_counter()
        await work(number)
        seconds, after = time.perf_counter() - began, so_far()
        found.append((seconds, after[0] - before[0], after[1] - before[1]))
    seconds, read, written = (median(column) for column in zip(*found, strict=True))
    return Figure(what=what, size=size, seconds=seconds, read=int(read), written=int(written))


async def with_credentials(size: int, where: Path) -> list[Figure]:
    """A put, and whole rotations with no grace, of so many credentials of one service."""
    async with await Vault.create(where / "vault", master=f"file:{where}/key") as vault:
        await vault.put_many(put_items(values(size), services=1))
        engine = engine_of(vault)

        async def put(number: int) -> None:
            await vault.put("credential 0", ApiKey(f"changed {number}"), service="service 0")

        async def rotated(level: Level, _: int) -> None:
            await request(engine, level)
            assert not (await engine.run(lease=False)).failed

        return [
            await measured("put", size, put),
            await measured("KEK rotation", size, partial(rotated, Level.KEK)),
            await measured("master rotation", size, partial(rotated, Level.MASTER)),
        ]


async def with_grants(size: int, where: Path) -> list[Figure]:
    """A grant beside so many others, each of another plugin."""
    async with await Vault.create(where / "vault", master=f"file:{where}/key") as vault:
        await vault.put("openai", ApiKey("x" * 32))
        for number in range(size):
            await vault.grant(f"plugin{number}", "openai")

        async def grant(number: int) -> None:
            await vault.grant(f"another{number}", "openai")

        return [await measured("grant", size, grant)]


async def with_events(size: int, where: Path) -> list[Figure]:
    """Commands that read a log of so many events."""
    home, master = where / "vault", f"file:{where}/key"
    async with await Vault.create(home, master=master) as vault:
        now = vault.clock.time()
        for _ in range(size):
            vault.audit.append(AuditEvent(now, EventKind.LEASE, plugin="p", credential="c"))
    figures = []
    for what, arguments in COMMANDS.items():
        found = [_command(where, [*arguments, "--home", str(home)], master) for _ in range(3)]
        seconds, read, written = (median(column) for column in zip(*found, strict=True))
        figures.append(
            Figure(what=what, size=size, seconds=seconds, read=int(read), written=int(written))
        )
    return figures


def _command(where: Path, arguments: Sequence[str], master: str) -> tuple[float, int, int]:
    counted = where / "io"
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(counted), *arguments, "--master", master],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise UnavailableError(f"{arguments[0]}: {done.stderr.strip()}")
    return seconds, *moved(counted.read_text(encoding="ascii"))


async def run(
    credentials: Sequence[int], grants: Sequence[int], events: Sequence[int]
) -> list[Figure]:
    """Makes a vault of each size, and measures in it."""
    figures: list[Figure] = []
    for measure, sizes in (
        (with_credentials, credentials),
        (with_grants, grants),
        (with_events, events),
    ):
        for size in sizes:
            with tempfile.TemporaryDirectory() as where:
                figures += await measure(size, Path(where))
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
        found.append(Budget(f"{about}: time", big.seconds / small.seconds, limit, "×"))
    return found


def show(figures: Sequence[Figure]) -> None:
    """Prints a table, and where the budgets stand."""
    out = Console()
    table = Table("what", "size", "time", "KiB read", "KiB written", title="growth")
    for each in figures:
        numbers = (f"{each.read / 1024:,.0f}", f"{each.written / 1024:,.0f}")
        table.add_row(each.what, f"{each.size:,}", duration(each.seconds), *numbers)
    out.print(table)
    for budget in budgets(figures):
        verdict = "kept" if budget.kept else "MISSED"
        out.print(f"{budget.what}: {budget.measured:.3g} × (≤ {budget.limit:g}) {verdict}")


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
    chosen = parser.parse_args()
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
