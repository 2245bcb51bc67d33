"""``audit``: the group of commands about the log."""

from __future__ import annotations

import typer

from apex_creds.cli import audit, audit_sign, options
from apex_creds.cli.options import HomeOption, MasterOption

log = typer.Typer(context_settings=options.HELP, invoke_without_command=True)


@log.callback()
def root(ctx: typer.Context, home: HomeOption = None, master: MasterOption = None) -> None:
    """Read, check and prove the audit log."""
    ctx.obj = options.settings(ctx, home, master)
    options.help_without_command(ctx)


log.command("verify")(audit.verify)
log.command("tail")(audit.tail)
log.command("show")(audit.show)
log.command("export")(audit.export)
log.command("prove")(audit_sign.prove)
log.command("checkpoint")(audit_sign.checkpoint)
log.command("cosign")(audit_sign.cosign)
log.command("accept-rollback")(audit_sign.accept_rollback)
