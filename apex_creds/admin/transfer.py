"""Copies a vault into another storage: files, SQLite, PostgreSQL, any to any.

Guarantee: the key store is written last, so that there is no vault in the target before
every record there was read back, is the source's byte for byte, and was opened with the
keys. What an interrupted copy had written is compared, and kept where it is right. The
source is only read (one that an older program wrote last gets its document key first). What
its processes write while the last round is copied is copied by another one; stop them to be
sure that the copy is the whole of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from apex_creds.audit.events import EventKind
from apex_creds.concurrency import off_loop
from apex_creds.documents.document import parse, unpack
from apex_creds.documents.grant_set import is_shard
from apex_creds.documents.keystore import (
    Keystore,
    KeystoreBody,
    open_keystore,
    root_key,
    seal_keystore,
    shard_names,
)
from apex_creds.documents.records import Record, Shard, open_record, open_shard
from apex_creds.documents.sections import (
    Section,
    ShardNames,
    division,
    seal_shard,
    section_of,
)
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ConflictError,
    CorruptDocumentError,
    IntegrityError,
    VaultExistsError,
)
from apex_creds.keys.hierarchy import KEYSTORE
from apex_creds.model import SECTION_NAMES
from apex_creds.storage.base import (
    CONFIG,
    STATE_DOCUMENTS,
    SharedStorage,
    Storage,
    Stored,
    Token,
    Write,
    shared,
)
from apex_creds.vault import create
from apex_creds.vault.config import read_config, write_config
from apex_creds.vault.vault import Vault

__all__ = ["Copied", "transfer"]

_ROUNDS: Final = 20
_TOGETHER: Final = 128
_LINES: Final = 1000
_ONE_HOMES: Final = "audit_state"
"""Belongs to the log of one home, which starts anew with the copy."""
_EMPTY: Final[Mapping[str, Record]] = {}


@dataclass(slots=True)
class Copied:
    """What a copy did.

    Attributes:
        credentials: Checked in the copy.
        documents: That it has.
        written: Of these, now; the rest was right already.
        lines: Of audit logs, that it has.
    """

    credentials: int = 0
    documents: int = 0
    written: int = 0
    lines: int = 0


async def transfer(
    vault: Vault, target: Storage, *, progress: Callable[[str], None] | None = None
) -> Copied:
    """Copies ``vault`` into ``target``, which stays open.

    Args:
        vault: The source.
        target: Has no vault yet; what an interrupted copy left there is used. One that was
            interrupted after its last write is only compared.
        progress: Called with each step.

    Raises:
        VaultExistsError: There is a vault in the target that is not this copy.
        ConflictError: The source keeps changing, or somebody else writes to the target.
        IntegrityError: The target does not give back what was written.
    """
    say = progress or (lambda _: None)
    await target.prepare()
    await vault.store.move_forward()
    there = await target.read(KEYSTORE)
    copying = _Copying(vault, target, await vault.store.keystore(), finished=there)
    try:
        await copying.until_it_stands(say)
        say("the key store")
        done = await copying.finish()
    finally:
        copying.close()
    detail = f"{done.credentials} credentials in {done.documents} documents"
    vault.record(EventKind.BACKUP, action="copy", detail=detail)
    return done


class _Copying:
    """One copy, round by round."""

    def __init__(
        self, vault: Vault, target: Storage, keystore: Keystore, *, finished: Stored | None
    ) -> None:
        self._vault = vault
        self._store: DocumentStore = vault.store
        self._target = target
        self._several: SharedStorage | None = shared(target)
        self._keystore = keystore
        self._finished = finished
        self._written: set[str] = set()
        self._there: dict[str, int] = {}
        self._done = Copied()
        create.map_names(target, keystore)
        self._names = ShardNames(root_key(keystore))
        self._counts: dict[str, int] = {}

    def close(self) -> None:
        self._names.close()

    async def until_it_stands(self, say: Callable[[str], None]) -> None:
        """Copies until nothing moved while it was copied."""
        for _ in range(_ROUNDS):
            before = await self._state()
            self._keystore = await self._store.keystore()
            self._there, self._done = {}, Copied()
            for name in SECTION_NAMES:
                say(name)
                await self._copy_section(await self._store.sections.read(name))
            await self._store.grants.read()
            for name in (*STATE_DOCUMENTS, *self._store.grants.existing()):
                if name != _ONE_HOMES:
                    await self._copy_state(name)
            if before == await self._state():
                return
        raise ConflictError("The vault keeps changing.", hint="Stop what uses it, and retry.")

    async def finish(self) -> Copied:
        """What is no part of the rounds; then the key store, which makes it a vault."""
        header = self._keystore.header
        shards = {} if self._several else {n: at for n, at in self._counts.items() if at}
        body = msgspec.structs.replace(
            self._keystore.body,
            # Whole documents by their names; not those of a section that is divided.
            sections={
                name: at
                for name, at in self._there.items()
                if not is_shard(name)
                and (self._several is not None or section_of(name) in (None, name))
            },
            shards=shards,
        )
        if self._finished is not None:
            if not self._is_copy(self._finished, body):
                raise _exists()
            self._done.documents = len(self._there) + 1
            return self._done
        # What an earlier copy left of sections that were smaller then, or larger.
        ours = [n for n in await self._target.names() if section_of(n) or is_shard(n)]
        left = [name for name in ours if name not in self._there]
        for name, old in (await self._target.read_many(left)).items():
            await self._target.delete(name, expected=old.token)
        if await self._target.read(CONFIG) is None:
            config = await read_config(self._store.storage)
            await write_config(self._target, msgspec.structs.replace(config, storage=None))
        await self._copy_streams()
        header = msgspec.structs.replace(header, generation=header.generation + 1)
        data = await off_loop(
            len(body.deks),
            lambda: seal_keystore(header, body, hierarchy=self._keystore.hierarchy),
        )
        await self._target.write(KEYSTORE, data, expected=None)
        stored = await self._target.read(KEYSTORE)
        if stored is None or stored.data != bytes(data):
            raise _not_given_back(KEYSTORE)
        self._done.documents = len(self._there) + 1
        self._done.written = len(self._written) + 1
        return self._done

    def _is_copy(self, stored: Stored, body: KeystoreBody) -> bool:
        """Whether a key store in the target is the one that a copy ends with."""
        ours = self._keystore
        try:
            packed = parse(stored.data, section=KEYSTORE, vault_id=ours.header.vault_id)
            found = open_keystore(packed, token=stored.token, hierarchy=ours.hierarchy)
        except IntegrityError:
            return False
        return (found.body, found.root_header) == (body, ours.root_header)

    async def _state(self) -> list[object]:
        """What moves when anything does that is copied."""
        keystore = await self._store.keystore()
        sections = [await self._store.sections.read(name) for name in SECTION_NAMES]
        states = await self._store.storage.read_many(STATE_DOCUMENTS)
        return [
            (keystore.header.generation, keystore.mac),
            [shard.mac for section in sections for shard in section.shards.values()],
            {name: stored.token for name, stored in states.items()},
        ]

    # -- sections --------------------------------------------------------------------

    async def _copy_section(self, section: Section) -> None:
        if not section.shards:
            return
        several, name = self._several, section.name
        count = several.shards if several else division(self._target, len(section.records))
        self._counts[name] = count
        parts: dict[str, dict[str, Record]] = {each: {} for each in shard_names(name, count)}
        for credential, record in section.records.items():
            parts[self._names.of(name, credential, count)][credential] = record
        wanted = list(parts.items())
        for at in range(0, len(wanted), _TOGETHER):
            some: dict[str, Mapping[str, Record]] = dict(wanted[at : at + _TOGETHER])
            await self._copy_parts(some)
        self._done.credentials += len(section.records)

    async def _copy_parts(self, wanted: Mapping[str, Mapping[str, Record]]) -> None:
        """Writes what is not there yet, reads it back, and opens every record of it."""
        found = await self._parts(wanted)
        now, keystore = self._vault.clock.time(), self._keystore
        stale = {
            name: records
            for name, records in wanted.items()
            if (part := found.get(name)) is None
            or part.header is None
            or dict(part.records) != dict(records)
        }

        def sealed() -> list[Write]:
            writes = []
            for name, records in stale.items():
                before = found.get(name) or _nothing(name, None)
                data, _ = seal_shard(before, records, keystore, now=now)
                writes.append(Write(name, data, before.token))
            return writes

        size = sum(len(records) for records in stale.values())
        await self._write(await off_loop(size, sealed))
        back = await self._parts(wanted)
        vault_id = bytes.fromhex(keystore.header.vault_id)

        def compare() -> None:
            for name, records in wanted.items():
                part = back.get(name)
                if part is None or part.header is None or dict(part.records) != dict(records):
                    raise _not_given_back(name)
                for record in part.records.values():
                    open_record(record, vault_id=vault_id, find_key=keystore.dek).close()

        await off_loop(sum(len(records) for records in wanted.values()), compare)
        self._there.update({name: back[name].generation for name in wanted})

    async def _parts(self, names: Iterable[str]) -> dict[str, Shard]:
        """The documents in the target; empty where this vault's keys don't open one."""
        keystore, stored = self._keystore, await self._target.read_many(names)

        def opened() -> dict[str, Shard]:
            parts: dict[str, Shard] = {}
            for name, each in stored.items():
                try:
                    packed = parse(each.data, section=name, vault_id=keystore.header.vault_id)
                    keys = keystore.document_keys(packed.header)
                    parts[name] = open_shard(packed, each.token, keys, shared={})
                except IntegrityError:  # of a copy under keys that the source has left since
                    parts[name] = _nothing(name, each.token)
            return parts

        return await off_loop(sum(len(each.data) for each in stored.values()) >> 9, opened)

    # -- the rest --------------------------------------------------------------------

    async def _copy_state(self, name: str) -> None:
        """A state document is the same bytes everywhere; its keys must open them."""
        stored = (await self._store.storage.read_many([name])).get(name)
        there = (await self._target.read_many([name])).get(name)
        if stored is None:
            if there is not None:
                self._refuse_finished()
                await self._target.delete(name, expected=there.token)
            return
        packed = parse(stored.data, section=name, vault_id=self._keystore.header.vault_id)
        unpack(packed, await self._store.keys_for(packed.header))
        if there is None or there.data != stored.data:
            await self._write([Write(name, stored.data, there.token if there else None)])
        again = (await self._target.read_many([name])).get(name)
        if again is None or again.data != stored.data:
            raise _not_given_back(name)
        self._there[name] = packed.header.generation

    async def _copy_streams(self) -> None:
        """The logs of the homes, which are in the database beside them."""
        source, target = self._store.shared, self._several
        if source is None or target is None:
            return
        there = await target.streams()
        for name, count in (await source.streams()).items():
            at = there.get(name, 0)
            while at < count:
                lines = await source.read_lines(name, first=at, limit=_LINES)
                await target.append_lines(name, lines, first=at)
                if await target.read_lines(name, first=at, limit=len(lines)) != lines:
                    raise _not_given_back(name)
                at += len(lines)
            self._done.lines += count

    async def _write(self, writes: list[Write]) -> None:
        if not writes:
            return
        self._refuse_finished()
        self._written.update(write.name for write in writes)
        for some in [writes] if self._several else [[write] for write in writes]:
            await self._target.write_many(some)

    def _refuse_finished(self) -> None:
        """Nothing is written into a vault."""
        if self._finished is not None:
            raise _exists()


def _nothing(name: str, token: Token | None) -> Shard:
    return Shard(name=name, token=token, header=None, mac="", records=_EMPTY)


def _exists() -> VaultExistsError:
    return VaultExistsError(
        "There is a vault in that place already, and it is no copy of this one as it is now.",
        hint="Copy to another directory or database (or ?space=new in this one).",
    )


def _not_given_back(name: str) -> CorruptDocumentError:
    return CorruptDocumentError(
        f"The target does not give back what was written for {name!r}.",
        hint="Nothing was changed in the source. Look what else writes there, and retry.",
    )
