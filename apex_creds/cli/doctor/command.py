"""``doctor``: runs every check, whatever the others found."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import anyio
import typer

from apex_creds.cli import options, output, session
from apex_creds.cli.doctor import files, system, vault
from apex_creds.cli.doctor.checks import Check, State, failed
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption, Settings
from apex_creds.documents.document import Header
from apex_creds.documents.keystore import root_header
from apex_creds.errors import ApexCredsError

_STYLE = {State.OK: "green", State.WARNING: "yellow", State.FAILURE: "bold red"}


def doctor(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Check the keyring, the files, the memory, the clock, the log; say what to mend.

    Ends with 1 if anything is a failure; warnings alone end with 0.
    """
    found = list(_examine(options.settings(ctx, home, master)))
    if json:
        output.json_out([{**asdict(one), "state": one.state.value} for one in found])
    else:
        output.table(("check", "state", "found"), map(_row, found))
        for one in found:
            if one.fix:
                output.say(f"{one.name}: {one.fix}", style=_STYLE[one.state])
    if any(one.state is State.FAILURE for one in found):
        raise typer.Exit(1)


def _row(one: Check) -> tuple[object, ...]:
    return one.name, output.cell(one.state, style=_STYLE[one.state]), one.detail


def _examine(chosen: Settings) -> Iterator[Check]:
    home = session.home_of(chosen)
    try:
        header = session.read_header(chosen)
    except ApexCredsError as error:
        yield from _without_vault(chosen, home, error)
        return
    yield from files.permissions(home)
    yield files.leftovers(home)
    uri = chosen.master or root_header(header).master.uri
    yield anyio.run(functools.partial(vault.keyring_backend, needed=uri.startswith("keyring:")))
    yield from _opens(chosen, home)
    chain, latest = vault.audit_chain(home, header.vault_id)
    yield chain
    yield from _system(header, latest)


def _without_vault(chosen: Settings, home: Path, error: ApexCredsError) -> Iterator[Check]:
    yield failed("vault", error)
    if home.exists():
        yield from files.permissions(home)
        yield files.leftovers(home)
    needed = (chosen.master or "keyring:").startswith("keyring:")
    yield anyio.run(functools.partial(vault.keyring_backend, needed=needed))
    yield from _system(None, 0.0)


def _opens(chosen: Settings, home: Path) -> Iterator[Check]:
    try:
        provider = session.find_provider(chosen)
    except ApexCredsError as error:
        yield failed("vault", error)
        return
    yield from anyio.run(vault.opens, home, provider)


def _system(header: Header | None, latest: float) -> Iterator[Check]:
    yield system.memory_locking()
    yield system.core_dumps()
    yield system.cryptography()
    yield system.clock(max(latest, header.written if header else 0.0))
