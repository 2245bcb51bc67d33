"""Look-ups in old files, for as long as not everything in them is in the vault.

Guarantee: the vault comes first; an old file is read only for a name that the vault does
not have, and what comes out of it is in the log first, as coming from there. What was
deleted from the vault on purpose does not come back. No secret is kept between calls,
and none is released while the vault is locked down.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio.to_thread
from msgspec.structs import replace

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.documents.records import encode_parts
from apex_creds.errors import (
    ApexCredsError,
    CredentialNotFoundError,
    StorageLockedError,
)
from apex_creds.migration import cleanup, sources
from apex_creds.migration.copy_verify import Copying, OnConflict, Target, assign
from apex_creds.migration.entries import Entry, Format
from apex_creds.migration.legacy_files import automatic_paths, exclusive
from apex_creds.migration.legacy_readers import find_masters
from apex_creds.migration.progress import (
    DOCUMENT,
    OPEN,
    MigrationState,
    Phase,
    SourceState,
    Written,
    migration_document,
)
from apex_creds.migration.sources import Source
from apex_creds.model import CredentialKind
from apex_creds.vault import Opened, Vault

REASON: Final = "legacy fallback"

_Stamp = tuple[tuple[str, int, int], ...]

Found = tuple[Source, Entry, str]
"""Where, what, and the name of the credential that it will be."""


class Fallback:
    """The old files beside a vault, and those of interrupted migrations.

    Args:
        vault: Unsealed.
        environ: Instead of the process's environment, for the old master key.
    """

    def __init__(self, vault: Vault, *, environ: Mapping[str, str] | None = None) -> None:
        self._vault = vault
        self._environ = environ
        self._absent: dict[str, _Stamp] = {}

    @asynccontextmanager
    async def open(
        self, name: str, *, action: str = "open", plugin: str = ""
    ) -> AsyncIterator[Opened]:
        """As ``Vault.open``, and out of an old file where the vault has no such name.

        Raises:
            CredentialNotFoundError: Neither has it.
            LockedDownError: The vault is locked down.
            AuditUnavailableError: The event could not be written first.
        """
        try:
            await self._vault.get(name)
        except CredentialNotFoundError:
            found = await self.find(name)
            if found is None:
                raise
        else:
            async with self._vault.open(name, action=action, for_program=True) as opened:
                yield opened
            return
        with await self.release(found, action=action, plugin=plugin) as opened:
            yield opened

    async def release(self, found: Found, *, action: str, plugin: str = "") -> Opened:
        """Opens what was found in an old file; the caller closes it.

        Raises:
            LockedDownError: The vault is locked down.
            AuditUnavailableError: The event could not be written first.
        """
        source, entry, name = found
        assert entry.secret is not None
        await self._vault.check_not_locked_down()
        self._vault.audit.append(
            AuditEvent(
                time=self._vault.clock.time(),
                kind=EventKind.EXPOSE,
                plugin=plugin,
                action=action,
                credential=name,
                decision="allow",
                reason=REASON,
                detail=source.path,
            )
        )
        return Opened(encode_parts(entry.secret.parts), entry.kind)

    async def is_needed(self) -> bool:
        """Whether there is an old file that is not migrated, or not all of it."""
        if self._vault.store.storage.change_token(DOCUMENT) is None:
            return bool(automatic_paths(self._vault.home))
        return bool(self._paths(await migration_document(self._vault.store).read()))

    async def find(self, name: str, *, kind: CredentialKind | None = None) -> Found | None:
        """The entry that is going to be the credential ``name``."""
        return next(
            (
                found
                for found in await self.entries()
                if found[2] == name and kind in (None, found[1].kind)
            ),
            None,
        )

    async def entries(self) -> Sequence[Found]:
        """Every entry that is in an old file, and neither is nor was in the vault."""
        state = await migration_document(self._vault.store).read()
        paths = self._paths(state)
        if not paths:
            return ()
        infos = {info.name: info for info in await self._vault.list(principal="")}
        found: list[Found] = []
        for path in paths:
            known = state.source(path)
            done_before = {item.key for item in known.written} if known else set()
            try:  # what does not open is reported by the migration; here it is not found
                source = await anyio.to_thread.run_sync(sources.find, path)
                if source.format is Format.VAULT:
                    continue
                masters = await find_masters(self._environ)
                entries = (await sources.read(source, masters.keys)).entries
            except ApexCredsError:
                continue
            for target in assign(entries, infos, known.written if known else ()):
                fresh = target.entry.key not in done_before and target.name not in infos
                if target.name and fresh and target.twin is None:
                    found.append((source, target.entry, target.name))
        return found

    async def adopt(self, names: Iterable[str]) -> bool:
        """Puts what the vault lacks of ``names`` into it, out of the old files.

        For those who need a record in the vault: a lease can't be of anything else. What an
        old file does not have is not searched again until that file changes. In a
        lockdown nothing is taken: the lease is refused anyway.

        Returns:
            Whether there was anything.

        Raises:
            AuditUnavailableError: The event could not be written first.
        """

        def stamped() -> _Stamp:
            """Changes with the old files beside the vault."""
            found = []
            for path in automatic_paths(self._vault.home):
                with contextlib.suppress(FileNotFoundError):
                    status = os.lstat(path)
                    found.append((str(path), status.st_mtime_ns, status.st_size))
            return tuple(found)

        stamp = await anyio.to_thread.run_sync(stamped)
        missing = [name for name in names if self._absent.get(name) != stamp]
        missing = [n for n in missing if (await self._vault.facts(n)).record is None]
        if not missing or (await self._vault.grants()).lockdown is not None:
            return False
        try:
            async with exclusive(self._vault.home):
                found = [found for found in await self.entries() if found[2] in missing]
                for source, entry, name in found:
                    (await self.release((source, entry, name), action="adopt")).close()
                    copying = Copying(
                        self._vault,
                        before=None,
                        unchanged=False,
                        on_conflict=OnConflict.REPORT,
                        dry_run=False,
                    )
                    _, written = await copying.copy([Target(entry, name)])
                    await self._note(source, written)
        except StorageLockedError:
            return False  # another process is migrating
        adopted = {name for _, _, name in found}
        self._absent |= dict.fromkeys(set(missing) - adopted, stamp)
        return bool(adopted)

    async def forget(self, found: Found) -> None:
        """Marks an entry of an old file as deleted, so that it is neither read nor migrated."""
        source, entry, name = found
        await self._note(source, [Written(entry.key, name, 0)])

    async def _note(self, source: Source, written: Sequence[Written]) -> None:
        now = self._vault.clock.time()

        def change(state: MigrationState) -> MigrationState:
            known = state.source(source.path) or SourceState(
                format=source.format,
                path=source.path,
                digest="",
                agreed=source.digest,
                phase=Phase.PARTIAL,
                began=now,
                changed=now,
            )
            return state.with_source(replace(known, written=(*known.written, *written)))

        await migration_document(self._vault.store).change(change)

    def _paths(self, state: MigrationState) -> list[str]:
        done = {s.path for s in cleanup.imported(state)}
        beside = [str(path) for path in automatic_paths(self._vault.home)]
        begun = [source.path for source in state.sources if source.phase in OPEN]
        return [path for path in dict.fromkeys((*beside, *begun)) if path not in done]
