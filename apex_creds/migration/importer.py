"""A migration from beginning to end.

Guarantee: whatever happens at whatever moment, every credential is in the source or in the
vault, and the next run goes on where this one ended. An error with one source is in
its report and stops none of the others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio.to_thread
from msgspec.structs import replace

from apex_creds.errors import ApexCredsError, AuditUnavailableError, ConflictError, StorageError
from apex_creds.keys import MasterKeyProvider
from apex_creds.migration import cleanup, sources
from apex_creds.migration.copy_verify import (
    Copying,
    OnConflict,
    Progress,
    assign,
    batches,
    problems,
    proposed,
)
from apex_creds.migration.entries import Format, Reading, credential_name
from apex_creds.migration.legacy_files import automatic_paths, exclusive, is_legacy, present
from apex_creds.migration.legacy_readers import VARIABLE, LegacyMasters, find_masters
from apex_creds.migration.progress import (
    MISSING,
    OPEN,
    READER,
    UNREAD,
    EntryReport,
    Fate,
    MigrationState,
    Phase,
    Report,
    SourceReport,
    SourceState,
    Written,
    migration_document,
)
from apex_creds.migration.sources import Source, read_vault
from apex_creds.policy.display import check_plugin
from apex_creds.telemetry import semconv, tracing
from apex_creds.vault import Vault

# -- import ---------------------------------------------------------------------------------


_SEALED: Final = (Format.FERNET, Format.SECRETBOX)
_IN_VAULT: Final = frozenset(Fate) - MISSING - {Fate.PLACEHOLDER, Fate.EMPTY, Fate.REMOVED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to migrate.

    Attributes:
        on_conflict: What to do where the vault has another value.
        keep_source: Leave the source as it is when all is in the vault.
        accept_partial: Rename it although some entries are only there. It is erased only if
            all of them were read.
        erase_after: Seconds after which the ``.bak`` files may be erased; None: never.
        dry_run: Report what would be done; change nothing.
        progress: Called after each batch.
        master: Of another vault that is the source.
        credentials: Where a SecretBox format's files of credentials are, if elsewhere.
    """

    on_conflict: OnConflict = OnConflict.REPORT
    keep_source: bool = False
    accept_partial: bool = False
    erase_after: float | None = None
    dry_run: bool = False
    progress: Progress | None = None
    master: str | MasterKeyProvider | None = None
    credentials: Path | None = None


async def migrate(
    vault: Vault,
    paths: Sequence[str | os.PathLike[str]] | None = None,
    *,
    options: Options | None = None,
    environ: Mapping[str, str] | None = None,
    wait: float = 10.0,
) -> Report:
    """Migrates sources into a vault.

    Args:
        vault: Where to.
        paths: Files, directories or ``keyring:SERVICE[/USER]``; what lies beside the
            vault and what was interrupted, by default.
        options: How.
        environ: Instead of the process's environment, for the old master key.
        wait: Seconds to wait for another process that migrates.

    Raises:
        StorageLockedError: Another process is still migrating.
        AuditUnavailableError: The log can't be written.
    """
    chosen = options or Options()
    async with exclusive(vault.home, wait=wait):
        state = await migration_document(vault.store).read()
        if paths is None:
            begun = [source.path for source in state.sources if source.phase in OPEN]
            paths = [*automatic_paths(vault.home), *begun]
        given = [str(path) for path in paths]
        reports: list[SourceReport | None] = []
        if not chosen.dry_run:
            resumed, reports = await resume(vault, state)
            given = [name for name in given if name not in resumed or present(Path(name))]
        masters = LegacyMasters()
        for name in dict.fromkeys(given):
            try:
                source = await anyio.to_thread.run_sync(
                    partial(sources.find, name, credentials=chosen.credentials)
                )
            except ApexCredsError as error:
                reports.append(_failed(name, error))
                continue
            if source.format in _SEALED and not masters.keys:
                masters = await find_masters(environ)
            with tracing.step(semconv.MIGRATE, {semconv.FORMAT: source.format.value}) as step:
                report = await _one(vault, source, masters, chosen)
                step.set(semconv.RECORDS, len(report.entries))
            reports.append(report)
    return Report([report for report in reports if report], chosen.dry_run)


