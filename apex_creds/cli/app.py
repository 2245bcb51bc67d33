"""The tree of commands, of which only what is asked for is imported.

Guarantee: a command works the same whether it was made alone or with all others; the help of
the program names them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Final

import typer

from apex_creds import __version__
from apex_creds.cli import options
from apex_creds.cli.options import HomeOption, MasterOption

COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "init": "init:init",
        "copy": "copying:copy",
        "set": "credentials:set_credential",
        "list": "credentials:list_credentials",
        "edit": "credentials:edit",
        "show": "credentials:show",
        "get": "credentials:get",
        "rm": "credentials:remove",
        "grant": "grants:grant",
        "grants": "grants:list_grants",
        "revoke": "grants:revoke",
        "status": "init:status",
        "doctor": "doctor.command:doctor",
        "import": "dotenv:import_file",
        "migrate": "migrate:migrate_command",
        "recovery-codes": "factors:recovery_codes",
        "rotate": "rotation:rotate",
        "backup": "backup:backup",
        "restore": "backup:restore",
        "worker": "worker:worker",
        "dashboard": "dashboard:dashboard",
        "requests": "consent:list_requests",
        "approve": "consent:approve",
        "deny": "consent:deny",
        "checksum": "consent:checksum",
        "lockdown": "consent:lockdown",
        "unlock": "consent:unlock",
        "demo": "demo.command:demo",
        "db": "database:db",
        "audit": "log:log",
        "factor": "factors:factor",
        "client": "clients:client",
        "policy": "policy:policy",
        "rotation": "rotation:rotation",
        "events": "rotation:events",
        "recovery": "recovery:recovery",
    }
)
"""Where each command, or group of commands, is: a module of this package, and a name in it."""

_TAKES_A_VALUE: Final = frozenset({"--home", "--master"})


def tree(only: str | None = None) -> typer.Typer:
    """The program, with all its commands; or with one, where there is one of that name."""
    app = typer.Typer(
        name="apex-creds",
        context_settings=options.HELP,
        add_completion=False,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
    )
    app.callback()(_root)
    for name in [only] if only is not None and only in COMMANDS else COMMANDS:
        module, attribute = COMMANDS[name].split(":")
        found = getattr(import_module(f"apex_creds.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=name)
        else:
            app.command(name)(found)
    return app


def named(arguments: Sequence[str]) -> str | None:
    """The command that a command line is about; None where it may be about all."""
    rest = iter(arguments)
    for word in rest:
        if word in _TAKES_A_VALUE:
            next(rest, None)
        elif word in options.HELP["help_option_names"]:
            return None
        elif not word.startswith("-"):
            return word
    return None


def _root(
    ctx: typer.Context,
    home: HomeOption = None,
    master: MasterOption = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Keep secrets encrypted, and give plugins short-lived handles instead of them."""
    ctx.obj = options.settings(ctx, home, master)
    if version:
        typer.echo(f"apex-creds {__version__}")
        raise typer.Exit
    options.help_without_command(ctx)
