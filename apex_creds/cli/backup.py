"""``backup`` and ``restore``: the whole vault, copied and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import anyio
import typer
from msgspec import to_builtins

from apex_creds.cli import options, output, prompts, recovery, session
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption, ReasonOption
from apex_creds.cli.recovery import PrivateOption, SealedOption
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import Header
from apex_creds.documents.keystore import root_header
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.provider import hold
from apex_creds.model import SystemClock
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import Vault, restoring
from apex_creds.vault import backup as backing
from apex_creds.vault import recovery as recovering


def backup(
    ctx: typer.Context,
    destination: Annotated[
        Path,
        typer.Argument(
            metavar="DEST", help="A new directory, or a new file that ends with .tar."
        ),
    ],
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Copy the vault as of one instant, while work goes on; the copy is opened and checked.

    The master key is not in it: see `recovery export`.
    """

    async def work(vault: Vault, provider: MasterKeyProvider) -> tuple[backing.Manifest, str]:
        made = await backing.backup(vault, destination, provider=provider)
        return made, await recovery.status_of(vault)

    made, state = recovery.with_master(options.settings(ctx, home, master), work)
    if json:
        output.json_out(to_builtins(made.contents))
    else:
        held = made.contents
        output.say(f"Backed up to {destination}, opened and checked.", style="green")
        output.say(f"{held.credentials} credentials, {held.events} events")
        output.say(f"It opens with master key v{held.master_version}, which is not in it.")
    recovery.remind(state)


def restore(
    ctx: typer.Context,
    source: Annotated[
        Path, typer.Argument(metavar="BACKUP", help="What apex-creds backup made.")
    ],
    reason: ReasonOption = "",
    shares: Annotated[
        bool,
        typer.Option("--shares", help="The master key is gone, too: ask for its shares."),
    ] = False,
    sealed: SealedOption = None,
    private_key: PrivateOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the backup; replace nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if a process has the vault open.")
    ] = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Put a backup in the vault's place, after checking all of it; keep what was there."""
    reason = prompts.read_reason(reason)
    settings = options.settings(ctx, home, master)
    place = session.home_of(settings)
    with restoring.staged(source, place) as stage:
        header, data = anyio.run(_root, stage)
        uri = session.master_uri(settings, header)
        provider = session.provider(uri, new=False)

        def key() -> SecretBytes:
            if shares or sealed is not None:
                return recovery.read_key(header, sealed, private_key)
            return anyio.run(_load, provider, header)

        with key() as found:
            held = hold(provider, version=root_header(header).master.version, key=found)
            manifest = anyio.run(_check, stage, held)
            if check:
                output.say("The backup is whole.", style="green")
                return
            recovered = shares or sealed is not None
            if recovered:
                anyio.run(recovering.restore_key, found, data, provider)
            aside = restoring.install(stage, place, force=force)
            anyio.run(_record, place, manifest, held, reason)
            if recovered:
                anyio.run(_note, place, provider, held)
    output.say(
        f"Restored {manifest.contents.credentials} credentials to {place}.", style="green"
    )
    if aside is not None:
        output.say(f"What was there is in {aside}; remove it when you don't need it.")


async def _root(stage: Path) -> tuple[Header, bytes]:
    storage = FileStorage(stage)
    try:
        return await recovering.read_root(storage)
    finally:
        await storage.close()


async def _load(provider: MasterKeyProvider, header: Header) -> SecretBytes:
    current = root_header(header).master
    return await provider.load(
        vault_id=header.vault_id, version=current.version, params=current.params
    )


async def _note(home: Path, provider: MasterKeyProvider, held: MasterKeyProvider) -> None:
    async with await Vault.unseal(home, master=held) as vault:
        await recovering.note_provider(vault, provider)


async def _check(stage: Path, provider: MasterKeyProvider) -> backing.Manifest:
    return await restoring.check_copy(stage, provider=provider, clock=SystemClock())


async def _record(
    home: Path, manifest: backing.Manifest, provider: MasterKeyProvider, reason: str
) -> None:
    await restoring.record(
        home, manifest, provider=provider, reason=reason, clock=SystemClock()
    )
