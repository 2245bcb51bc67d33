"""What it costs to open a vault with many credentials: seconds, and memory for each.

    python -m benchmarks.memory [--sizes 1000,10000,100000] [--json]

Each vault is opened by a process that did nothing before. Memory is what the kernel counts as
resident (``VmRSS``, and ``VmHWM`` for the peak), less the same of a vault with one credential.
Budgets: DESIGN section 9. Linux alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from apex_creds import Vault
from benchmarks.harness import Budget, budget_table, duration
from benchmarks.rotation import put_items, values

_SIZES: Final = (1_000, 10_000, 100_000)
_OPEN: Final = """
import asyncio, json, sys, time
from apex_creds import CredentialMiddleware, Vault

async def main(home, master):
    began = time.perf_counter()
    async with await Vault.unseal(home, master=master) as vault:
        await vault.get("credential 0")
        seconds = time.perf_counter() - began
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        resident, peak = (int(fields[name].split()[0]) for name in ("VmRSS", "VmHWM"))
        print(json.dumps([seconds, resident, peak]))

asyncio.run(main(*sys.argv[1:]))
"""


def opened(size: int) -> tuple[float, float, float]:
    """Seconds, and KiB resident now and at the peak, with so many credentials."""
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        where = (f"{folder}/home", f"file:{folder}/master.key")

        async def make() -> None:
            async with await Vault.create(Path(where[0]), master=where[1]) as vault:
                await vault.put_many(put_items(values(size), 1))

        asyncio.run(make())
        runs = [
            json.loads(
                subprocess.run(
                    (sys.executable, "-c", _OPEN, *where), capture_output=True, check=True
                ).stdout
            )
            for _ in range(3)
        ]
    seconds, resident, peak = (min(each) for each in zip(*runs, strict=True))
    return seconds, resident, peak


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, _SIZES)))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    sizes = [int(text) for text in chosen.sizes.split(",")]
    _, alone, alone_peak = opened(1)
    found = {}
    for size in sizes:
        seconds, resident, peak = opened(size)
        found[size] = (seconds, (resident - alone) / size, (peak - alone_peak) / size)
    if chosen.json:
        print(json.dumps({str(size): row for size, row in found.items()}))
        return
    table = Table("credentials", "opened in", "KiB each", "KiB each, at the peak")
    for size, (seconds, each, most) in found.items():
        table.add_row(f"{size:,}", duration(seconds), f"{each:.2f}", f"{most:.2f}")
    out, most = Console(), max(sizes)
    out.print(table)
    budgets = [
        Budget(f"memory for each of {most:,}", found[most][1], 0.7, "KiB"),
        Budget("the same at the peak", found[most][2], 1.0, "KiB"),
    ]
    if 10_000 in found:
        budgets.append(Budget("10,000 opened", found[10_000][0] * 1e3, 150, "ms"))
    out.print(budget_table(budgets))


if __name__ == "__main__":
    main()
