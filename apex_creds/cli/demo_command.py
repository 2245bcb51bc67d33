"""``demo``: announces, runs with a progress display, and ends with a table."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import anyio

from apex_creds.cli import console
from apex_creds.cli.command import JsonOption, Settings, command, find_provider
from apex_creds.cli.console import Cell, Fields, Json, Line, Part, Report, Rows
from apex_creds.cli.program import option

if TYPE_CHECKING:
    from apex_creds.cli.demo.scenario import Findings

_ANNOUNCED: Final = (
    "IN-PROCESS KEYRING, FOR THIS DEMO ONLY: the master key is in memory, unprotected."
)
_LINE: Final = 100
_REAL: Final = "The real one: apex-creds demo --master keyring:"


@command()
def demo(
    chosen: Settings,
    calls: Annotated[int, option("N", "How many invocations.", min=15, max=100_000)] = 300,
    json: JsonOption = False,
) -> None:
    """Run three plugins on a real HTTP service, in a fresh temporary vault, and judge it.

    Ends with 1 if any promise was broken. A --home is kept, and must have no vault yet.
    """
    from apex_creds.cli.demo import scenario

    if chosen.master is not None:
        provider = find_provider(chosen.master, new=True)
    else:
        # Late: merely importing it makes it known to the keyring package.
        from apex_creds.cli.demo.service import InProcessKeyring
        from apex_creds.keys.os_keyring import KeyringProvider

        if not json:
            console.say(_ANNOUNCED, style="bold yellow")
            console.say(_REAL, style="yellow")
        provider = KeyringProvider(backend=InProcessKeyring())

    async def run(scratch: Path) -> Findings:
        return await scenario.run(
            chosen.home or scratch / "home",
            scratch / "demo.env",
            provider,
            count=calls,
            say=(lambda _: None) if json else console.say,
            progress=lambda number: _progress(number, quiet=json),
        )

    with tempfile.TemporaryDirectory(prefix="apex-creds-demo-") as folder:
        findings = anyio.run(run, Path(folder))
    keyring = "in-process, for the demo only" if chosen.master is None else provider.uri
    data: dict[str, Json] = {
        "ok": findings.ok,
        "master": keyring,
        "checks": [asdict(row) for row in findings.rows()],
        "calls": findings.calls,
        "served_right": findings.right,
        "denials": findings.denials,
        "leaks": findings.leaks,
        "leases_open": findings.leases,
        "audit_events": findings.events,
        "audit_chain_ok": findings.chain_ok,
        "overhead_us": round(findings.overhead, 1),
        "wrong": list(findings.wrong),
    }
    report = Report(data, *_shown(findings), code=int(not findings.ok))
    report.show(as_json=json)
    report.end()


@contextmanager
def _progress(count: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (TextColumn("calls"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns,
        console=console.terminal(sys.stderr),
        redirect_stdout=False,
        redirect_stderr=False,
        disable=quiet,
    ) as progress:
        task = progress.add_task("", total=count)
        yield lambda: progress.advance(task)


def _shown(findings: Findings) -> Iterator[Part]:
    verdicts = {True: Cell("ok", "green"), False: Cell("WRONG", "bold red")}
    yield Rows(
        ("what", "found", "wanted", ""),
        [(row.name, row.found, row.wanted, verdicts[row.ok]) for row in findings.rows()],
    )
    if findings.samples:
        yield Line("What the leaking plugin got out:", "bold")
        samples = ((what, f"{t[:_LINE]}…" if t[_LINE:] else t) for what, t in findings.samples)
        yield Fields((f"  {what}", text) for what, text in samples)
    for line in findings.wrong[:10]:
        yield Line(f"wrong: {line}", "red")
    if findings.overhead > 0:  # on a busy machine it is lost in the noise
        longer = f"{findings.overhead:.0f} µs longer than without"
        yield f"Here a call with a handle takes {longer}."
    if findings.ok:
        yield Line("Every promise was kept.", "bold green")
    else:
        yield Line("A promise was BROKEN.", "bold red")