async def resume(
    vault: Vault, state: MigrationState
) -> tuple[frozenset[str], list[SourceReport | None]]:
    """Goes on with renaming and erasing that a crash interrupted.

    Returns:
        The sources that were to be renamed, and reports of those that were not.
    """
    failed: list[SourceReport | None] = []
    copied = [source for source in state.sources if source.phase is Phase.COPIED]
    for source in copied:
        try:
            await cleanup.rename(vault, source)
        except (ConflictError, StorageError) as error:
            failed.append(_failed(source.path, error, source.format))
    if any(source.phase is Phase.ERASING for source in state.sources):
        await cleanup.erase_backups(vault, due_only=True)
    return frozenset(source.path for source in copied), failed


def _failed(path: str, error: ApexCredsError, found: Format | None = None) -> SourceReport:
    return SourceReport(path=path, format=found, problem=error.message, hint=error.hint)


async def _one(
    vault: Vault, source: Source, masters: LegacyMasters, options: Options
) -> SourceReport:
    reading = Reading()
    entries: tuple[EntryReport, ...] = ()
    try:
        if source.format is Format.VAULT:
            reading = await read_vault(source.path, into=vault, master=options.master)
        else:
            reading = await sources.read(source, masters.keys)
        run = _SourceRun(vault, source, reading, options)
        entries = await run.copy()
        state = None if options.dry_run else await run.end(entries)
    except AuditUnavailableError:
        raise
    except ApexCredsError as error:
        return SourceReport(
            path=source.path,
            format=source.format,
            entries=entries,
            problem=error.message,
            hint=error.hint,
            notes=_notes(source, reading, masters if not entries else None),
        )
    return SourceReport(
        path=source.path,
        format=source.format,
        entries=entries,
        phase=state.phase if state else None,
        backups=tuple(backup.backup for backup in state.backups) if state else (),
        notes=_notes(source, reading, None),
    )


def _notes(source: Source, reading: Reading, masters: LegacyMasters | None) -> tuple[str, ...]:
    exposed = (
        f"Other users can read {path}: consider its secrets known to them."
        for path in source.exposed
    )
    sealed = source.format in _SEALED and bool(os.environ.get(VARIABLE))
    unset = (f"{VARIABLE} is still set: unset it when all is migrated.",) if sealed else ()
    return (*exposed, *reading.notes, *(masters.notes if masters else ()), *unset)


