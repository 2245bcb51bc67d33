"""``import`` and ``copy``: secrets out of a .env file; the vault into another place.

Guarantee: the grammar of a .env file is python-dotenv's; names and reasons are reported,
values never. Nothing is taken from the environment: a value that refers to another variable
is skipped.
"""

from __future__ import annotations

import dataclasses
import os
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import anyio

from apex_creds.cli import console
from apex_creds.cli.command import Settings, command, with_vault
from apex_creds.cli.console import Json, Line, Note, Report
from apex_creds.cli.credential_commands import about_clear
from apex_creds.cli.program import argument, flag, option
from apex_creds.errors import ApexCredsError, InvalidInputError, VaultExistsError
from apex_creds.fs.private_files import open_small, translated
from apex_creds.migration.sources import settings
from apex_creds.model import ApiKey, CredentialKind, Origin, check_name
from apex_creds.vault import PutItem, Vault

MAX_FILE_BYTES: Final = 1024 * 1024


# -- import --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Where:
    """An origin of one credential, or of all where ``name`` is empty."""

    name: str
    origin: Origin

    @classmethod
    def parse(cls, text: str) -> Where:
        """Reads ``[NAME=]URL``.

        Raises:
            InvalidInputError: It is none.
        """
        head, equals, tail = text.partition("=")
        if equals and "://" not in head:
            return cls(check_name(head), Origin.parse(tail))
        return cls("", Origin.parse(text))


@dataclass(slots=True)
class Plan:
    """What a file holds: what to store by name, and what is left out and why."""

    items: dict[str, PutItem] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@command()
async def import_file(
    vault: Vault,
    file: Annotated[Path, argument("FILE", "A .env file; - is standard input.")],
    replace: Annotated[
        bool, flag("New versions of those that are there.", "--replace")
    ] = False,
    origin: Annotated[
        list[Where] | None,
        option(
            "[NAME=]URL",
            "Where all of them may be sent, or the one of that name; repeat.",
            parser=Where.parse,
        ),
    ] = None,
) -> Report:
    """Store the secrets of a .env file, each as an API key of its name."""
    data, exposed = read_file(file)
    plan = read_plan(data)
    unknown = {one.name for one in origin or ()} - {"", *plan.items}
    if unknown:
        raise InvalidInputError(
            f"The file has no value for {', '.join(sorted(unknown))}.",
            hint="Check the names in --origin NAME=URL.",
        )
    imported = await store(vault, plan, replace=replace, origins=origin)
    notes = about_clear({one.origin for one in origin or () if imported})
    if imported and str(file) != "-":
        notes.append(Note(f"{file} still holds these secrets in clear: delete it (shred -u)."))
    if exposed:
        notes.append(Note(f"Other users can read {file}: consider its secrets known to them."))
    return Report(
        {
            "imported": imported,
            "skipped": [{"name": name, "reason": why} for name, why in plan.skipped],
        },
        Line(f"{len(imported)} imported, {len(plan.skipped)} skipped.", "bold"),
        *(Line(f"  imported  {name}", "green") for name in imported),
        *(Line(f"  skipped   {name}: {why}", "yellow") for name, why in plan.skipped),
        notes=notes,
        code=int(bool(plan.skipped)),
    )


def read_file(path: Path) -> tuple[bytes, bool]:
    """A file's bytes (``-``: standard input), and whether others can read it.

    Raises:
        InvalidInputError: It is too large.
        StorageError: It can't be read, or is no file.
    """
    mode = 0
    if str(path) == "-":
        data = console.read_input(MAX_FILE_BYTES)
    else:
        with translated(path):
            fd = open_small(path, limit=sys.maxsize, follow=True)
            with open(fd, "rb") as file:
                mode = os.fstat(fd).st_mode
                data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInputError(f"{path} is larger than {MAX_FILE_BYTES // 1024} KiB.")
    return data, os.name == "posix" and bool(stat.S_IMODE(mode) & 0o077)


def read_plan(data: bytes) -> Plan:
    """Reads a .env file; the last of several values for a name counts.

    Raises:
        InvalidInputError: It is not UTF-8.
    """
    found = settings(data)
    if found is None:
        raise InvalidInputError("The file is not UTF-8 text.")
    plan = Plan()
    for number, name, value, _, wrong in found:
        if name is None:
            if wrong:
                plan.skipped.append((f"line {number}", wrong))
            continue
        if plan.items.pop(name, None):
            plan.skipped.append((name, "an earlier value: a later line replaces it"))
        why = wrong or _objection(name, value)
        if why or value is None:
            plan.skipped.append((name, why))
        else:
            plan.items[name] = PutItem(name=name, secret=ApiKey(value))
    return plan


