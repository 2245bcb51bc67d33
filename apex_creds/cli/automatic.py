"""What every command does first about older programs' files: migrate them, and say so.

Guarantee: said on standard error, in a few lines without a secret; never an error of the
command itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from apex_creds.cli import output
from apex_creds.migration.beside import is_due
from apex_creds.migration.state import DOCUMENT
from apex_creds.vault import Vault

if TYPE_CHECKING:
    from apex_creds.migration import Report, SourceReport

LARGE: Final = 500
"""Entries from which on a bar is shown."""
_NAMED: Final = 20


async def look(vault: Vault) -> None:
    """Migrates what lies beside the vault."""
    if not is_due(vault):
        return
    from apex_creds.migration import on_unseal

    with output.bars(least=LARGE) as tell:
        report = await on_unseal(vault, progress=tell)
    await take_config(vault)
    announce(report)


async def take_config(vault: Vault) -> None:
    """Makes policy of what a migrated configuration says about rotation."""
    if vault.store.storage.change_token(DOCUMENT) is not None:
        from apex_creds.compat.rotation import take_intervals  # loads the scheduler

        await take_intervals(vault)


def announce(report: Report) -> None:
    """Says what was done by itself."""
    for source in report.sources:
        if source.problem:
            output.note(f"{source.path} was not migrated: {source.problem} {source.hint}")
            continue
        output.note(f"Migrated {source.path}: {summary(source)}.", style="green")
        if source.missing:
            output.note("See what is left: apex-creds migrate --dry-run")
        elif source.backups:
            output.note("When all works: apex-creds migrate finish erases the .bak files.")
        for note in (*source.notes, *left_to_do(source)):
            output.note(note)


def left_to_do(source: SourceReport) -> Iterator[str]:
    """Which credentials no plugin can use through a handle yet, and what helps."""
    if source.nowhere:
        names = ", ".join(map(output.safe, source.nowhere[:_NAMED]))
        more = f" and {len(source.nowhere) - _NAMED} more" if source.nowhere[_NAMED:] else ""
        yield f"May be sent nowhere yet: {names}{more}."
        yield "Let plugins use them: apex-creds edit NAME --origin URL [--delivery HOW]"


def summary(source: SourceReport) -> str:
    """How many entries had which fate, in words."""
    counts = sorted(source.counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {fate.value}" for fate, count in counts) or "nothing in it"
