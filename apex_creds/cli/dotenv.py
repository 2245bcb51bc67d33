"""``import FILE.env``: secrets out of a .env file, into the vault.

Guarantee: the grammar is python-dotenv's; names and reasons are reported, values never.
Nothing is taken from the environment: a value that refers to another variable is skipped.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer

from apex_creds.cli import options, output, prompts, session
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption
from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.fs.oserrors import translated
from apex_creds.fs.private_files import open_small
from apex_creds.model import ApiKey, CredentialKind, Origin, check_name
from apex_creds.vault import PutItem, Vault

MAX_FILE_BYTES: Final = 1024 * 1024

_REFERENCE: Final = re.compile(r"\$\{[^}]*\}")


@dataclass(slots=True)
class Plan:
    """What a file holds: what to store by name, and what is left out and why."""

    items: dict[str, PutItem] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)


def read_plan(text: str) -> Plan:
    """Reads a .env file's text; the last of several values for a name counts."""
    from dotenv.parser import parse_stream

    plan = Plan()
    for binding in parse_stream(io.StringIO(text)):
        line = f"line {binding.original.line}"
        if binding.error:
            plan.skipped.append((line, "not understood"))
        elif binding.key is not None:
            _take(plan, binding.key, binding.value)
    return plan


def _take(plan: Plan, name: str, value: str | None) -> None:
    if name in plan.items:
        plan.skipped.append((name, "an earlier value: a later line replaces it"))
    why = _objection(name, value)
    if why or value is None:
        plan.items.pop(name, None)
        plan.skipped.append((name, why))
        return
    plan.items[name] = PutItem(name=name, secret=ApiKey(value))


def _objection(name: str, value: str | None) -> str:
    if not value:
        return "no value"
    if _REFERENCE.search(value):
        return "refers to another variable: set it yourself"
    try:
        check_name(name)
        ApiKey(value)
    except ApexCredsError as error:
        return error.message
    return ""


def read_file(path: Path) -> tuple[str, bool]:
    """A file's text (``-``: standard input), and whether others can read it.

    Raises:
        InvalidInputError: It is too large or not UTF-8.
        StorageError: It can't be read, or is no file.
    """
    if str(path) == "-":
        return _decoded(prompts.read_input(MAX_FILE_BYTES)), False
    with translated(path):
        fd = open_small(path, limit=sys.maxsize, follow=True)
        with open(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInputError(f"{path} is larger than {MAX_FILE_BYTES // 1024} KiB.")
    return _decoded(data), os.name == "posix" and bool(stat.S_IMODE(mode) & 0o077)


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        failure = InvalidInputError("The file is not UTF-8 text.")
    raise failure


async def store(
    vault: Vault, plan: Plan, *, replace: bool, origins: Iterable[str] | None = None
) -> list[str]:
    """Stores a plan's items, all or none; what is kept out is added to ``skipped``.

    Args:
        vault: Where to.
        plan: What.
        replace: Whether those that are there get a new version.
        origins: Where all of them may be sent; as it was, or nowhere by default.

    Returns:
        The names that were stored.
    """
    known = {info.name: info.kind for info in await vault.list()}
    chosen = [item for item in plan.items.values() if item.name not in known]
    for name in [name for name in plan.items if name in known]:
        if known[name] is not CredentialKind.API_KEY:
            plan.skipped.append((name, "a credential of another kind has that name"))
        elif replace:
            chosen.append(plan.items[name])
        else:
            plan.skipped.append((name, "there already: --replace stores a new version"))
    where = None if origins is None else tuple(map(Origin.parse, origins))
    await vault.put_many(dataclasses.replace(item, origins=where) for item in chosen)
    return sorted(item.name for item in chosen)


def import_file(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .env file; - is standard input.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="New versions of those that are there.")
    ] = False,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL", help="Where all of them may be sent; repeat.", show_default=False
        ),
    ] = None,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Store the secrets of a .env file, each as an API key of its name."""
    for url in origin or ():
        Origin.parse(url)

    async def work(vault: Vault) -> tuple[Plan, list[str], bool]:
        text, exposed = read_file(file)
        plan = read_plan(text)
        return plan, await store(vault, plan, replace=replace, origins=origin), exposed

    plan, imported, exposed = session.with_vault(options.settings(ctx, home, master), work)
    if json:
        skipped = [{"name": name, "reason": why} for name, why in plan.skipped]
        output.json_out({"imported": imported, "skipped": skipped})
        return
    for line, style in _lines(imported, plan.skipped):
        output.say(line, style=style)
    if imported and str(file) != "-":
        output.note(f"{file} still holds these secrets in clear: delete it (shred -u).")
    if exposed:
        output.note(f"Other users can read {file}: consider its secrets known to them.")


def _lines(
    imported: Iterable[str], skipped: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, str]]:
    imported, skipped = list(imported), list(skipped)
    yield f"{len(imported)} imported, {len(skipped)} skipped.", "bold"
    yield from ((f"  imported  {name}", "green") for name in imported)
    yield from ((f"  skipped   {name}: {why}", "yellow") for name, why in skipped)