def _objection(name: str, value: str | None) -> str:
    if not value:
        return "no value"
    try:
        check_name(name)
        ApiKey(value)
    except ApexCredsError as error:
        return error.message
    wrong = console.objection(value)
    return f"{wrong} Store it with: set --kind generic" if wrong else ""


async def store(
    vault: Vault, plan: Plan, *, replace: bool, origins: Iterable[Where] | None = None
) -> list[str]:
    """Stores a plan's items, all or none; what is kept out is added to ``skipped``.

    Args:
        vault: Where to.
        plan: What.
        replace: Whether those that are there get a new version.
        origins: Where they may be sent; as it was, or nowhere by default.

    Returns:
        The names that were stored.
    """
    known = {info.name: info.kind for info in await vault.list(principal="")}
    chosen = []
    for name, item in plan.items.items():
        if name not in known or (replace and known[name] is CredentialKind.API_KEY):
            chosen.append(item)
        elif known[name] is not CredentialKind.API_KEY:
            plan.skipped.append((name, "a credential of another kind has that name"))
        else:
            plan.skipped.append((name, "there already: --replace stores a new version"))
    places = tuple(origins or ())

    def placed(item: PutItem) -> PutItem:
        own = tuple(one.origin for one in places if one.name == item.name)
        own = own or tuple(one.origin for one in places if not one.name)
        return dataclasses.replace(item, origins=own or None)

    await vault.put_many(map(placed, chosen))
    return sorted(item.name for item in chosen)


# -- copy ----------------------------------------------------------------------------------


@command()
def copy(
    chosen: Settings,
    to: Annotated[
        str,
        option("URL|DIR", "A database, or a directory, without a vault in it.", "--to"),
    ],
) -> Report:
    """Copy the vault to a database or directory, record by record, each one checked.

    Stop what uses the vault before. When it is interrupted, run it again: it goes on.
    """
    from apex_creds.admin.backup import POLICY, copy_policy
    from apex_creds.admin.transfer import Copied, transfer
    from apex_creds.fs.home import SECURITY, resolve_home
    from apex_creds.storage.base import closing
    from apex_creds.storage.file_storage import FileStorage
    from apex_creds.storage.storage_factory import (
        Located,
        StoragePlace,
        configured,
        open_place,
        place_of,
    )

    if "://" in to:
        target = open_place(StoragePlace(to))
    else:
        folder, home = resolve_home(to), chosen.folder
        if folder == home or home in folder.parents:
            raise InvalidInputError("That is the vault itself.", hint="Name another directory.")
        if configured(folder) is not None:
            raise VaultExistsError(
                f"The vault of {folder} is in a database.", hint="Name another directory."
            )
        target = FileStorage(folder)

    async def work(vault: Vault) -> Copied:
        async with closing(target):
            await target.prepare()
            if isinstance(target, Located):
                place = place_of(target)
                space = f", space {place.space}" if place.space else ""
                console.note(f"To {place.url}{space}.", style="")
            done = await transfer(
                vault, target, progress=lambda what: console.note(f"Copying {what} …", style="")
            )
            if (
                isinstance(target, FileStorage)
                and not (target.root / SECURITY / POLICY).exists()
            ):
                await anyio.to_thread.run_sync(copy_policy, vault.home, target.root)
            return done

    done = with_vault(chosen, work)
    data: dict[str, Json] = dict(dataclasses.asdict(done))
    copied = Line(
        f"Copied {done.credentials} credentials in {done.documents} documents"
        f" ({done.written} written now), each read back and opened.",
        "green",
    )
    if isinstance(target, Located):
        place = place_of(target)
        url = f"{place.url}{'&' if '?' in place.url else '?'}space={place.space}"
        return Report(
            data | {"database": place.url, "space": place.space},
            copied,
            "Next, in each home that is to use it:",
            f"  apex-creds --home DIR init --join --storage '{url}'",
        )
    return Report(
        data,
        copied,
        "Next: apex-creds --home DIR status, with the same master key. If that is",
        "refused, since the log of the vault in its old place is longer: stop using",
        "that one, then apex-creds --home DIR audit accept-rollback --reason moved",
    )
