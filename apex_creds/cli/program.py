"""What the program is made of, before any of it is imported: its commands and its options.

The help of the whole program needs no more than this, and says the same as all commands
together (a test holds that).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, NamedTuple, cast

import typer
from typer.models import ArgumentInfo, OptionInfo

HELP: Final = {"help_option_names": ["-h", "--help"]}
"""The context settings of the program and of its groups."""


class Entry(NamedTuple):
    """A command, or group of commands: a module of this package and a name in it."""

    where: str
    summary: str
    group: bool = False


PANELS: Final[Mapping[str, Mapping[str, Entry]]] = {
    "Credentials": {
        "set": Entry(
            "credential_commands:set_credential", "Store a credential, or a new version of it."
        ),
        "list": Entry(
            "credential_commands:list_credentials",
            "List the credentials, without their values.",
        ),
        "show": Entry(
            "credential_commands:show", "Show what is known of a credential, without its value."
        ),
        "edit": Entry(
            "credential_commands:edit",
            "Change where and how a credential is sent and what a use takes; its value stays.",
        ),
        "get": Entry("credential_commands:get", "Print a secret; audited as an exposure."),
        "rm": Entry(
            "credential_commands:remove",
            "Delete a credential for good: its key is destroyed, its file overwritten.",
        ),
        "connect": Entry(
            "oauth_commands:connect",
            "Get an OAuth token from a provider, and keep it valid from then on.",
        ),
        "disconnect": Entry(
            "oauth_commands:disconnect",
            "Revoke a connection's tokens at its provider, and delete the credential.",
        ),
        "import": Entry(
            "import_export:import_file",
            "Store the secrets of a .env file, each as an API key of its name.",
        ),
    },
    "Permissions": {
        "grant": Entry(
            "grant_commands:grant",
            "Permit a plugin the use of a credential; replaces an earlier grant of the two.",
        ),
        "grants": Entry("grant_commands:list_grants", "List the grants."),
        "revoke": Entry(
            "grant_commands:revoke",
            "Take grants back: those of a plugin, of a credential, or of the two.",
        ),
        "policy": Entry(
            "policy_commands:policy",
            "Check the policy file; say which rule decides on a use.",
            group=True,
        ),
        "requests": Entry(
            "consent_commands:list_requests",
            "List what plugins wait for: the questions that somebody has to answer.",
        ),
        "approve": Entry(
            "consent_commands:approve",
            "Say yes to a request: once, unless an option says more.",
        ),
        "deny": Entry("consent_commands:deny", "Say no to a request."),
        "factor": Entry(
            "access_commands:factor",
            "Enrol, list, try and remove second factors (one-time codes of an app).",
            group=True,
        ),
        "recovery-codes": Entry(
            "access_commands:recovery_codes",
            "Make ten recovery codes, each good once; earlier ones are void. Asks for a code.",
        ),
        "client": Entry(
            "access_commands:client",
            "Enrol, list and revoke programs that answer challenges; make their keys.",
            group=True,
        ),
        "checksum": Entry(
            "consent_commands:checksum",
            "Print the checksum of a plugin's code, as its metadata should state it.",
        ),
    },
    "Programs and servers": {
        "run": Entry(
            "run_command:run",
            "Run a program behind a wall: placeholders for keys, a gateway for network.",
        ),
        "mcp": Entry(
            "run_command:mcp", "Stand in front of an MCP server, on standard input and output."
        ),
    },
    "Keys": {
        "rotate": Entry(
            "rotation_commands:rotate",
            "Renew keys now (DEKs, the KEK, the master key), or a credential at its provider.",
        ),
        "rotation": Entry(
            "rotation_commands:rotation", "How the keys are, and when they rotate.", group=True
        ),
        "events": Entry("rotation_commands:events", "Security events.", group=True),
        "recovery": Entry(
            "recovery_commands:recovery",
            "Keep the master key in shares, and bring it back when it is lost.",
            group=True,
        ),
        "worker": Entry(
            "service_commands:worker",
            "Rotate keys when they are due, until it is stopped (SIGTERM, SIGINT).",
        ),
    },
    "Watching": {
        "status": Entry("init_command:status", "Unseal the vault and say what is in it."),
        "doctor": Entry(
            "doctor_command:doctor",
            "Check the keyring, the files, the memory, the clock, the log; say what to fix.",
        ),
        "audit": Entry(
            "audit_commands:audit", "Read, check and prove the audit log.", group=True
        ),
        "dashboard": Entry(
            "service_commands:dashboard",
            "Show keys, leases, permissions, requests and the log live, in a browser.",
        ),
        "lockdown": Entry(
            "consent_commands:lockdown",
            "Seal the vault: end everything, take back all grants, "
            "release nothing until `unlock`.",
        ),
        "unlock": Entry(
            "consent_commands:unlock",
            "End a lockdown; asks for the second factor, if one is enrolled.",
        ),
    },
    "The vault": {
        "init": Entry(
            "init_command:init",
            "Make a vault, and a master key for it (in the OS keyring by default).",
        ),
        "backup": Entry(
            "storage_commands:backup",
            "Copy the vault as of one instant, while work goes on; the "
            "copy is opened and checked.",
        ),
        "restore": Entry(
            "storage_commands:restore",
            "Put a backup in the vault's place, after checking all of it; keep what was there.",
        ),
        "copy": Entry(
            "import_export:copy",
            "Copy the vault to a database or directory, record by record, each one checked.",
        ),
        "db": Entry(
            "storage_commands:db", "The tables of a vault that is in a database.", group=True
        ),
        "migrate": Entry(
            "migrate_commands:migrate_command",
            "Take over the credentials of older programs; their files "
            "become .bak when all is safe.",
        ),
        "demo": Entry(
            "demo_command:demo",
            "Run three plugins on a real HTTP service, in a fresh "
            "temporary vault, and judge it.",
        ),
    },
}
"""The commands, as the help shows them."""

COMMANDS: Final[Mapping[str, Entry]] = MappingProxyType(
    {name: entry for panel in PANELS.values() for name, entry in panel.items()}
)


# -- options -------------------------------------------------------------------------------


def option(
    metavar: str,
    text: str,
    *names: str,
    parser: Callable[[str], object] | None = None,
    min: float | None = None,  # noqa: A002 - typer's names
    max: float | None = None,  # noqa: A002
) -> OptionInfo:
    """An option that has a value; ``text`` is its help."""
    made = typer.Option(*names, metavar=metavar, help=text, parser=parser, min=min, max=max)
    return cast("OptionInfo", made)


def flag(text: str, *names: str) -> OptionInfo:
    """An option that has none."""
    return cast("OptionInfo", typer.Option(*names, help=text))


def argument(
    metavar: str, text: str, *, parser: Callable[[str], object] | None = None
) -> ArgumentInfo:
    """What is named by its place."""
    return cast("ArgumentInfo", typer.Argument(metavar=metavar, help=text, parser=parser))


HomeOption = Annotated[
    Path | None,
    option(
        "DIR", "The vault's directory; $APEX_CREDS_HOME or ~/.apex_agent by default.", "--home"
    ),
]
MasterOption = Annotated[
    str | None,
    option(
        "URI",
        "Where the master key is: keyring:, file:PATH, passphrase: or passphrase:fd=N.",
        "--master",
    ),
]
VersionOption = Annotated[bool, flag("Print the version.", "--version")]
SUMMARY: Final = "Keep secrets encrypted, and give plugins short-lived handles instead of them."


# -- the program as its help shows it ------------------------------------------------------


def empty() -> typer.Typer:
    """The program, without any command."""
    return typer.Typer(
        name="apex-creds",
        context_settings=HELP,
        pretty_exceptions_enable=False,
        invoke_without_command=True,
    )


def outline() -> typer.Typer:
    """The program for its help: its commands are named, and do nothing."""
    app = empty()

    @app.callback(help=SUMMARY)
    def root(
        home: HomeOption = None, master: MasterOption = None, version: VersionOption = False
    ) -> None:
        pass

    for panel, commands in PANELS.items():
        for name, entry in commands.items():
            if entry.group:
                group = typer.Typer(help=entry.summary, invoke_without_command=True)
                group.callback()(_nothing)
                app.add_typer(group, name=name, rich_help_panel=panel)
            else:
                app.command(name, help=entry.summary, rich_help_panel=panel)(_nothing)
    return app


def _nothing() -> None:
    """Stands in the place of a command."""
