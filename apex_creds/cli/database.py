"""``db``: the tables of a vault in a database; and homes that share such a vault."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from apex_creds.cli import options, output, session
from apex_creds.cli.options import HomeOption, JsonOption
from apex_creds.errors import InvalidInputError, VaultExistsError, VaultNotFoundError
from apex_creds.storage.base import KEYSTORE
from apex_creds.storage.storage_factory import (
    StoragePlace,
    configured,
    has_vault,
    open_place,
    open_sql,
    remember_storage,
)

if TYPE_CHECKING:
    from apex_creds.storage.sql_storage import SqlStorage

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="The database; the one of the vault in --home by default.",
        show_default=False,
    ),
]

db = typer.Typer(
    context_settings=options.HELP,
    no_args_is_help=True,
    help="The tables of a vault that is in a database.",
)


@db.command("status")
def status(
    ctx: typer.Context,
    storage: StorageOption = None,
    json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say which version the tables have, and what is in them."""
    facts = anyio.run(_facts, _place(ctx, storage, home))
    if json:
        output.json_out(facts)
    else:
        output.fields((name.replace("_", " "), _shown(value)) for name, value in facts.items())
    if facts["state"] != "current":
        raise typer.Exit(1)


@db.command("upgrade")
def upgrade(ctx: typer.Context, storage: StorageOption = None, home: HomeOption = None) -> None:
    """Make the tables, or bring them to this program's version."""
    before = anyio.run(_upgrade, _place(ctx, storage, home))
    if before is None:
        output.say("Made the tables.", style="green")
    else:
        output.say(f"The tables were of version {before}, and are current.", style="green")


def join(home: Path, url: str | None) -> None:
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
    anyio.run(_join, home, url)
    output.say(f"{home} shares the vault in that database now.", style="green")
    output.say("Next: make its master key available here, then apex-creds status")


async def _join(home: Path, url: str) -> None:
    storage = open_place(StoragePlace(url))
    try:
        if await storage.read(KEYSTORE) is None:
            raise VaultNotFoundError(
                "There is no vault in that database.",
                hint="Make one: apex-creds init --storage URL",
            )
        await remember_storage(home, storage)
    finally:
        await storage.close()


async def _facts(place: StoragePlace) -> dict[str, output.Json]:
    storage = open_sql(place)
    try:
        schema = await storage.schema()
        return {
            "database": storage.url,
            "tables": schema.current,
            "needed": schema.needed,
            "state": schema.state,
            "space": storage.space,
            **(await _content(storage) if schema.is_current else {}),
        }
    finally:
        await storage.close()


async def _content(storage: SqlStorage) -> dict[str, output.Json]:
    return {"vaults": await storage.spaces()}


async def _upgrade(place: StoragePlace) -> str | None:
    storage = open_sql(place)
    try:
        return (await storage.upgrade()).current
    finally:
        await storage.close()


def _place(ctx: typer.Context, url: str | None, home: Path | None) -> StoragePlace:
    if url is not None:
        return StoragePlace(url)
    place = session.home_of(options.settings(ctx, home, None))
    found = configured(place)
    if found is None:
        raise InvalidInputError(
            f"The vault in {place} is not in a database.", hint="Name one with --storage URL."
        )
    return found


def _shown(value: output.Json) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value is not None else "none"
