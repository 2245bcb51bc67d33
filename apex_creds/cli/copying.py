"""``copy``: the vault into another place, files or a database."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import anyio
import typer

from apex_creds.cli import options, output, session
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.errors import InvalidInputError, VaultExistsError
from apex_creds.fs.home import SECURITY, resolve_home
from apex_creds.storage.base import Storage
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.storage_factory import (
    Located,
    StoragePlace,
    configured,
    open_place,
    place_of,
)
from apex_creds.vault import Vault
from apex_creds.vault.backup import POLICY, copy_policy
from apex_creds.vault.transfer import Copied, transfer

ToOption = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="URL|DIR",
        help="A database, or a directory, without a vault in it.",
        show_default=False,
    ),
]


def copy(
    ctx: typer.Context,
    to: ToOption,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Copy the vault to a database or directory, record by record, each one checked.

    Stop what uses the vault before. When it is interrupted, run it again: it goes on.
    """
    chosen = options.settings(ctx, home, master)
    target = _target(to, session.home_of(chosen))

    async def work(vault: Vault) -> Copied:
        try:
            return await _copy(vault, target)
        finally:
            await target.close()

    _tell(session.with_vault(chosen, work), target, json=json)


async def _copy(vault: Vault, target: Storage) -> Copied:
    await target.prepare()
    if isinstance(target, Located):
        place = place_of(target)
        space = f", space {place.space}" if place.space else ""
        output.note(f"To {place.url}{space}.", style="")
    done = await transfer(
        vault, target, progress=lambda what: output.note(f"Copying {what} …", style="")
    )
    if isinstance(target, FileStorage) and not (target.root / SECURITY / POLICY).exists():
        await anyio.to_thread.run_sync(copy_policy, vault.home, target.root)
    return done


def _target(to: str, home: Path) -> Storage:
    if "://" in to:
        return open_place(StoragePlace(to))
    where = resolve_home(to)
    if where == home or home in where.parents:
        raise InvalidInputError("That is the vault itself.", hint="Name another directory.")
    if configured(where) is not None:
        raise VaultExistsError(
            f"The vault of {where} is in a database.", hint="Name another directory."
        )
    return FileStorage(where)


def _tell(done: Copied, target: Storage, *, json: bool) -> None:
    place = place_of(target) if isinstance(target, Located) else None
    if json:
        said: dict[str, output.Json] = dict(dataclasses.asdict(done))
        if place is not None:
            said |= {"database": place.url, "space": place.space}
        output.json_out(said)
        return
    output.say(
        f"Copied {done.credentials} credentials in {done.documents} documents"
        f" ({done.written} written now), each read back and opened.",
        style="green",
    )
    if place is None:
        output.say("Next: apex-creds --home DIR status, with the same master key. If that is")
        output.say("refused, since the log of the vault in its old place is longer: stop using")
        output.say("that one, then apex-creds --home DIR audit accept-rollback --reason moved")
        return
    joint = "&" if "?" in place.url else "?"
    output.say("Next, in each home that is to use it:")
    output.say(
        f"  apex-creds --home DIR init --join --storage '{place.url}{joint}space={place.space}'"
    )
