"""``grant``, ``grants`` and ``revoke``: which plugin may use which credential."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from apex_creds.cli import options, output, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption, NameArgument
from apex_creds.errors import CredentialNotFoundError, InvalidInputError
from apex_creds.integrations.checksum import verified
from apex_creds.integrations.metadata import load_metadata
from apex_creds.model import CredentialInfo, check_name
from apex_creds.policy.decide import UNVERIFIED
from apex_creds.policy.grants import Grant, GrantDecision
from apex_creds.policy.manifest import Manifest, parse_manifest
from apex_creds.vault import Vault

PluginArgument = Annotated[
    str, typer.Argument(metavar="PLUGIN", help="The plugin's id.", show_default=False)
]


def grant(
    ctx: typer.Context,
    plugin: PluginArgument,
    name: NameArgument,
    scope: Annotated[
        list[str] | None,
        typer.Option(metavar="SCOPE", help="It may ask for this; repeat.", show_default=False),
    ] = None,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="It may read the secret itself.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="2030-12-31, 12h, 30d; without end by default."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--plugin-dir",
            metavar="DIR",
            help="Bind the grant to the plugin there; by default, to its first use.",
            show_default=False,
        ),
    ] = None,
    ahead: Annotated[
        bool, typer.Option("--ahead", help="Grant it before there is such a credential.")
    ] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Permit a plugin the use of a credential; replaces an earlier grant of the two."""
    check_name(name, what="credential name")
    manifest = None if folder is None else _manifest_in(folder, plugin)
    end = None if until is None else when.parse(until, now=time.time())

    async def work(vault: Vault) -> tuple[Grant, CredentialInfo | None]:
        infos = await vault.list()
        known = next((info for info in infos if info.name == name), None)
        if known is None and not ahead:
            raise CredentialNotFoundError(
                "There is no credential of that name; nothing was granted.",
                hint="See: apex-creds list; to grant it before it is there, add --ahead.",
            )
        made = await vault.grant(
            plugin,
            name,
            scopes=scope or (),
            reveal=reveal,
            until=end,
            manifest=manifest,
            created_by="apex-creds",
        )
        return made, known

    made, known = session.with_vault(options.settings(ctx, home, master), work)
    ends = f" until {when.show(made.until)}" if made.until else ""
    output.say(
        f"{made.plugin} may {_access(made)} {made.credential}{_scopes(made)}{ends}.",
        style="green",
    )
    if known is None:
        output.note("There is no credential of that name yet: apex-creds set NAME")
    elif not known.origins and not made.reveal:
        output.note(
            f"It may be sent nowhere yet: apex-creds edit {shlex.quote(name)} --origin URL"
        )


def _manifest_in(folder: Path, plugin: str) -> Manifest:
    metadata = load_metadata(folder)
    manifest = parse_manifest(metadata)
    if manifest.plugin != plugin:
        raise InvalidInputError("The plugin in that folder has another id.")
    checksum = verified(folder, metadata)
    if checksum.startswith(UNVERIFIED):
        output.note("Its code is not what its metadata says (checksum).", style="bold red")
        output.note(f"See what is wrong with: apex-creds checksum {folder}")
    return msgspec.structs.replace(manifest, checksum=checksum)


def _access(made: Grant) -> str:
    return "use and read" if made.reveal else "use"


def _scopes(made: Grant) -> str:
    return f" ({', '.join(made.scopes)})" if made.scopes else ""


def list_grants(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """List the grants."""
    found = session.with_vault(options.settings(ctx, home, master), lambda v: v.grants())
    made = sorted(found, key=lambda g: (g.plugin, g.credential))
    if json:
        output.json_out([as_json(item) for item in made])
    elif not made:
        output.say("No grants yet. Make one with: apex-creds grant PLUGIN NAME")
    else:
        output.table(
            ("plugin", "credential", "access", "scopes", "since", "until"), map(_row, made)
        )


def _row(made: Grant) -> tuple[object, ...]:
    return (
        made.plugin,
        made.credential,
        _kind(made),
        ", ".join(made.scopes) or "-",
        when.show(made.created),
        _until(made),
    )


def _kind(made: Grant) -> object:
    if made.decision is GrantDecision.DENY:
        return output.cell("denied", style="red")
    return "reveal" if made.reveal else "inject"


def _until(made: Grant) -> object:
    if made.until is not None and made.until <= time.time():
        return output.cell(f"{when.show(made.until)} (over)", style="red")
    return when.show(made.until) or "without end"


def as_json(made: Grant) -> dict[str, output.Json]:
    """A grant for ``--json``."""
    return {
        "plugin": made.plugin,
        "credential": made.credential,
        "reveal": made.reveal,
        "scopes": list(made.scopes),
        "created": when.show(made.created),
        "until": when.show(made.until) or None,
        "decision": made.decision.value,
        "manifest": made.manifest or None,
        "checksum": made.checksum or None,
        "created_by": made.created_by or None,
    }


def revoke(
    ctx: typer.Context,
    plugin: Annotated[
        str | None, typer.Argument(metavar="PLUGIN", help="Its grants.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Only that credential.", show_default=False),
    ] = None,
    credential: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The grants of all plugins on it.", show_default=False
        ),
    ] = None,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Take grants back: those of a plugin, of a credential, or of the two."""
    if plugin is None and credential is None:
        raise InvalidInputError(
            "Nothing says which grants.", hint="Name a PLUGIN, or --credential NAME."
        )
    if name is not None and credential is not None:
        raise InvalidInputError("Name the credential once.")
    chosen = options.settings(ctx, home, master)
    removed = session.with_vault(
        chosen, lambda v: v.revoke(plugin=plugin, credential=name or credential)
    )
    if not removed:
        raise CredentialNotFoundError(
            "There is no such grant. What was allowed for a session is taken back.",
            hint="See: apex-creds grants",
        )
    for item in removed:
        output.say(f"{item.plugin} may no longer use {item.credential}.", style="green")
