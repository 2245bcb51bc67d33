"""The options that all commands share, accepted before and after the command's name.

Guarantee: the one nearer to the command wins.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from apex_creds.cli.command import Settings, help_without_command, settings

__all__ = [
    "HELP",
    "HomeOption",
    "JsonOption",
    "MasterOption",
    "NameArgument",
    "ReasonOption",
    "Settings",
    "help_without_command",
    "settings",
]

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
