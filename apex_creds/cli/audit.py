"""``audit verify`` and ``audit tail``: the log, without any key."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from apex_creds.audit import Recorded, check, read
from apex_creds.cli import options, output, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.errors import AuditTamperedError
from apex_creds.vault.home import audit_directory


def verify(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Check every line of the audit log against its hash chain."""
    directory, vault_id = _place(options.settings(ctx, home, master))
    report = check(directory, vault_id=vault_id)
    if json:
        output.json_out({"ok": report.ok, **msgspec.to_builtins(report)})
    if not report.ok:
        raise AuditTamperedError(
            f"Line {report.bad_line} of the audit log {report.how}.",
            hint=f"The {report.count} events before it verify. Keep a copy of the log.",
        )
    if not json:
        output.say(f"{report.count} events, unbroken.", style="green")
        output.say(f"head {report.head}")


def tail(
    ctx: typer.Context,
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, max=100_000, help="How many events.")
    ] = 20,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Print the last events of the audit log, checked."""
    directory, vault_id = _place(options.settings(ctx, home, master))
    last = deque(read(directory, vault_id=vault_id), maxlen=count)
    if json:
        output.json_out([msgspec.to_builtins(event) for event in last])
        return
    columns = ("#", "time", "event", "plugin", "credential", "what", "result")
    output.table(columns, map(_row, last))


def _row(event: Recorded) -> tuple[object, ...]:
    what = " ".join(filter(None, (event.action, event.method, event.origin)))
    result = " ".join(filter(None, (event.decision, event.reason, event.outcome)))
    style = "red" if event.decision == "deny" or event.kind in ("leak", "denial") else ""
    kind = output.cell(event.kind, style=style)
    at = when.show(event.time)
    return event.seq, at, kind, event.plugin or "-", event.credential or "-", what, result


def _place(chosen: options.Settings) -> tuple[Path, str]:
    header = session.read_header(chosen)
    return audit_directory(session.home_of(chosen)), header.vault_id
