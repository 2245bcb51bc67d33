"""``init`` and ``status``: the vault as a whole."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import anyio

from apex_creds.cli import console
from apex_creds.cli.command import (
    Settings,
    command,
    find_provider,
    migrate_first,
    read_header,
    with_vault,
)
from apex_creds.cli.console import Fields, Json, Report, done
from apex_creds.cli.program import flag, option
from apex_creds.documents.keystore import root_header
from apex_creds.errors import VaultExistsError
from apex_creds.model import CredentialKind, shown_key
from apex_creds.policy.display import show_time
from apex_creds.storage.storage_factory import has_vault
from apex_creds.vault import Vault
from apex_creds.vault.unfinished import Begun


@command()
def init(
    chosen: Settings,
    hashed_names: Annotated[
        bool,
        flag("Files of sections are named by keyed hashes, for good.", "--hashed-names"),
    ] = False,
    use_existing_key: Annotated[
        bool,
        flag("The file has the key already; no other vault uses it.", "--use-existing-key"),
    ] = False,
    storage: Annotated[
        str | None,
        option(
            "URL",
            "Keep the vault in a database (sqlite:////PATH, postgresql://USER@HOST/DB).",
            "--storage",
        ),
    ] = None,
    join: Annotated[
        bool, flag("The vault is in that database already: share it.", "--join")
    ] = False,
) -> Report:
    """Make a vault, and a master key for it (in the OS keyring by default)."""
    home = chosen.folder
    if join:
        from apex_creds.cli import storage_commands

        return storage_commands.join(home, storage)
    make_room(home)
    # Before a passphrase is asked for twice in vain.
    if anyio.run(has_vault, home) and not Begun(home).is_there():
        raise VaultExistsError(
            f"There is a vault in {home} already.",
            hint="Use it, or choose another directory with --home.",
        )
    provider = find_provider(chosen.master or "keyring:", new=True)

    async def create() -> str:
        made = await Vault.create(
            home,
            master=provider,
            storage=storage,
            hashed_names=hashed_names,
            use_existing_key=use_existing_key,
        )
        async with made as vault:
            await migrate_first(vault)
            return vault.vault_id

    vault_id = anyio.run(create)
    return done(
        {"vault_id": vault_id, "home": str(home), "master": provider.uri},
        f"Made vault {vault_id} in {home}.",
        f"Master key: {provider.uri} (without it the vault can't be opened)",
        "Next: apex-creds set NAME, apex-creds grant PLUGIN NAME, apex-creds doctor",
    )


def make_room(home: Path) -> None:
    """Before a vault is made: moves an older program's files out of its place.

    Raises:
        DecryptionError: They don't open; nothing was moved.
        StorageError: They can't be moved.
    """
    from apex_creds.migration import set_aside

    if anyio.run(set_aside, home):
        console.note(f"An older program's files were moved to {home / 'legacy'}.")


@command()
def status(chosen: Settings) -> Report:
    """Unseal the vault and say what is in it."""
    from apex_creds.cli.credential_commands import rotation_due
    from apex_creds.cli.doctor_command import rotation_check
    from apex_creds.cli.recovery_commands import recovery_state, reminder
    from apex_creds.oauth.refresh import needs_person
    from apex_creds.rotators.rotation import is_wrong
    from apex_creds.scheduler.status import undone
    from apex_creds.scheduler.worker import RotationWorker

    header, home = read_header(chosen), chosen.folder
    record = root_header(header).master

    async def work(vault: Vault) -> dict[str, Json]:
        listed, now = await vault.list(), time.time()
        kinds = Counter(info.kind for info in listed)
        ends = [info.ends for info in listed if info.ends is not None]
        granted = await vault.grants()
        keys = await undone(RotationWorker(vault).engine)
        return {
            "locked_down": show_time(granted.lockdown.since) if granted.lockdown else None,
            "credentials": len(listed),
            "kinds": {kind.value: kinds[kind] for kind in CredentialKind if kinds[kind]},
            "expired": sum(end <= now for end in ends),
            "needs_reconnect": [shown_key(i.key) for i in listed if needs_person(i)],
            "not_rotated": [shown_key(i.key) for i in listed if is_wrong(i)],
            "rotation_overdue": [
                shown_key(i.key)
                for i in listed
                if (due := rotation_due(i)) is not None and due <= now
            ],
            "next_expiry": show_time(min((end for end in ends if end > now), default=None))
            or None,
            "grants": len(granted),
            "rotation": rotation_check(keys).detail,
            "rotation_due": [level.value for level in keys.levels],
            "worker": keys.worker,
            "recovery": await recovery_state(vault),
        }

    counts = with_vault(chosen, work)
    facts: dict[str, Json] = {
        "home": str(home),
        "vault_id": header.vault_id,
        "master": record.uri,
        "master_version": record.version,
        "kek_version": header.key_version,
        **counts,
        **_audit(home, header.vault_id),
    }
    left_out = {"rotation_due"}  # the line "rotation" says it
    if not facts["locked_down"]:
        left_out.add("locked_down")
    shown: list[tuple[str, str]] = []
    for name, value in facts.items():
        text = "" if value is None else str(value)
        if isinstance(value, bool):
            text = "runs" if value else "none runs"
        elif isinstance(value, list):
            text = ", ".join(map(str, value))
        elif isinstance(value, dict):
            text = ", ".join(f"{count} {kind}" for kind, count in value.items())
        if name not in left_out:
            shown.append((name.replace("_", " "), text or "none"))
    return Report(facts, Fields(shown), *reminder(str(facts["recovery"])))


def _audit(home: Path, vault_id: str) -> dict[str, Json]:
    """Of the log, what its newest segment says."""
    from apex_creds.audit.verify import check_newest
    from apex_creds.errors import AuditTamperedError
    from apex_creds.fs.home import audit_directory
    from apex_creds.vault.config import log_id

    try:
        found = check_newest(audit_directory(home), vault_id=log_id(home, vault_id))
    except AuditTamperedError as error:
        return {"audit_events": None, "audit_chain": f"broken: {error.message}"}
    seen = "ok"
    if found.start > 1:
        seen = f"ok from event {found.start} on; all: apex-creds audit verify"
    return {"audit_events": found.stop - 1, "audit_chain": seen}
