"""The documents of a vault whose storage several processes share.

Guarantee: as ``store``, for any number of processes on any number of machines. A section is
in many documents, its shards, and only those that change are read and written, all or
nothing. Each such commit is tied to the key store that it was computed from: it fails where
another key store is there meanwhile. So nothing is ever sealed under a key version that was
not primary any more when it was written, and no fence is needed before one is destroyed.

What is awaited looks at the storage first; where that can't be reached, it goes on with
what was seen last for as long as the storage's ``staleness``, but for scans.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from typing import Final

import msgspec

from apex_creds.documents.document import Packed, parse
from apex_creds.documents.keystore import Keystore, KeystoreBody, Masters, root_key
from apex_creds.documents.records import Record, Section, open_section
from apex_creds.documents.rollback import missing, refuse_rollback
from apex_creds.documents.sections import Merged, ShardNames, divided, merge, seal_part
from apex_creds.documents.store import (
    ATTEMPTS,
    ChangeSection,
    DocumentStore,
    off_loop,
    too_busy,
)
from apex_creds.errors import (
    ConflictError,
    SecretWipedError,
    StorageStaleError,
    UnknownKeyError,
)
from apex_creds.keys.hierarchy import KEYSTORE, DocumentKeys
from apex_creds.model import SECTIONS, Clock
from apex_creds.storage.base import (
    SharedStorage,
    Shredded,
    Stored,
    Token,
    Write,
)
from apex_creds.storage.portal import StoragePortal

__all__ = ["SharedStore"]

_SECTIONS: Final = frozenset(SECTIONS.values())
NOTE_AFTER: Final = 3600.0
"""Seconds between commits of the key store that only say what was reached."""


class SharedStore(DocumentStore):
    """The documents of one vault, its sections in shards.

    Args:
        storage: Where they lie; closed by ``close``.
        clock: Stamps what is written.
        masters: See ``DocumentStore``.
    """

    shared: SharedStorage
    ties_commits = True

    def __init__(self, storage: SharedStorage, *, clock: Clock, masters: Masters) -> None:
        super().__init__(storage, clock=clock, masters=masters)
        self.shared = storage
        self._names: ShardNames | None = None
        self._whole: dict[str, tuple[Merged, int]] = {}
        self._least: Mapping[str, int] = {}
        self._noted = -math.inf

    # -- reading -----------------------------------------------------------------

    def expect(self, sums: Mapping[str, int]) -> None:
        """See ``DocumentStore``."""
        self._least = {name: sums[name] for name in _SECTIONS & sums.keys()}

    async def look(self) -> None:
        """See ``DocumentStore``.

        Raises:
            StorageStaleError: The storage can't be reached for too long.
        """
        await self.shared.look()

    def look_blocking(self) -> None:
        """See ``DocumentStore``; raises what ``look`` raises."""
        if isinstance(self.shared, StoragePortal):
            self.shared.look_blocking()

    async def settle(self) -> None:
        """See ``DocumentStore``.

        Raises:
            StorageStaleError: The storage can't be reached.
        """
        await self.shared.look()
        if self.shared.stale_for():
            raise StorageStaleError(
                "The storage can't be reached, and this is not to be decided without it.",
                hint="It will be tried again.",
            )

    async def unseal(self) -> Keystore:
        """See ``DocumentStore``."""
        keystore = await super().unseal()
        self._names = ShardNames(root_key(keystore), self.shared.shards)
        return keystore

    async def keystore(self) -> Keystore:
        """See ``DocumentStore``."""
        await self.shared.look()
        return await super().keystore()

    def section_now(self, name: str) -> Merged | None:
        """See ``DocumentStore``."""
        whole, seen = self._whole.get(name, (None, -1))
        changes = self.shared.changes()
        if whole is None or seen == changes:
            return whole
        if not self._is_whole(whole):
            return None
        self._whole[name] = (whole, changes)
        return whole

    def find_now(self, credential: str) -> Mapping[str, Record] | None:
        """The records of the shard that has a credential; of an empty one if none has.

        Returns:
            None where what is in memory is not current.
        """
        token = self.shared.change_token
        for name, names in self._shards.by_section.items():
            whole = self._whole.get(name, (None, -1))[0]
            if whole is None:
                return None
            shard = self._shards.of(name, credential) if whole.parts else names[0]
            part = whole.parts.get(shard, _NONE)
            if token(shard) != part.token:
                return None
            if credential in part.records:
                return part.records
        return {}

    async def section(self, name: str) -> Section:
        """See ``DocumentStore``."""
        await self.shared.look()
        return await super().section(name)

    async def sections(self, names: Iterable[str]) -> list[Section]:
        """See ``DocumentStore``."""
        await self.shared.look()
        return [await super(SharedStore, self).section(name) for name in names]

    async def reread(self, name: str) -> Section:
        """See ``DocumentStore``."""
        self._whole.pop(name, None)
        return await self.section(name)

    def in_memory(self) -> list[Section]:
        """See ``DocumentStore``."""
        return [whole for whole, _ in self._whole.values()]

    async def kek_versions(self, name: str) -> dict[str, int]:
        """See ``DocumentStore``; what does not exist needs no fence."""
        whole = await self._merged(name)
        headers = {shard: part.header for shard, part in whole.parts.items()}
        return {shard: header.kek_version for shard, header in headers.items() if header}

    def shard_of(self, name: str, credential: str) -> str:
        """The document of a section that has, or would have, a credential."""
        return self._shards.of(name, credential)

    async def close(self) -> None:
        """See ``DocumentStore``."""
        self._whole = {}
        names, self._names = self._names, None
        if names is not None:
            names.close()
        await super().close()

    # -- writing -----------------------------------------------------------------

    async def commit_section(
        self,
        name: str,
        change: ChangeSection,
        *,
        shred: bool = False,
        only: Collection[str] | None = None,
    ) -> tuple[Section, Shredded]:
        """See ``DocumentStore``.

        Where ``only`` names the credentials that may change, ``change`` is given those
        that share documents with them, and returns those.
        """
        async with self._writing.held():
            for _ in range(ATTEMPTS):
                whole = await self._merged(name)
                keystore = await super().keystore()
                before = self._concerned(whole, only)
                size = max(len(before.records), len(only or ()))
                records = await self._changed(change, before, keystore, size=size)
                if records is None:
                    continue
                try:
                    written = await self._write_parts(whole, before, records, keystore)
                except (ConflictError, SecretWipedError):
                    continue
                break
            else:
                raise too_busy(name)
        await self._written(name, before, records, only)
        return written, "unverifiable" if shred else "no"

    async def recommit(self, documents: Collection[str]) -> None:
        """Commits shards again as they are, under the keys of now.

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """
        for name in SECTIONS.values():
            chosen = [d for d in documents if self._shards.section_of(d) == name]
            if chosen:
                await self._recommit(name, chosen)

    async def note(self, name: str) -> None:
        """See ``DocumentStore``; all shards of a section at once."""
        names = self._shards.all(name) if name in _SECTIONS else (name,)
        if names[-1] in self.unsealed().body.sections:
            return
        await self.note_all(names)

    async def note_reached(self) -> None:
        """See ``DocumentStore``; at the first call, and an hour after the last one that did."""

        def note(body: KeystoreBody) -> KeystoreBody:
            raised = self.seen.raised(body.sections)
            behind = [name for name, at in raised.items() if at > body.sections[name]]
            if not any(self._shards.section_of(name) for name in behind):
                return body
            return msgspec.structs.replace(body, sections=raised)

        now = self.clock.monotonic()
        if now - self._noted >= NOTE_AFTER:
            await self.commit_keystore(note)
            self._noted = now

    # -- inside ------------------------------------------------------------------

    @property
    def _shards(self) -> ShardNames:
        if self._names is None:
            self._names = ShardNames(root_key(self.unsealed()), self.shared.shards)
        return self._names

    async def _merged(self, name: str) -> Merged:
        section = await self.section(name)
        assert isinstance(section, Merged)
        return section

    def _is_whole(self, whole: Merged) -> bool:
        token = self.shared.change_token
        if not whole.parts:
            return token(self._shards.all(whole.name)[0]) is None
        return all(token(name) == part.token for name, part in whole.parts.items())

    async def _load_section(self, name: str) -> Section:
        while True:
            changes = self.shared.changes()
            try:
                return await self._load_parts(name)
            except SecretWipedError:  # while it was used, in another thread
                continue
            except UnknownKeyError:  # its KEK was destroyed after it had moved away from it
                await self.settle()
                if self.shared.changes() == changes:
                    raise

    async def _load_parts(self, name: str) -> Merged:
        keystore = await super().keystore()
        before = self._whole.get(name, (None, 0))[0]
        parts = dict(before.parts) if before is not None else {}
        names, token = self._shards.all(name), self.shared.change_token
        moved = [n for n in names if n not in parts or token(n) != parts[n].token]
        # Taken before the read: what another task writes meanwhile is no rollback.
        floors = {n: self.floor(n, keystore) for n in moved}
        seen = {n: self.seen.newest(n) for n in moved}
        wanted = [n for n in moved if token(n) is not None or floors[n]]
        stored = await self.shared.read_many(wanted) if wanted else {}
        await self.settle()  # so that no key store in memory counts as current that is older
        opened = await self._open_parts(stored, keystore)
        for each in moved:
            part = opened.get(each)
            if part is None:
                if floors[each] or opened or parts:
                    raise missing(each)
                continue
            found = (part.generation, part.mac)
            refuse_rollback(each, floor=floors[each], seen=seen[each], found=found)
            self.seen.note(each, found)
            parts[each] = part
        reached = sum(part.generation for part in parts.values())
        refuse_rollback(name, floor=self._least.get(name, 0), found=(reached, ""))
        return await self._keep(name, parts)

    async def _open_parts(
        self, stored: Mapping[str, Stored], keystore: Keystore
    ) -> dict[str, Section]:
        vault_id = keystore.header.vault_id
        packed: list[tuple[Packed, Stored, DocumentKeys]] = []
        for name, each in stored.items():
            made = parse(each.data, section=name, vault_id=vault_id)
            packed.append((made, each, await self.keys_for(name, made.header.kek_version)))
        size = sum(len(each.data) for each in stored.values())
        return await off_loop(size >> 9, partial(_open_all, packed))

    async def _keep(self, name: str, parts: Mapping[str, Section]) -> Merged:
        """The whole out of pieces; of each, the newest that this process has."""
        self.unsealed()
        before = self._whole.get(name, (None, 0))[0]
        if before is not None:
            newer = {
                shard: part
                for shard, part in before.parts.items()
                if shard not in parts or part.generation > parts[shard].generation
            }
            parts = {**parts, **newer}
        records = sum(len(part.records) for part in parts.values())
        whole = await off_loop(records >> 4, lambda: merge(name, parts, before=before))
        self._whole[name] = (whole, -1)
        return whole

    def _concerned(self, whole: Merged, only: Collection[str] | None) -> Merged:
        if only is None:
            return whole
        return whole.only({self._shards.of(whole.name, each) for each in only})

    async def _changed(
        self, change: ChangeSection, before: Section, keystore: Keystore, *, size: int
    ) -> Mapping[str, Record] | None:
        changes = self.shared.changes()
        try:
            return await off_loop(size, lambda: change(before, keystore))
        except (UnknownKeyError, SecretWipedError):
            await self.settle()
            if self.shared.changes() == changes:
                raise
            return None

    async def _write_parts(
        self,
        whole: Merged,
        before: Merged,
        records: Mapping[str, Record],
        keystore: Keystore,
    ) -> Merged:
        changed = await off_loop(len(records), lambda: divided(before, records, self._shards))
        if not whole.parts and changed:  # all are made together
            changed = {shard: changed.get(shard, {}) for shard in self._shards.all(whole.name)}
        return await self._write(whole, changed, keystore) if changed else whole

    async def _write(
        self,
        whole: Merged,
        changed: Mapping[str, Mapping[str, Record]],
        keystore: Keystore,
    ) -> Merged:
        size, now = sum(map(len, changed.values())), self.clock.time()
        made = await off_loop(
            max(size, 8 * len(changed)),
            lambda: [
                seal_part(whole.parts.get(shard) or _absent(shard), records, keystore, now=now)
                for shard, records in changed.items()
            ],
        )
        writes = [
            Write(section.name, data, _token(whole, section.name)) for data, section in made
        ]
        # Still the one that all this was computed from.
        tie = Write(KEYSTORE, None, keystore.token)
        results = await self.shared.write_many([*writes, tie])
        parts = dict(whole.parts)
        for (_, section), result in zip(made, results, strict=False):
            parts[section.name] = dataclasses.replace(section, token=result.token)
            self.seen.note(section.name, (section.generation, section.mac))
        return await self._keep(whole.name, parts)

    async def _recommit(self, name: str, chosen: Collection[str]) -> None:
        async with self._writing.held():
            for _ in range(ATTEMPTS):
                whole = await self._merged(name)
                keystore = await super().keystore()
                there = {s: whole.parts[s].records for s in chosen if s in whole.parts}
                if not there:
                    return
                try:
                    await self._write(whole, there, keystore)
                except (ConflictError, SecretWipedError):
                    continue
                return
        raise too_busy(name)


def _open_all(packed: list[tuple[Packed, Stored, DocumentKeys]]) -> dict[str, Section]:
    made = [open_section(each, token=stored.token, keys=k) for each, stored, k in packed]
    return {section.name: section for section in made}


def _absent(shard: str) -> Section:
    return Section(name=shard, token=None, header=None, mac="", records={})


_NONE: Final = _absent("")


def _token(whole: Merged, shard: str) -> Token | None:
    part = whole.parts.get(shard)
    return None if part is None else part.token
