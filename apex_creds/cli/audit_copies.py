"""``audit verify --all``: the copies of every home's log, in the database that they share.

Guarantee: a copy of this home's log that is not the beginning of that log itself is bad.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec

from apex_creds.audit.verify import Report
from apex_creds.cli import options, output, session
from apex_creds.errors import AuditTamperedError, InvalidInputError
from apex_creds.fs.home import audit_directory
from apex_creds.vault import Vault
from apex_creds.vault.node import node_of
from apex_creds.vault.shipping import copies, verify_copy


def verify_all(settings: options.Settings, *, json: bool) -> None:
    """Checks the copy of each home's log, as far as it has come.

    Raises:
        InvalidInputError: The vault is in files of one home.
        AuditTamperedError: A copy does not verify.
    """
    home = session.home_of(settings)
    own = node_of(home)
    reports = session.with_vault(
        settings, partial(_reports, own=own, log=audit_directory(home))
    )
    bad = [node for node, report in reports.items() if not report.ok]
    if json:
        shown = {node: msgspec.to_builtins(report) for node, report in reports.items()}
        output.json_out({"ok": not bad, "homes": shown})
    else:
        for node, report in reports.items():
            mine = " (this home)" if node == own else ""
            state = f"{report.count} events, {report.signed} signed" if report.ok else "bad"
            output.say(f"{node}{mine}: {state}", style="green" if report.ok else "red")
    if bad:
        found = reports[bad[0]]
        raise AuditTamperedError(
            f"Event {found.bad_line} in the copy of the log of home {bad[0]} {found.how}.",
            hint="Keep a copy of the database, and compare with that home's own log.",
        )


async def _reports(vault: Vault, *, own: str | None, log: Path) -> dict[str, Report]:
    several = vault.store.shared
    if several is None:
        raise InvalidInputError(
            "This vault is in the files of one home.", hint="Leave out --all."
        )
    keystore = vault.store.unsealed()
    return {
        node: await verify_copy(several, keystore, node, log=log if node == own else None)
        for node in await copies(several)
    }
