"""The options that all commands share, accepted before and after the command's name.

Guarantee: the one nearer to the command wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

HELP: Final = {"help_option_names": ["-h", "--help"]}
"""The context settings of the program and of its groups."""

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="DIR",
        help="The vault's directory; $APEX_CREDS_HOME or ~/.apex_agent by default.",
        show_default=False,
    ),
]
MasterOption = Annotated[
    str | None,
    typer.Option(
        "--master",
        metavar="URI",
        help="Where the master key is: keyring:, file:PATH, passphrase: or passphrase:fd=N.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.", show_default=False)]
ReasonOption = Annotated[
    str,
    typer.Option(
        "--reason",
        help="Why; it is recorded in the log. Asked for otherwise.",
        show_default=False,
    ),
]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The credential's name.", show_default=False)
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What ``--home`` and ``--master`` say."""

    home: Path | None = None
    master: str | None = None


def settings(ctx: typer.Context, home: Path | None, master: str | None) -> Settings:
    """The settings of a command, from its own options and those before its name."""
    outer = ctx.obj if isinstance(ctx.obj, Settings) else Settings()
    return Settings(
        home=outer.home if home is None else home,
        master=outer.master if master is None else master,
    )


def help_without_command(ctx: typer.Context) -> None:
    """Shows the help of a group that was named alone."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit
