"""``grant``, ``grants`` and ``revoke``: which plugin may use which credential."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec

from apex_creds.cli import console
from apex_creds.cli.command import (
    ForOption,
    PluginArgument,
    Settings,
    UntilOption,
    command,
    name_of,
    with_vault,
)
from apex_creds.cli.console import Cell, Json, Line, Note, Report, Rows, done
from apex_creds.cli.credential_commands import about_origins
from apex_creds.cli.program import argument, flag, option
from apex_creds.errors import CredentialNotFoundError, InvalidInputError
from apex_creds.model import CredentialInfo, shown_key
from apex_creds.policy.display import show_time
from apex_creds.policy.grants import Grant, GrantDecision
from apex_creds.policy.manifest import Manifest, parse_manifest
from apex_creds.vault import Vault


@command()
def grant(
    chosen: Settings,
    plugin: PluginArgument,
    name: Annotated[
        str,
        argument("NAME", "The credential's name.", parser=name_of("credential name")),
    ],
    scope: Annotated[
        list[str] | None,
        option("SCOPE", "It may ask for this; repeat."),
    ] = None,
    reveal: Annotated[bool, flag("It may read the secret itself.", "--reveal")] = False,
    echoes: Annotated[
        bool,
        flag("Services may send the secret back to it: answers are not searched.", "--echoes"),
    ] = False,
    sign: Annotated[bool, flag("It may have signatures made with it.", "--sign")] = False,
    until: UntilOption = None,
    folder: Annotated[
        Path | None,
        option(
            "DIR",
            "Bind the grant to the plugin there; by default, to its first use.",
            "--plugin-dir",
        ),
    ] = None,
    ahead: Annotated[
        bool, flag("Grant it before there is such a credential.", "--ahead")
    ] = False,
    whose: ForOption = None,
) -> Report:
    """Permit a plugin the use of a credential; replaces an earlier grant of the two."""
    manifest = None if folder is None else manifest_in(folder, plugin)

    async def work(vault: Vault) -> tuple[Grant, CredentialInfo | None]:
        listed = await vault.list(principal=whose or "")
        known = next((info for info in listed if info.name == name), None)
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
            echoes=echoes,
            sign=sign,
            until=until,
            manifest=manifest,
            created_by="apex-creds",
            principal=whose or "",
        )
        return made, known

    made, known = with_vault(chosen, work)
    notes = [] if known is None or made.reveal else about_origins(known)
    if known is None:
        notes = [Note("There is no credential of that name yet: apex-creds set NAME")]
    access = "use and read" if made.reveal else "use and sign with" if made.sign else "use"
    access += " (answers are not searched)" if made.echoes else ""
    scopes = f" ({', '.join(made.scopes)})" if made.scopes else ""
    ends = f" until {show_time(made.until)}" if made.until else ""
    said = f"{made.plugin} may {access} {shown_key(made.key)}{scopes}{ends}."
    return done(_as_json(made), said, notes=notes)


def manifest_in(folder: Path, plugin: str) -> Manifest:
    """What the plugin in a folder declares, with the checksum that it states.

    Raises:
        InvalidInputError: It is another plugin.
    """
    from apex_creds.integrations.plugin_metadata import load_metadata, verified
    from apex_creds.policy.decide import UNVERIFIED

    metadata = load_metadata(folder)
    manifest = parse_manifest(metadata)
    if manifest.plugin != plugin:
        raise InvalidInputError("The plugin in that folder has another id.")
    checksum = verified(folder, metadata)
    if checksum.startswith(UNVERIFIED):
        console.note("Its code is not what its metadata says (checksum).", style="bold red")
        console.note(f"See what is wrong with: apex-creds checksum {folder}")
    return msgspec.structs.replace(manifest, checksum=checksum)


@command()
async def list_grants(vault: Vault) -> Report:
    """List the grants."""
    made = sorted(await vault.grants(), key=lambda g: (g.plugin, g.key))
    return Report(
        [_as_json(item) for item in made],
        Rows(
            ("plugin", "credential", "access", "scopes", "since", "until"),
            [
                (
                    item.plugin,
                    shown_key(item.key),
                    Cell("denied", "red")
                    if item.decision is GrantDecision.DENY
                    else access_of(item),
                    ", ".join(item.scopes) or "-",
                    show_time(item.created),
                    end_of(item.until),
                )
                for item in made
            ],
            empty="No grants yet. Make one with: apex-creds grant PLUGIN NAME",
        ),
    )


def access_of(made: Grant) -> str:
    """What a grant allows at most."""
    return "reveal" if made.reveal else "sign" if made.sign else "inject"


def end_of(until: float | None) -> object:
    """When something ends, for a table."""
    if until is not None and until <= time.time():
        return Cell(f"{show_time(until)} (over)", "red")
    return show_time(until) or "without end"


def _as_json(made: Grant) -> dict[str, Json]:
    return {
        "plugin": made.plugin,
        "credential": made.credential,
        "principal": made.principal or None,
        "reveal": made.reveal,
        "echoes": made.echoes,
        "sign": made.sign,
        "scopes": list(made.scopes),
        "created": show_time(made.created),
        "until": show_time(made.until) or None,
        "decision": made.decision.value,
        "manifest": made.manifest or None,
        "checksum": made.checksum or None,
        "created_by": made.created_by or None,
    }


@command()
def revoke(
    chosen: Settings,
    plugin: Annotated[str | None, argument("PLUGIN", "Its grants.")] = None,
    name: Annotated[
        str | None,
        argument("NAME", "Only that credential."),
    ] = None,
    credential: Annotated[
        str | None,
        option("NAME", "The grants of all plugins on it."),
    ] = None,
    whose: ForOption = None,
) -> Report:
    """Take grants back: those of a plugin, of a credential, or of the two."""
    if plugin is None and credential is None:
        raise InvalidInputError(
            "Nothing says which grants.", hint="Name a PLUGIN, or --credential NAME."
        )
    if name is not None and credential is not None:
        raise InvalidInputError("Name the credential once.")
    removed = with_vault(
        chosen,
        lambda vault: vault.revoke(
            plugin=plugin, credential=name or credential, principal=whose or ""
        ),
    )
    if not removed:
        raise CredentialNotFoundError(
            "There is no such grant. What was allowed for a session is taken back.",
            hint="See: apex-creds grants",
        )
    said = (f"{item.plugin} may no longer use {shown_key(item.key)}." for item in removed)
    return Report([_as_json(item) for item in removed], *(Line(text, "green") for text in said))
