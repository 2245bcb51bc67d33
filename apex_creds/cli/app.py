"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from apex_creds.cli import (
    audit,
    audit_sign,
    backup,
    clients,
    copying,
    credentials,
    dashboard,
    database,
    dotenv,
    factors,
    grants,
    init,
    migrate,
    options,
    policy,
    recovery,
    rotation,
    worker,
)
from apex_creds.cli import consent as asking
from apex_creds.cli.demo.command import demo
from apex_creds.cli.doctor.command import doctor
from apex_creds.cli.options import HomeOption, MasterOption

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="apex-creds",
    context_settings=_HELP,
    add_completion=False,
    pretty_exceptions_enable=False,
    invoke_without_command=True,
)
log = typer.Typer(context_settings=_HELP, invoke_without_command=True)


@app.callback()
def root(
    ctx: typer.Context,
    home: HomeOption = None,
    master: MasterOption = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Keep secrets encrypted, and give plugins short-lived handles instead of them."""
    ctx.obj = options.settings(ctx, home, master)
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"apex-creds {version_of('apex-creds')}")
        raise typer.Exit
    _help_without_command(ctx)


@log.callback()
def audit_root(
    ctx: typer.Context, home: HomeOption = None, master: MasterOption = None
) -> None:
    """Read, check and prove the audit log."""
    ctx.obj = options.settings(ctx, home, master)
    _help_without_command(ctx)


def _help_without_command(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit


app.command("init")(init.init)
app.add_typer(database.db, name="db")
app.command("copy")(copying.copy)
app.command("set")(credentials.set_credential)
app.command("list")(credentials.list_credentials)
app.command("edit")(credentials.edit)
app.command("show")(credentials.show)
app.command("get")(credentials.get)
app.command("rm")(credentials.remove)
app.command("grant")(grants.grant)
app.command("grants")(grants.list_grants)
app.command("revoke")(grants.revoke)
app.command("status")(init.status)
app.command("doctor")(doctor)
app.command("import")(dotenv.import_file)
app.command("migrate")(migrate.migrate_command)
log.command("verify")(audit.verify)
log.command("tail")(audit.tail)
log.command("show")(audit.show)
log.command("export")(audit.export)
log.command("prove")(audit_sign.prove)
log.command("checkpoint")(audit_sign.checkpoint)
log.command("cosign")(audit_sign.cosign)
log.command("accept-rollback")(audit_sign.accept_rollback)
app.add_typer(log, name="audit")
app.add_typer(factors.factor, name="factor")
app.command("recovery-codes")(factors.recovery_codes)
app.add_typer(clients.client, name="client")
app.add_typer(policy.policy, name="policy")
app.command("rotate")(rotation.rotate)
app.add_typer(rotation.rotation, name="rotation")
app.add_typer(rotation.events, name="events")
app.add_typer(recovery.recovery, name="recovery")
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.command("worker")(worker.worker)
app.command("dashboard")(dashboard.dashboard)
app.command("requests")(asking.list_requests)
app.command("approve")(asking.approve)
app.command("deny")(asking.deny)
app.command("checksum")(asking.checksum)
app.command("lockdown")(asking.lockdown)
app.command("unlock")(asking.unlock)
app.command("demo")(demo)
