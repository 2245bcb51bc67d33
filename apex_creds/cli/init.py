"""``init`` and ``status``: the vault as a whole."""

from __future__ import annotations

import time
from collections import Counter
from typing import Annotated

import anyio
import typer

from apex_creds.audit.verify import check_now
from apex_creds.cli import (
    automatic,
    database,
    migrate,
    options,
    output,
    recovery,
    session,
    when,
)
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.documents.keystore import root_header
from apex_creds.errors import VaultExistsError
from apex_creds.fs.home import audit_directory
from apex_creds.model import CredentialKind
from apex_creds.storage.storage_factory import has_vault
from apex_creds.vault import Vault
from apex_creds.vault.begun import Begun
from apex_creds.vault.node import log_id


def init(
    ctx: typer.Context,
    hashed_names: Annotated[
        bool,
        typer.Option(
            "--hashed-names", help="Files of sections are named by keyed hashes, for good."
        ),
    ] = False,
    use_existing_key: Annotated[
        bool,
        typer.Option(
            "--use-existing-key", help="The file has the key already; no other vault uses it."
        ),
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            metavar="URL",
            help="Keep the vault in a database (sqlite:////PATH, postgresql://USER@HOST/DB).",
            show_default=False,
        ),
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="The vault is in that database already: share it.")
    ] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Make a vault, and a master key for it (in the OS keyring by default)."""
    chosen = options.settings(ctx, home, master)
    place = session.home_of(chosen)
    if join:
        database.join(place, storage)
        return
    migrate.make_room(place)
    # Before a passphrase is asked for twice in vain.
    if anyio.run(has_vault, place) and not Begun(place).is_there():
        raise VaultExistsError(
            f"There is a vault in {place} already.",
            hint="Use it, or choose another directory with --home.",
        )
    provider = session.provider(chosen.master or "keyring:", new=True)

    async def create() -> str:
        made = await Vault.create(
            place,
            master=provider,
            storage=storage,
            hashed_names=hashed_names,
            use_existing_key=use_existing_key,
        )
        async with made as vault:
            await automatic.look(vault)
            return vault.vault_id

    vault_id = anyio.run(create)
    output.say(f"Made vault {vault_id} in {place}.", style="green")
    output.say(f"Master key: {provider.uri} (without it the vault can't be opened)")
    output.say("Next: apex-creds set NAME, apex-creds grant PLUGIN NAME, apex-creds doctor")


def status(
    ctx: typer.Context,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Unseal the vault and say what is in it."""
    chosen = options.settings(ctx, home, master)
    header = session.read_header(chosen)
    record = root_header(header).master
    found = session.with_vault(chosen, _counts)
    facts: dict[str, output.Json] = {
        "home": str(session.home_of(chosen)),
        "vault_id": header.vault_id,
        "master": record.uri,
        "master_version": record.version,
        "kek_version": header.kek_version,
        **found,
        **_log_state(chosen, header.vault_id),
    }
    if json:
        output.json_out(facts)
        return
    shown = {name: value for name, value in facts.items() if value or name != "locked_down"}
    del shown["rotation_due"]  # the line "rotation" says it
    output.fields((name.replace("_", " "), _shown(value)) for name, value in shown.items())
    recovery.remind(str(facts["recovery"]))


async def _counts(vault: Vault) -> dict[str, output.Json]:
    from apex_creds.cli.doctor.vault import rotation  # not needed to make a vault
    from apex_creds.scheduler.report import undone
    from apex_creds.scheduler.worker import RotationWorker

    listed, now = await vault.list(), time.time()
    kinds = Counter(info.kind for info in listed)
    ends = [info.expires for info in listed if info.expires is not None]
    granted = await vault.grants()
    keys = await undone(RotationWorker(vault).engine)
    return {
        "locked_down": when.show(granted.lockdown.since) if granted.lockdown else "",
        "credentials": len(listed),
        "kinds": {kind.value: kinds[kind] for kind in CredentialKind if kinds[kind]},
        "expired": sum(end <= now for end in ends),
        "next_expiry": when.show(min((end for end in ends if end > now), default=None)),
        "grants": len(granted),
        "rotation": rotation(keys).detail,
        "rotation_due": [level.value for level in keys.levels],
        "worker": keys.worker,
        "recovery": await recovery.status_of(vault),
    }


def _log_state(chosen: options.Settings, vault_id: str) -> dict[str, output.Json]:
    home = session.home_of(chosen)
    report = check_now(audit_directory(home), vault_id=log_id(home, vault_id))
    return {
        "audit_events": report.count,
        "audit_chain": "ok" if report.ok else f"broken at line {report.bad_line}",
    }


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "runs" if value else "none runs"
    if isinstance(value, dict):
        return ", ".join(f"{count} {kind}" for kind, count in value.items()) or "none"
    return str(value) or "none"
