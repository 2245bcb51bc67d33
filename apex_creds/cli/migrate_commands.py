"""``migrate``: credentials of older programs, .env files, other vaults and keyring entries.

Guarantee: names and fates are printed, values never. Without a vault one is made first.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Final

import anyio
import typer

from apex_creds.cli import console
from apex_creds.cli.command import (
    LARGE_MIGRATION,
    JsonOption,
    Settings,
    command,
    fates,
    find_provider,
    left_to_do,
    span,
    take_config,
    with_vault,
)
from apex_creds.cli.console import Json, Line, Note, Part, Report, done
from apex_creds.cli.init_command import make_room
from apex_creds.cli.program import argument, flag, option
from apex_creds.errors import InvalidInputError
from apex_creds.migration import (
    Erased,
    OnConflict,
    Options,
    SourceReport,
    finish,
    is_legacy,
    migrate,
    migration_document,
    preview,
    switch,
)
from apex_creds.migration import Report as MigrationReport
from apex_creds.migration.cleanup import withheld
from apex_creds.migration.legacy_readers import VARIABLE
from apex_creds.migration.progress import OPEN, Fate, MigrationState
from apex_creds.model import Origin
from apex_creds.storage.storage_factory import has_vault
from apex_creds.vault import Vault

_QUIET: Final = frozenset({Fate.MIGRATED, Fate.PRESENT})


class Action(StrEnum):
    """What to do instead of migrating."""

    FINISH = "finish"
    ON = "on"
    OFF = "off"


@command()
def migrate_command(
    chosen: Settings,
    action: Annotated[
        Action | None,
        argument("ACTION", "finish: erase the .bak files. on, off: migrate by itself, or not."),
    ] = None,
    source: Annotated[
        list[str] | None,
        option(
            "PATH",
            "A file, a directory, keyring:SERVICE or keyring:SERVICE/USER; repeat. What "
            "old programs left beside the vault, by default.",
            "--from",
        ),
    ] = None,
    dry_run: Annotated[
        bool, flag("Say what would be done; change nothing.", "--dry-run")
    ] = False,
    on_conflict: Annotated[
        OnConflict,
        option("WHAT", "report, keep or replace: where the vault has another value."),
    ] = OnConflict.REPORT,
    keep: Annotated[
        bool, flag("Leave the source as it is when all is migrated.", "--keep")
    ] = False,
    accept_partial: Annotated[
        bool,
        flag(
            "Rename it although some entries are only there. What could not be read is "
            "never erased.",
            "--accept-partial",
        ),
    ] = False,
    erase_after: Annotated[
        float | None,
        option(
            "SPAN", "Erase the .bak files by itself after 30d, say; else never.", parser=span
        ),
    ] = None,
    from_master: Annotated[
        str | None,
        option("URI", "Master key of another vault that is the source."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take over the credentials of older programs; their files become .bak when all is safe."""
    if action is not None:
        if source or dry_run:
            raise InvalidInputError(f"{action.value} takes no --from and no --dry-run.")
        if action is Action.FINISH:
            acted = _finish(chosen)
        else:
            on = action is Action.ON
            with_vault(chosen, lambda vault: switch(vault, automatic=on), migrates=False)
            acted = done({"automatic": on}, f"Migrating by itself is {action.value}.")
        acted.show(as_json=json)
        return acted.end()
    other_master = None if from_master is None else find_provider(from_master)
    home = chosen.folder
    has_none = not anyio.run(has_vault, home) or is_legacy(home)
    if has_none and not dry_run:
        make_room(home)
        provider = find_provider(chosen.master or "keyring:", new=True)

        async def create() -> str:
            async with await Vault.create(home, master=provider) as vault:
                return vault.vault_id

        console.note(f"Made vault {anyio.run(create)} in {home}; master key: {provider.uri}")

    async def work(vault: Vault) -> MigrationReport:
        with console.bars(least=LARGE_MIGRATION) as update:
            options = Options(
                on_conflict=on_conflict,
                keep_source=keep,
                accept_partial=accept_partial,
                erase_after=erase_after,
                dry_run=dry_run,
                master=other_master,
                progress=update,
            )
            made = await migrate(vault, source, options=options)
        await take_config(vault)
        return made

    if has_none and dry_run:
        made = anyio.run(preview, home, source)
    else:
        made = with_vault(chosen, work, migrates=False)
    parts = [part for found in made.sources for part in _shown(found, dry_run=dry_run)]
    report = Report(
        {
            "complete": made.complete,
            "dry_run": made.dry_run,
            "sources": [_as_json(found) for found in made.sources],
        },
        *(parts or ["There is nothing to migrate. Name something with --from."]),
        code=int(not made.complete),
    )
    report.show(as_json=json)
    if not json and not dry_run and sys.stdin.isatty():
        _ask_where(chosen, [name for found in made.sources for name in found.nowhere])
    return report.end()