class _SourceRun:
    """One source, from its reading to its end."""

    def __init__(
        self, vault: Vault, source: Source, reading: Reading, options: Options
    ) -> None:
        self._vault = vault
        self._source = source
        self._reading = reading
        self._options = options
        self._state: SourceState | None = None

    async def copy(self) -> tuple[EntryReport, ...]:
        """Copies all entries; what became of each, in the source's order."""
        vault, dry_run = self._vault, self._options.dry_run
        known = (await migration_document(vault.store).read()).source(self._source.path)
        if known is not None and known.phase in (Phase.DONE, Phase.BACKED_UP):
            # There is a new file of that name; the backups of the earlier one are to erase.
            if known.backups and not dry_run:
                await cleanup.record(vault, replace(known, path=known.backups[0].backup))
            known = None
        copying = Copying(
            vault,
            before=known,
            unchanged=known is not None
            and (known.agreed or known.digest) == self._source.digest,
            on_conflict=self._options.on_conflict,
            dry_run=dry_run,
        )
        entries = self._reading.entries
        if not dry_run:
            now = vault.clock.time()
            begun = known or SourceState(
                format=self._source.format,
                path=self._source.path,
                digest=self._source.digest,
                agreed=self._source.digest,
                phase=Phase.COPYING,
                began=now,
                changed=now,
            )
            begun = replace(begun, phase=Phase.COPYING, total=len(entries))
            self._state = await cleanup.record(vault, begun)
        fates = problems(entries)
        targets = await copying.targets(entries)
        for batch in batches(targets):
            reports, written = await copying.copy(batch)
            fates |= reports
            await self._note(written)
            if self._options.progress is not None:
                self._options.progress(self._source.path, len(fates), len(entries))
        titles = {
            fates[entry.key].name: entry.title
            for entry in entries
            if entry.title and entry.key in fates and fates[entry.key].fate in _IN_VAULT
        }
        if titles and not dry_run:
            await migration_document(vault.store).change(
                lambda state: replace(state, titles=titles | state.titles)
            )
        return tuple(fates[entry.key] for entry in entries if entry.key in fates)

    async def end(self, entries: Sequence[EntryReport]) -> SourceState:
        """Grants, then the source's next phase.

        Raises:
            ConflictError: The source was changed meanwhile.
        """
        assert self._state is not None
        await self._take_config(entries)
        missing = sum(entry.fate in MISSING for entry in entries)
        unread = sum(entry.fate in UNREAD for entry in entries)
        state = replace(
            self._state,
            missing=missing,
            unread=unread,
            reader=READER,
            digest=self._source.digest,
        )
        if all(entry.fate is not Fate.CONFLICT for entry in entries):
            state = replace(state, agreed=state.digest)
        if missing and not self._options.accept_partial:
            return await cleanup.record(self._vault, replace(state, phase=Phase.PARTIAL))
        if self._options.keep_source or not self._source.files:
            return await cleanup.record(self._vault, replace(state, phase=Phase.LEFT))
        after = self._options.erase_after
        erase_at = None if after is None else self._vault.clock.time() + after
        return await cleanup.retire(
            self._vault, self._source, replace(state, erase_at=erase_at)
        )

    async def _note(self, written: Sequence[Written]) -> None:
        if self._state is None or not written:
            return
        keys = {item.key for item in written}
        kept = tuple(item for item in self._state.written if item.key not in keys)
        self._state = replace(self._state, written=(*kept, *written))
        self._state = await cleanup.record(self._vault, self._state)

    # -- permissions and intervals -----------------------------------------------

    async def _take_config(self, entries: Sequence[EntryReport]) -> None:
        assert self._state is not None
        if self._reading.intervals:
            intervals = dict(self._reading.intervals)
            await migration_document(self._vault.store).change(
                lambda state: (
                    state
                    if state.applied or state.intervals == intervals
                    else replace(state, intervals=intervals)
                )
            )
        if not self._reading.permissions:
            return
        names: dict[str, list[str]] = {}
        # What was granted once and revoked since is not granted again.
        fates = {Fate.MIGRATED} if self._state.granted else _IN_VAULT
        for entry in entries:
            if entry.fate in fates:
                names.setdefault(entry.service, []).append(entry.name)
        everything = [name for found in names.values() for name in found]
        for plugin, services in self._reading.permissions.items():
            if not _is_name(plugin):
                continue
            chosen = {name for service in services for name in names.get(service, ())}
            for name in everything if "*" in services else sorted(chosen):
                if (await self._vault.grants()).find(plugin, name) is None:
                    await self._vault.grant(plugin, name, reveal=True)
        self._state = await cleanup.record(self._vault, replace(self._state, granted=True))


def _is_name(plugin: str) -> bool:
    try:
        check_plugin(plugin)
    except ApexCredsError:
        return False
    return credential_name(plugin) == plugin


# -- before there is a vault ----------------------------------------------------------------


async def preview(
    home: Path,
    paths: Sequence[str | os.PathLike[str]] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Report:
    """The report of a dry run into a vault that is still to be made in ``home``.

    Args:
        home: The vault's directory, in which an older program's files may be.
        paths: See ``migrate``.
        environ: Instead of the process's environment, for the old master key.
    """
    if paths is None:
        paths = [*([home] if is_legacy(home) else []), *automatic_paths(home)]
    keys = (await find_masters(environ)).keys
    return Report([await _previewed(str(path), keys) for path in paths], dry_run=True)


async def _previewed(name: str, keys: tuple[bytes, ...]) -> SourceReport:
    found: Format | None = None
    try:
        source = await anyio.to_thread.run_sync(partial(sources.find, name))
        found = source.format
        if found is Format.VAULT:
            note = ("Another vault is looked into once there is one to compare with.",)
            return SourceReport(path=source.path, format=found, notes=note)
        reading = await sources.read(source, keys)
    except ApexCredsError as error:
        return SourceReport(path=name, format=found, problem=error.message, hint=error.hint)
    fates = problems(reading.entries)
    for target in assign(reading.entries, {}):
        entry = target.entry
        lost = not target.name or target.twin is not None
        fate = Fate.CONFLICT if lost else Fate.MIGRATED
        origins, delivery = proposed(entry, fate, None)
        fates[entry.key] = EntryReport(
            service=entry.service,
            kind=entry.kind.value,
            name=target.name,
            fate=fate,
            origins=origins,
            delivery=delivery,
        )
    entries = tuple(fates[entry.key] for entry in reading.entries)
    return SourceReport(path=source.path, format=found, entries=entries, notes=reading.notes)
