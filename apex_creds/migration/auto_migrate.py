"""Migrates old files when a vault is unsealed.

Guarantee: asks the disk twice where there is nothing to do. Never raises for what
an old file is or for another process that migrates; never replaces anything in the vault.
What was tried once and left something over is not tried again until the source changes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from apex_creds.errors import ApexCredsError, AuditUnavailableError, StorageLockedError
from apex_creds.migration import cleanup, sources
from apex_creds.migration.copy_verify import Progress
from apex_creds.migration.fallback import Fallback
from apex_creds.migration.importer import Options, migrate
from apex_creds.migration.legacy_files import automatic_paths, exclusive
from apex_creds.migration.progress import (
    DOCUMENT,
    READER,
    MigrationState,
    Phase,
    Report,
    SourceReport,
    SourceState,
    migration_document,
)
from apex_creds.vault import Vault

SWITCH: Final = "APEX_CREDS_AUTO_MIGRATE"
"""``0``, ``off``, ``no`` or ``false`` in the environment switches it off."""

_log = logging.getLogger(__name__)

_OFF: Final = frozenset({"0", "off", "no", "false"})
_FINISHED: Final = (Phase.PARTIAL, Phase.LEFT)


async def on_unseal(
    vault: Vault,
    *,
    progress: Progress | None = None,
    environ: Mapping[str, str] | None = None,
) -> Report:
    """Migrates what old programs left beside the vault, and goes on with what was begun.

    Returns:
        What was done; no sources where there was nothing to do.

    Raises:
        AuditUnavailableError: The log can't be written.
    """
    if (os.environ if environ is None else environ).get(SWITCH, "").lower() in _OFF:
        return Report()
    found = [str(path) for path in automatic_paths(vault.home)]
    if not found and vault.store.storage.change_token(DOCUMENT) is None:
        return Report()
    try:
        return await _migrate(vault, found, progress, environ)
    except StorageLockedError:
        return Report()  # another process is migrating
    except AuditUnavailableError:
        raise
    except ApexCredsError as error:
        path = found[0] if found else str(vault.home)
        problem = SourceReport(path=path, format=None, problem=error.message, hint=error.hint)
        return Report([problem])


def log_problems(report: Report) -> None:
    """Logs what was not migrated; no more than paths, numbers and reasons."""
    for source in report.sources:
        if source.problem:
            _log.warning("Not migrated: %s: %s %s", source.path, source.problem, source.hint)
        elif source.missing:
            _log.warning(
                "%s: %d entries were not migrated; see: apex-creds migrate --dry-run",
                source.path,
                source.missing,
            )


async def on_unseal_logged(vault: Vault) -> Fallback | None:
    """``on_unseal``, with what went wrong in Python's log.

    Returns:
        The old files, if not everything in them is in the vault now.
    """
    log_problems(await on_unseal(vault))
    fallback = Fallback(vault)
    return fallback if await fallback.is_needed() else None


async def switch(vault: Vault, *, automatic: bool) -> None:
    """Switches the automatic migration of a vault on or off, for good."""
    document = migration_document(vault.store)
    await document.change(
        lambda state: (
            state if state.automatic is automatic else replace(state, automatic=automatic)
        )
    )


async def _migrate(
    vault: Vault,
    found: Sequence[str],
    progress: Progress | None,
    environ: Mapping[str, str] | None,
) -> Report:
    state = await migration_document(vault.store).read()
    if not state.automatic:
        return Report()
    interrupted = [s.path for s in state.sources if s.phase is Phase.COPYING]
    paths = [path for path in found if not _is_finished(path, state)]
    resuming = any(s.phase in (Phase.COPIED, Phase.ERASING) for s in state.sources)
    report = Report()
    if paths or interrupted or resuming:
        report = await migrate(
            vault,
            [*paths, *interrupted],
            options=Options(progress=progress),
            environ=environ,
            wait=0.0,
        )
    if any(s.phase is Phase.BACKED_UP and cleanup.is_due(s, vault) for s in state.sources):
        async with exclusive(vault.home):
            await cleanup.erase_backups(vault, due_only=True)
    return report


def _is_finished(path: str, state: MigrationState) -> bool:
    """Whether this very content was dealt with: what is left is for the operator."""
    known: SourceState | None = state.source(path)
    if known is None or known.phase not in _FINISHED or known.reader < READER:
        return False
    try:
        return sources.find(path).digest == known.digest
    except ApexCredsError:
        return False