def _ask_where(chosen: Settings, names: Sequence[str]) -> None:
    """Asks for what no table knows; what is not answered stays to be done."""
    places: dict[str, list[Origin]] = {}
    for name in dict.fromkeys(names):
        text = typer.prompt(
            f"Where may {console.safe(name)} be sent (https://host; empty: later)",
            default="",
            show_default=False,
            err=True,
        )
        if text.strip():
            places[name] = [Origin.parse(part) for part in text.split()]

    async def work(vault: Vault) -> None:
        for name, origins in places.items():
            await vault.edit(name, origins=origins)

    if places:
        with_vault(chosen, work, migrates=False)


# -- what was migrated ---------------------------------------------------------------------


def _shown(source: SourceReport, *, dry_run: bool) -> Iterator[Part]:
    title = f"{source.path} ({source.format.value if source.format else 'unknown'})"
    if source.problem:
        yield Note(f"{title}: {source.problem}", "red")
        if source.hint:
            yield Note(source.hint)
    else:
        yield Line(f"{title}: {'would be: ' if dry_run else ''}{fates(source)}", "bold")
    for entry in source.entries:
        name = f" as {entry.name}" if entry.name and entry.name != entry.service else ""
        detail = f": {entry.detail}" if entry.detail else ""
        sent = f", to {' '.join(entry.origins)} as {entry.delivery}" if entry.origins else ""
        what = f"{entry.service}{name} ({entry.kind}){sent}{detail}"
        style = "green" if entry.fate in _QUIET else "yellow"
        yield Line(f"  {entry.fate.value:<12}{what}", style)
    yield from map(Note, (*source.notes, *left_to_do(source)))
    if dry_run:
        return
    if source.missing and not source.backups:
        ways = ["--accept-partial renames it all the same"]
        if source.counts[Fate.CONFLICT]:
            ways.insert(0, "--on-conflict keep or replace decides on conflicts")
        if source.unread:
            ways.append("what could not be read is never erased")
        left = f"{source.missing} are only in the source, which stays"
        yield Note(f"{left}: {'; '.join(ways)}.")
    yield from (f"  renamed to {backup}" for backup in source.backups)
    if source.backups:
        yield "When all works: apex-creds migrate finish"


def _as_json(source: SourceReport) -> dict[str, Json]:
    return {
        "path": source.path,
        "format": source.format.value if source.format else None,
        "phase": source.phase.value if source.phase else None,
        "complete": source.complete,
        "problem": source.problem,
        "hint": source.hint,
        "backups": list(source.backups),
        "notes": list(source.notes),
        "counts": {fate.value: count for fate, count in source.counts.items()},
        "entries": [
            {
                "service": entry.service,
                "kind": entry.kind,
                "name": entry.name,
                "fate": entry.fate.value,
                "detail": entry.detail,
                "origins": list(entry.origins),
                "delivery": entry.delivery,
            }
            for entry in source.entries
        ],
    }


# -- finish --------------------------------------------------------------------------------


def _finish(chosen: Settings) -> Report:
    async def work(vault: Vault) -> tuple[list[Erased], MigrationState]:
        return await finish(vault), await migration_document(vault.store).read()

    erased, state = with_vault(chosen, work, migrates=False)
    left = [found.path for found in state.sources if found.phase in OPEN]
    kept = withheld(state)
    parts: list[Part] = []
    for source in kept:
        why = (
            f"{source.path} has entries ({source.unread}) that could not be read: nothing of "
            "it was erased. Read its files with the old program; then remove them yourself."
            if source.unread
            else f"{source.path} was read by an older version, which overlooked some layouts: "
            "nothing of it was erased. Take the .bak from the names of its files, and run: "
            "apex-creds migrate"
        )
        parts.append(Note(why, "red"))
        parts += [f"  kept {backup.backup}" for backup in source.backups]
    if not erased and not kept:
        parts.append("There is nothing to erase.")
    for item in erased:
        how = "overwritten" if item.shredded == "overwritten" else "copies may remain"
        if item.shredded == "no":
            parts.append(Note(f"{item.path} is gone: if it was moved, erase it yourself."))
        else:
            parts.append(Line(f"Erased {item.path} ({how}).", "green"))
    for path in left:
        text = f"{path} still has entries that are only there: apex-creds migrate"
        parts.append(Note(text))
    if erased and not left and not kept:
        key = f"{VARIABLE}, or its keyring entry"
        parts.append(f"The old master key ({key}) opens nothing now.")
    data: dict[str, Json] = {
        "erased": [{"path": item.path, "shredded": item.shredded} for item in erased],
        "left": left,
        "kept": [item.backup for source in kept for item in source.backups],
    }
    return Report(data, *parts, code=int(bool(left or kept)))
