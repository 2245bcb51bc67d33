"""What a migration would do where there is no vault yet.

Guarantee: reads the sources and nothing else; makes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio.to_thread

from apex_creds.errors import ApexCredsError
from apex_creds.migration import sources
from apex_creds.migration.beside import automatic_paths, is_legacy
from apex_creds.migration.copying import problems, proposed
from apex_creds.migration.entries import Format
from apex_creds.migration.masters import find_masters
from apex_creds.migration.naming import assign
from apex_creds.migration.report import EntryReport, Fate, Report, SourceReport


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
    names = _default_paths(home) if paths is None else [str(path) for path in paths]
    keys = (await find_masters(environ)).keys
    return Report([await _one(name, keys) for name in names], dry_run=True)


def _default_paths(home: Path) -> list[str]:
    beside = [str(path) for path in automatic_paths(home)]
    return [str(home), *beside] if is_legacy(home) else beside


async def _one(name: str, keys: tuple[bytes, ...]) -> SourceReport:
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
