"""``migrate``: credentials of older programs, .env files, other vaults and keyring entries.

Guarantee: names and fates are printed, values never. Without a vault one is made first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import anyio
import typer

from apex_creds.cli import automatic, options, output, session, when
from apex_creds.cli.options import HomeOption, JsonOption, MasterOption, Settings
from apex_creds.errors import InvalidInputError
from apex_creds.migration import (
    Erased,
    OnConflict,
    Options,
    Report,
    SourceReport,
    finish,
    is_legacy,
    migrate,
    migration_document,
    preview,
    set_aside,
    switch,
)
from apex_creds.migration.copying import Progress
from apex_creds.migration.finishing import withheld
from apex_creds.migration.masters import VARIABLE
from apex_creds.migration.report import EntryReport, Fate
from apex_creds.migration.state import OPEN, MigrationState, SourceState
from apex_creds.model import Origin
from apex_creds.storage.storage_factory import has_vault
from apex_creds.vault import Vault, marking

_QUIET = frozenset({Fate.MIGRATED, Fate.PRESENT})


class Action(StrEnum):
    """What to do instead of migrating."""

    FINISH = "finish"
    ON = "on"
    OFF = "off"


def migrate_command(
    ctx: typer.Context,
    action: Annotated[
        Action | None,
        typer.Argument(
            metavar="ACTION",
            help="finish: erase the .bak files. on, off: migrate by itself, or not.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="A file, a directory, keyring:SERVICE or keyring:SERVICE/USER; repeat. What "
            "old programs left beside the vault, by default.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")
    ] = False,
    on_conflict: Annotated[
        OnConflict,
        typer.Option(
            metavar="WHAT", help="report, keep or replace: where the vault has another value."
        ),
    ] = OnConflict.REPORT,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the source as it is when all is migrated.")
    ] = False,
    accept_partial: Annotated[
        bool,
        typer.Option(
            "--accept-partial",
            help="Rename it although some entries are only there. What could not be read is "
            "never erased.",
        ),
    ] = False,
    erase_after: Annotated[
        str | None,
        typer.Option(
            metavar="SPAN", help="Erase the .bak files by itself after 30d, say; else never."
        ),
    ] = None,
    from_master: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Master key of another vault that is the source."),
    ] = None,
    json: JsonOption = False,
    home: HomeOption = None,
    master: MasterOption = None,
) -> None:
    """Take over the credentials of older programs; their files become .bak when all is safe."""
    chosen = options.settings(ctx, home, master)
    if action is not None:
        if source or dry_run:
            raise InvalidInputError(f"{action.value} takes no --from and no --dry-run.")
        _act(chosen, action, json=json)
        return
    wanted = Options(
        on_conflict=on_conflict,
        keep_source=keep,
        accept_partial=accept_partial,
        erase_after=None if erase_after is None else when.parse(erase_after, now=0.0),
        dry_run=dry_run,
        master=None if from_master is None else session.provider(from_master, new=False),
    )
    if not _has_vault(chosen):
        if dry_run:
            found = anyio.run(preview, session.home_of(chosen), source)
            _show(found, json=json)
            _exit(found)
            return
        _make_vault(chosen)

    async def work(vault: Vault) -> Report:
        with output.bars(least=automatic.LARGE) as tell:
            made = await migrate(vault, source, options=_telling(wanted, tell))
        await automatic.take_config(vault)
        return made

    report = session.with_vault(chosen, work, look=False)
    _show(report, json=json)
    if not json and not dry_run and sys.stdin.isatty():
        _ask_where(chosen, [name for found in report.sources for name in found.nowhere])
    _exit(report)


def _ask_where(chosen: Settings, names: Sequence[str]) -> None:
    """Asks for what no table knows; what is not answered stays to be done."""
    places: dict[str, list[Origin]] = {}
    for name in dict.fromkeys(names):
        text = typer.prompt(
            f"Where may {output.safe(name)} be sent (https://host; empty: later)",
            default="",
            show_default=False,
            err=True,
        )
        if text.strip():
            places[name] = [Origin.parse(part) for part in text.split()]

    async def work(vault: Vault) -> None:
        for name, origins in places.items():
            await marking.edit(vault, name, origins=origins)

    if places:
        session.with_vault(chosen, work, look=False)


def _exit(report: Report) -> None:
    if not report.complete:
        raise typer.Exit(1)


def make_room(home: Path) -> None:
    """Before a vault is made: moves an older program's files out of its place.

    Raises:
        DecryptionError: They don't open; nothing was moved.
        StorageError: They can't be moved.
    """
    if anyio.run(set_aside, home):
        output.note(f"An older program's files were moved to {home / 'legacy'}.")


def _has_vault(chosen: Settings) -> bool:
    place = session.home_of(chosen)
    return anyio.run(has_vault, place) and not is_legacy(place)


def _make_vault(chosen: Settings) -> None:
    place = session.home_of(chosen)
    make_room(place)
    provider = session.provider(chosen.master or "keyring:", new=True)

    async def create() -> str:
        async with await Vault.create(place, master=provider) as vault:
            return vault.vault_id

    output.note(f"Made vault {anyio.run(create)} in {place}; master key: {provider.uri}")


def _telling(wanted: Options, tell: Progress) -> Options:
    from dataclasses import replace

    return replace(wanted, progress=tell)


def _act(chosen: Settings, action: Action, *, json: bool) -> None:
    if action is not Action.FINISH:
        turned = action is Action.ON

        async def turn(vault: Vault) -> None:
            await switch(vault, automatic=turned)

        session.with_vault(chosen, turn, look=False)
        output.say(f"Migrating by itself is {action.value}.", style="green")
        return

    async def work(vault: Vault) -> tuple[list[Erased], MigrationState]:
        return await finish(vault), await migration_document(vault.store).read()

    erased, state = session.with_vault(chosen, work, look=False)
    left = [found.path for found in state.sources if found.phase in OPEN]
    kept = withheld(state)
    _show_finish(erased, left, kept, json=json)
    if left or kept:
        raise typer.Exit(1)


def _show_finish(
    erased: Sequence[Erased],
    left: Sequence[str],
    kept: Sequence[SourceState],
    *,
    json: bool,
) -> None:
    if json:
        gone: list[output.Json] = [{"path": e.path, "shredded": e.shredded} for e in erased]
        held: list[output.Json] = [item.backup for source in kept for item in source.backups]
        output.json_out({"erased": gone, "left": list(left), "kept": held})
        return
    for source in kept:
        output.note(_why_kept(source), style="red")
        for backup in source.backups:
            output.say(f"  kept {backup.backup}")
    if not erased and not kept:
        output.say("There is nothing to erase.")
    for item in erased:
        if item.shredded == "no":
            output.note(f"{item.path} is gone: if it was moved, erase it yourself.")
            continue
        how = "overwritten" if item.shredded == "overwritten" else "copies may remain"
        output.say(f"Erased {item.path} ({how}).", style="green")
    for path in left:
        output.note(f"{path} still has entries that are only there: apex-creds migrate")
    if erased and not left and not kept:
        output.say(f"The old master key ({VARIABLE}, or its keyring entry) opens nothing now.")


def _why_kept(source: SourceState) -> str:
    if source.unread:
        return (
            f"{source.path} has entries ({source.unread}) that could not be read: nothing of "
            "it was erased. Look at its files with the old program; then remove them yourself."
        )
    return (
        f"{source.path} was read by an older version, which overlooked some layouts: nothing "
        "of it was erased. Take the .bak from the names of its files, and run: "
        "apex-creds migrate"
    )


def _show(report: Report, *, json: bool) -> None:
    if json:
        found: list[output.Json] = [_as_json(source) for source in report.sources]
        output.json_out(
            {"complete": report.complete, "dry_run": report.dry_run, "sources": found}
        )
        return
    if not report.sources:
        output.say("There is nothing to migrate. Name something with --from.")
    for source in report.sources:
        _show_source(source, dry_run=report.dry_run)


def _show_source(source: SourceReport, *, dry_run: bool) -> None:
    title = f"{source.path} ({source.format.value if source.format else 'unknown'})"
    if source.problem:
        output.note(f"{title}: {source.problem}", style="red")
        if source.hint:
            output.note(source.hint)
    else:
        would = "would be: " if dry_run else ""
        output.say(f"{title}: {would}{automatic.summary(source)}", style="bold")
    for entry in source.entries:
        style = "green" if entry.fate in _QUIET else "yellow"
        output.say(_line(entry), style=style)
    for note in (*source.notes, *automatic.left_to_do(source)):
        output.note(note)
    if dry_run:
        return
    if source.missing and not source.backups:
        output.note(_advice(source))
    for backup in source.backups:
        output.say(f"  renamed to {backup}")
    if source.backups:
        output.say("When all works: apex-creds migrate finish")


def _line(entry: EntryReport) -> str:
    name = f" as {entry.name}" if entry.name and entry.name != entry.service else ""
    detail = f": {entry.detail}" if entry.detail else ""
    sent = f", to {' '.join(entry.origins)} as {entry.delivery}" if entry.origins else ""
    return f"  {entry.fate.value:<12}{entry.service}{name} ({entry.kind}){sent}{detail}"


def _advice(source: SourceReport) -> str:
    ways = ["--accept-partial renames it all the same"]
    if source.counts[Fate.CONFLICT]:
        ways.insert(0, "--on-conflict keep or replace decides on conflicts")
    if source.unread:
        ways.append("what could not be read is never erased")
    return f"{source.missing} are only in the source, which stays: {'; '.join(ways)}."


def _as_json(source: SourceReport) -> dict[str, output.Json]:
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
