"""``demo``: announces, runs with a progress display, and ends with a table."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import anyio
import typer

from apex_creds.cli import options, output, session
from apex_creds.cli.demo.findings import Findings
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption, Settings
from apex_creds.keys import MasterKeyProvider

_ANNOUNCED = "IN-PROCESS KEYRING, FOR THIS DEMO ONLY: the master key is in memory, unprotected."
_LINE = 100
_REAL = "The real one: apex-creds demo --master keyring:"


def demo(
    ctx: typer.Context,
    calls: Annotated[
        int, typer.Option(metavar="N", min=15, max=100_000, help="How many invocations.")
    ] = 300,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Run three plugins on a real HTTP service, in a fresh temporary vault, and judge it.

    Ends with 1 if any promise was broken. A --home is kept, and must have no vault yet.
    """
    chosen = options.settings(ctx, home, master)
    provider = _provider(chosen, quiet=json)
    with tempfile.TemporaryDirectory(prefix="apex-creds-demo-") as scratch:
        findings = _run(chosen, Path(scratch), provider, calls, quiet=json)
    if json:
        output.json_out(_as_json(findings, provider, chosen))
    else:
        _show(findings)
    if not findings.ok:
        raise typer.Exit(1)


def _provider(chosen: Settings, *, quiet: bool) -> MasterKeyProvider:
    if chosen.master is not None:
        return session.provider(chosen.master, new=True)
    # Late: merely importing it makes it known to the keyring package.
    from apex_creds.cli.demo.keyring import InProcessKeyring
    from apex_creds.keys.os_keyring import KeyringProvider

    if not quiet:
        output.say(_ANNOUNCED, style="bold yellow")
        output.say(_REAL, style="yellow")
    return KeyringProvider(backend=InProcessKeyring())


def _run(
    chosen: Settings, scratch: Path, provider: MasterKeyProvider, count: int, *, quiet: bool
) -> Findings:
    from apex_creds.cli.demo.run import Hooks, run

    hooks = Hooks(
        say=(lambda _: None) if quiet else output.say,
        progress=functools.partial(_progress, quiet=quiet),
    )
    start = functools.partial(
        run,
        chosen.home or scratch / "home",
        scratch / "demo.env",
        provider,
        count=count,
        hooks=hooks,
    )
    return anyio.run(start)


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
        console=output.console(sys.stderr),
        redirect_stdout=False,
        redirect_stderr=False,
        disable=quiet,
    ) as progress:
        task = progress.add_task("", total=count)
        yield lambda: progress.advance(task)


def _show(findings: Findings) -> None:
    output.table(
        ("what", "found", "wanted", ""),
        ((row.name, row.found, row.wanted, _verdict(row.ok)) for row in findings.rows()),
    )
    if findings.samples:
        output.say("What the leaking plugin got out:", style="bold")
        output.fields((f"  {what}", _short(text)) for what, text in findings.samples)
    for line in findings.wrong[:10]:
        output.say(f"wrong: {line}", style="red")
    if findings.overhead > 0:  # on a busy machine it is lost in the noise
        output.say(
            f"Here a call with a handle takes {findings.overhead:.0f} µs longer than without."
        )
    if findings.ok:
        output.say("Every promise was kept.", style="bold green")
    else:
        output.say("A promise was BROKEN.", style="bold red")


def _short(text: str) -> str:
    return text if len(text) <= _LINE else text[:_LINE] + "…"


def _verdict(ok: bool) -> object:
    return output.cell("ok", style="green") if ok else output.cell("WRONG", style="bold red")


def _as_json(
    findings: Findings, provider: MasterKeyProvider, chosen: Settings
) -> dict[str, output.Json]:
    keyring = "in-process, for the demo only" if chosen.master is None else provider.uri
    return {
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
