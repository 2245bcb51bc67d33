"""``backup``, ``restore`` and ``db``: the vault as a whole, and the database that it is in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import anyio
import typer
from msgspec import to_builtins

from apex_creds.admin import backup as backing
from apex_creds.admin import master_recovery as recovering
from apex_creds.admin import restore as restoring
from apex_creds.cli import console
from apex_creds.cli.command import (
    ReasonOption,
    Settings,
    command,
    find_provider,
    master_uri,
    read_root,
    with_master_key,
)
from apex_creds.cli.console import Fields, Json, Line, Report, done
from apex_creds.cli.program import HELP, argument, flag, option
from apex_creds.cli.recovery_commands import (
    PrivateOption,
    SealedOption,
    read_key,
    recovery_state,
    reminder,
)
from apex_creds.documents.keystore import load_master, root_header
from apex_creds.errors import InvalidInputError, VaultExistsError, VaultNotFoundError
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.provider import hold
from apex_creds.model import SystemClock
from apex_creds.storage.base import KEYSTORE, closing
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.storage_factory import (
    StoragePlace,
    configured,
    has_vault,
    open_place,
    open_sql,
    remember_storage,
)
from apex_creds.vault import Vault

# -- backups -------------------------------------------------------------------------------


@command()
def backup(
    chosen: Settings,
    destination: Annotated[
        Path,
        argument("DEST", "A new directory, or a new file that ends with .tar."),
    ],
) -> Report:
    """Copy the vault as of one instant, while work goes on; the copy is opened and checked.

    The master key is not in it: see `recovery export`.
    """

    async def work(vault: Vault, provider: MasterKeyProvider) -> tuple[backing.Manifest, str]:
        made = await backing.backup(vault, destination, provider=provider)
        return made, await recovery_state(vault)

    made, state = with_master_key(chosen, work)
    held = made.contents
    return Report(
        to_builtins(held),
        Line(f"Backed up to {destination}, opened and checked.", "green"),
        f"{held.credentials} credentials, {held.events} events",
        f"It opens with master key v{held.master_version}, which is not in it.",
        notes=reminder(state),
    )


@command()
def restore(
    chosen: Settings,
    source: Annotated[Path, argument("BACKUP", "What apex-creds backup made.")],
    reason: ReasonOption = "",
    shares: Annotated[
        bool,
        flag("The master key is gone, too: ask for its shares.", "--shares"),
    ] = False,
    sealed: SealedOption = None,
    private_key: PrivateOption = None,
    check: Annotated[bool, flag("Only check the backup; replace nothing.", "--check")] = False,
    force: Annotated[bool, flag("Even if a process has the vault open.", "--force")] = False,
) -> Report:
    """Put a backup in the vault's place, after checking all of it; keep what was there."""
    reason = console.read_reason(reason)
    home, clock = chosen.folder, SystemClock()
    with restoring.staged(source, home) as stage:
        header, data = anyio.run(read_root, FileStorage(stage))
        provider = find_provider(master_uri(chosen, header))
        current = root_header(header).master
        recovered = shares or sealed is not None
        with (
            read_key(header, sealed, private_key)
            if recovered
            else anyio.run(load_master, provider, header)
        ) as key:
            held = hold(provider, version=current.version, key=key)

            async def check_copy() -> backing.Manifest:
                return await restoring.check_copy(stage, provider=held, clock=clock)

            async def mark_rotations_uncertain() -> None:
                await restoring.mark_rotations_uncertain(stage, provider=held, clock=clock)

            async def record() -> None:
                await restoring.record(
                    home, manifest, provider=held, reason=reason, clock=clock
                )
                if recovered:
                    async with await Vault.unseal(home, master=held) as vault:
                        await recovering.note_provider(vault, provider)

            manifest = anyio.run(check_copy)
            held_in: dict[str, Json] = {"contents": to_builtins(manifest.contents)}
            if check:
                return done({"restored": False, **held_in}, "The backup is whole.")
            if recovered:
                anyio.run(recovering.restore_key, key, data, provider)
            anyio.run(mark_rotations_uncertain)
            aside = restoring.install(stage, home, force=force)
            anyio.run(record)
    restored = f"Restored {manifest.contents.credentials} credentials to {home}."
    advice = f"What was there is in {aside}; remove it when you don't need it."
    kept = None if aside is None else str(aside)
    report: dict[str, Json] = {
        "restored": True,
        **held_in,
        "home": str(home),
        "set_aside": kept,
    }
    return done(report, restored, *([] if aside is None else [advice]))


# -- databases -----------------------------------------------------------------------------

StorageOption = Annotated[
    str | None,
    option("URL", "The database; the one of the vault in --home by default.", "--storage"),
]

db = typer.Typer(
    context_settings=HELP,
    no_args_is_help=True,
    help="The tables of a vault that is in a database.",
)


@db.command("status")
@command(keyless=True)
def status(chosen: Settings, storage: StorageOption = None) -> Report:
    """Say which version the tables have, and what is in them."""
    place = _place(chosen, storage)

    async def load() -> dict[str, Json]:
        async with closing(open_sql(place)) as opened:
            schema = await opened.schema()
            facts: dict[str, Json] = {
                "database": opened.url,
                "tables": schema.current,
                "needed": schema.needed,
                "state": schema.state,
                "space": opened.space,
            }
            if schema.is_current:
                facts["vaults"] = await opened.spaces()
            return facts

    facts = anyio.run(load)
    shown: list[tuple[str, str]] = []
    for name, value in facts.items():
        text = ", ".join(map(str, value)) or None if isinstance(value, list) else value
        shown.append((name.replace("_", " "), "none" if text is None else str(text)))
    return Report(facts, Fields(shown), code=int(facts["state"] != "current"))


@db.command("upgrade")
@command(keyless=True)
def upgrade(chosen: Settings, storage: StorageOption = None) -> Report:
    """Make the tables, or bring them to this program's version."""
    place = _place(chosen, storage)

    async def work() -> str | None:
        async with closing(open_sql(place)) as opened:
            return (await opened.upgrade()).current

    before = anyio.run(work)
    if before is None:
        return done({"before": None}, "Made the tables.")
    return done({"before": before}, f"The tables were of version {before}, and are current.")


def _place(chosen: Settings, url: str | None) -> StoragePlace:
    if url is not None:
        return StoragePlace(url)
    found = configured(chosen.folder)
    if found is None:
        raise InvalidInputError(
            f"The vault in {chosen.folder} is not in a database.",
            hint="Name one with --storage URL.",
        )
    return found


def join(home: Path, url: str | None) -> Report:
    """Makes ``home`` one that shares a vault which is in a database.

    Raises:
        VaultExistsError: The home has a vault already.
        VaultNotFoundError: There is none in the database.
    """
    if url is None:
        raise InvalidInputError("--join needs --storage URL.", hint="Say where the vault is.")
    if anyio.run(has_vault, home):
        raise VaultExistsError(
            f"There is a vault in {home} already.",
            hint="Use it, or choose another directory with --home.",
        )
    target = open_place(StoragePlace(url))

    async def work() -> None:
        async with closing(target):
            if await target.read(KEYSTORE) is None:
                raise VaultNotFoundError(
                    "There is no vault in that database.",
                    hint="Make one: apex-creds init --storage URL",
                )
            await remember_storage(home, target)

    anyio.run(work)
    return done(
        {"home": str(home), "joined": True},
        f"{home} shares the vault in that database now.",
        "Next: make its master key available here, then apex-creds status",
    )
