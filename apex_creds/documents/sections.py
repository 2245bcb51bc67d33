"""Sections: sets of documents, one while a section is small, many when it is large.

Guarantee: a credential's document depends on the vault and its name alone, and discloses
nothing of the name without a key; shards are made together: a section has all of them or
none. Reads and commits are those of ``store``; only shards that change are written, all or
nothing. With one document nothing is merged, copied or hashed: the section IS its document.

Where processes share a storage a section is in shards from its first write. In files it is
divided by the commit that makes it large, and stays so: the shards, the key store that says
that they are the section, and the removal of the one document are one commit. Specified in
docs/FORMAT.md, "Shards".
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from collections import Counter
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    ValuesView,
)
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Final, Protocol, TypeVar

import msgspec

from apex_creds.concurrency import (
    BoundedCache,
    Lock,
    SingleFlight,
    off_loop,
    until_committed,
)
from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import OWNED_VERSION, KeyName, Packed, mac_of
from apex_creds.documents.keystore import Keystore, KeystoreBody, root_key, shard_names
from apex_creds.documents.records import (
    Record,
    Shard,
    any_owned,
    count_uses,
    heads,
    keys_used,
    narrows,
    open_shard,
    seal_shard_body,
)
from apex_creds.documents.rollback import RollbackGuard, missing, refuse_rollback
from apex_creds.errors import (
    ApexCredsError,
    ConflictError,
    CorruptDocumentError,
    SecretWipedError,
)
from apex_creds.keys.hierarchy import DocumentKeys
from apex_creds.model import SECTION_NAMES, Clock
from apex_creds.storage.base import (
    Data,
    Divides,
    SharedStorage,
    Shredded,
    Storage,
    Token,
    Write,
    WriteResult,
)

T = TypeVar("T")

NOTE_AFTER: Final = 3600.0
"""Seconds between commits of the key store that only note what generations were reached."""

LARGE: Final = 2_048
"""A section of more records than this is divided, where the storage does that."""

_DOMAIN: Final = b"\0shard\0"
_SHARD: Final = re.compile(r"(.+)_[0-9a-f]{2,}")
_MANY: Final = 100_000
_NO_RECORDS: Final[Mapping[str, Record]] = {}

Changed = Mapping[str, Mapping[str, Record]]
"""The new records of each shard that changes."""
Written = tuple["Section", Shredded]
"""A section as it was written, and what became of the bytes that it replaced."""


class Together(Mapping[str, Record]):
    """The records of several shards, none of them in two; nothing is copied.

    Args:
        parts: Those of each shard.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Iterable[Mapping[str, Record]]) -> None:
        self.parts = tuple(parts)

    def __getitem__(self, credential: str) -> Record:
        for part in self.parts:
            if credential in part:
                return part[credential]
        raise KeyError(credential)

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def items(self) -> ItemsView[str, Record]:
        """Part by part: the usual view would look every name up."""
        return _Items(self)

    def values(self) -> ValuesView[Record]:
        """As ``items``."""
        return _Values(self)


class _Items(ItemsView[str, Record]):
    _mapping: Together

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        return chain.from_iterable(part.items() for part in self._mapping.parts)


class _Values(ValuesView[Record]):
    _mapping: Together

    def __iter__(self) -> Iterator[Record]:
        return chain.from_iterable(part.values() for part in self._mapping.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section as of some moment.

    Attributes:
        name: The section's.
        shards: Its documents by name; none while it does not exist.
    """

    name: str
    shards: Mapping[str, Shard]

    @property
    def records(self) -> Mapping[str, Record]:
        """Of all its shards, by credential."""
        if len(self.shards) == 1:
            [only] = self.shards.values()
            return only.records
        return Together(shard.records for shard in self.shards.values())

    @property
    def uses(self) -> Mapping[tuple[str, int], int]:
        """How many messages were sealed under each DEK version in use."""
        counts: Counter[tuple[str, int]] = Counter()
        for shard in self.shards.values():
            counts.update(shard.uses)
        return counts

    @property
    def count(self) -> int:
        """In how many documents it is; 0: in its own."""
        return 0 if self.name in self.shards else len(self.shards)

    @property
    def generation(self) -> int:
        """Sum over its shards; 0 while it does not exist."""
        return sum(shard.generation for shard in self.shards.values())

    @property
    def keys_used(self) -> frozenset[tuple[str, int]]:
        """Id and version of every DEK that its records name."""
        return frozenset(key for shard in self.shards.values() for key in shard.keys_used)

    def only(self, documents: Collection[str]) -> Section:
        """What is in some of the shards."""
        chosen = {name: shard for name, shard in self.shards.items() if name in documents}
        return Section(name=self.name, shards=chosen)


Changes = Mapping[str, Record | None]
"""Records that are to be others than they are; None: it is to go."""
ChangeSection = Callable[[Section, Keystore], Changes]


class Documents(Protocol):
    """What a set of sections, and the grants, ask of the document store."""

    storage: Storage
    shared: SharedStorage | None
    clock: Clock
    rollback: RollbackGuard
    writing: Lock
    anchor: Callable[[], Awaitable[None]]

    def unsealed(self) -> Keystore:
        """The key store in memory, current or not."""

    async def keystore(self, *, refresh: bool = True) -> Keystore:
        """The key store as stored now."""

    async def move_forward(self) -> None:
        """Has an older program's key store get a key for documents."""

    async def refresh(self) -> None:
        """Compares what is in memory with what is stored, where that costs a trip."""

    def change_tokens(self, names: Iterable[str]) -> list[Token | None]:
        """What the storage says of each document."""

    def keystore_now(self) -> Keystore | None:
        """The key store, if the one in memory is current."""

    async def stored_keystore(self) -> Keystore:
        """The key store out of the storage, not out of memory."""

    async def load(
        self, names: Collection[str], open_one: Callable[[Packed, Token, DocumentKeys], T]
    ) -> dict[str, T]:
        """Those of the documents that exist, opened and checked."""

    async def commit(
        self,
        made: Iterable[tuple[str, Data, Token | None]],
        keystore: Keystore,
        *,
        shred: bool = False,
    ) -> list[WriteResult]:
        """Writes documents, tied to the key store."""

    async def computed(
        self,
        given: Mapping[str, Token | None],
        keystore: Keystore,
        work: Callable[[], T],
        *,
        size: int = 0,
    ) -> T | None:
        """What ``work`` returns; None where what it was given has lost its keys."""

    async def commit_with_keystore(
        self, writes: Sequence[Write], keystore: Keystore, body: KeystoreBody
    ) -> tuple[Keystore, list[WriteResult]]:
        """Writes and removes documents, tied to the key store or together with its new body."""

    async def commit_keystore(self, change: Callable[[KeystoreBody], KeystoreBody]) -> Keystore:
        """Applies a change to the key store."""

    async def note(self, names: Iterable[str]) -> None:
        """Has the key store note that documents exist."""


class ShardNames:
    """Which document has a credential: a keyed hash, or the section's own name.

    Args:
        root: The vault's root key; what is derived from it is wiped by ``close``.
    """

    def __init__(self, root: SecretBytes) -> None:
        self._key = kdf.derive(root, kdf.Purpose.NAME_INDEX)
        self._known: BoundedCache[str, int] = BoundedCache(_MANY)

    def of(self, section: str, credential: str, count: int) -> str:
        """The document that has, or would have, a credential of a section in ``count``."""
        if not count:
            return section
        number = self._known.get(credential)
        if number is None:
            number = self._known.remember(credential, self._number(self._key, credential))
        return shard_names(section, count)[number % count]

    def _number(self, key: SecretBytes, credential: str) -> int:
        # By itself for the simulations, which put one in its place that no random key is in.
        tag = kdf.hmac_sha256(key, _DOMAIN + credential.encode())
        return int.from_bytes(tag[:8], "big")

    def close(self) -> None:
        """Wipes the key."""
        self._key.close()
        self._known.clear()


def section_of(document: str) -> str | None:
    """Whose document it is, or a shard of what; None for those that are no section's."""
    if document in SECTION_NAMES:
        return document
    found = _SHARD.fullmatch(document)
    return found[1] if found is not None and found[1] in SECTION_NAMES else None


def division(storage: Storage, records: int) -> int:
    """In how many documents a storage of one home is to have so many records; 0: in one."""
    return storage.division if records > LARGE and isinstance(storage, Divides) else 0


def documents_of(keystore: Keystore) -> list[str]:
    """All documents of all sections in files, whether they exist or not."""
    counts = keystore.body.shards
    return [each for name in SECTION_NAMES for each in shard_names(name, counts.get(name, 0))]


class SectionSet:
    """All sections of a vault, over its document store.

    Args:
        store: Loads and commits their documents.
    """

    def __init__(self, store: Documents) -> None:
        self._store = store
        self._names: ShardNames | None = None
        self._flights: SingleFlight[str, Section] = SingleFlight()
        self._kept: dict[str, Section] = {}
        self._stamps: dict[str, tuple[Section, int]] = {}
        self._where: dict[str, str] = {}
        self._floors: Mapping[str, int] = {}
        self._noted = -math.inf
        self._memory = threading.Lock()

    # -- reading -----------------------------------------------------------------

    def now(self, name: str) -> Section | None:
        """A section if what is in memory is current, without waiting; else None."""
        section, shared = self._kept.get(name), self._store.shared
        if section is None:
            return None
        if shared is None:
            return section if self._is_current(section) else None
        stamp = (section, shared.change_count())
        known, seen = self._stamps.get(name, (None, -1))
        if known is section and seen == stamp[1]:
            return section
        if not self._is_current(section):
            return None
        self._stamps[name] = stamp
        return section

    def find_now(self, credential: str) -> Mapping[str, Record] | None:
        """The records beside a credential, none if there is none of that name.

        Returns:
            None where what is in memory is not current.
        """
        known = self._where.get(credential)
        if known is not None:
            records = self._beside(known, credential)
            if records is not None and credential in records:
                return records
        for name in SECTION_NAMES:
            records = self._beside(name, credential)
            if records is None:
                return None
            if credential in records:
                self._where[credential] = name
                return records
        return _NO_RECORDS

    def document_of(self, credential: str) -> str | None:
        """The document in which ``find_now`` found a credential last."""
        section = self._where.get(credential)
        return None if section is None else self.shard_of(section, credential)

    async def read(self, name: str) -> Section:
        """A section as stored now; empty where it was never written.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
        """
        await self._store.refresh()
        return await self._read(name)

    async def read_all(self, names: Iterable[str] = SECTION_NAMES) -> list[Section]:
        """Several sections, each as of some moment after the call."""
        await self._store.refresh()
        return [await self._read(name) for name in names]

    async def reread(self, name: str) -> Section:
        """A section out of the storage, not out of memory."""
        self.forget(name)
        return await self.read(name)

    def in_memory(self) -> list[Section]:
        """The sections in memory, current or not."""
        return list(self._kept.values())

    def forget(self, name: str) -> None:
        """Has a section read again when it is asked for."""
        with self._memory:
            self._kept.pop(name, None)

    def shard_of(self, name: str, credential: str) -> str:
        """The document of a section that has, or would have, a credential."""
        return self.names.of(name, credential, self.count(name))

    def count(self, name: str, keystore: Keystore | None = None) -> int:
        """In how many documents a section is, as the key store says; 0: in its own."""
        if self._store.shared is not None:
            return self._store.shared.shards
        return (keystore or self._store.unsealed()).body.shards.get(name, 0)

    def all(self, name: str) -> tuple[str, ...]:
        """Every document of a section."""
        return shard_names(name, self.count(name))

    @property
    def names(self) -> ShardNames:
        """Which document has what."""
        if self._names is None:
            self._names = ShardNames(root_key(self._store.unsealed()))
        return self._names

    def open(self) -> None:
        """Derives what names the shards, while there are keys to do so; idempotent."""
        self._names = self.names

    def close(self) -> None:
        """Forgets the records, and wipes what the shards are named with; idempotent."""
        with self._memory:
            self._kept = {}
        names, self._names = self._names, None
        if names is not None:
            names.close()

    # -- writing -----------------------------------------------------------------

    async def commit(
        self,
        name: str,
        change: ChangeSection,
        *,
        shred: bool = False,
        size: int | None = None,
        within: Collection[str] | None = None,
    ) -> Written:
        """Changes some of a section's records; what allows less is anchored on return.

        Args:
            name: The section.
            change: Given the section and the key store, returns the records that are to be
                others; where none is, nothing is written.
            shred: See ``Storage.write``.
            size: How many records ``change`` goes through; by default those of the whole
                section. It runs in a worker thread where they are many.
            within: The shards that have the records, where that is known: only they are
                given to ``change`` and searched.

        Returns:
            The section as written, and what became of the bytes it replaced.

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """
        await self._store.move_forward()

        async def attempt() -> tuple[Written, bool] | None:
            section = await self.read(name)
            keystore = await self._store.keystore(refresh=False)
            count = self.count(name, keystore)
            if section.shards and section.count != count:  # another process has divided it
                self.forget(name)
                return None
            given = {each: shard.token for each, shard in section.shards.items()}
            part = section if within is None else section.only(within)
            changes = await self._store.computed(
                given,
                keystore,
                partial(change, part, keystore),
                size=len(section.records) if size is None else size,
            )
            if changes is None:
                return None
            place = partial(self.names.of, name, count=count)
            changed = await off_loop(len(changes), lambda: changed_shards(part, changes, place))
            if changed and not section.shards:  # all are made together
                changed = {each: changed.get(each, {}) for each in shard_names(name, count)}
            written = await self._write(section, changed, keystore, shred=shred)
            narrower = partial(narrows, part.shards.values(), changes)
            return written and (written, await off_loop(len(changes), narrower))

        async with self._store.writing.held():
            written, to_anchor = await until_committed(name, attempt)
        await self._note(written[0])
        if to_anchor:
            await self._store.anchor()
        if self._is_large(written[0]):
            with suppress(ApexCredsError):  # then the next commit does it
                await self._divide(name)
        return written

    async def recommit(self, documents: Collection[str]) -> None:
        """Commits shards again as they are, under the keys of now.

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """
        await self._store.move_forward()
        for name in SECTION_NAMES:
            chosen = [each for each in documents if section_of(each) == name]
            if chosen:
                async with self._store.writing.held():
                    written = await until_committed(name, partial(self._recommit, name, chosen))
                await self._note(written[0])

    async def keys(self, name: str) -> dict[str, KeyName]:
        """The key version that each shard of a section is under."""
        shards = (await self.read(name)).shards
        return {each: shard.header.key for each, shard in shards.items() if shard.header}

    # -- against rollbacks -------------------------------------------------------

    def require(self, sums: Mapping[str, int]) -> None:
        """Has sections refused whose generation is less than that."""
        self._floors = {name: sums[name] for name in SECTION_NAMES if name in sums}

    async def note_generations(self) -> None:
        """Has the key store say how far each shard has come, as far as is known here.

        At the first call, and an hour after the last one that did. A section of one document
        is anchored itself, so there is nothing to do.
        """
        if self._store.shared is None:
            return
        rollback = self._store.rollback

        def note(body: KeystoreBody) -> KeystoreBody:
            raised = rollback.raised(body.sections)
            behind = [name for name, at in raised.items() if at > body.sections[name]]
            if not any(map(section_of, behind)):
                return body
            return msgspec.structs.replace(body, sections=raised)

        now = self._store.clock.monotonic()
        if now - self._noted >= NOTE_AFTER:
            await self._store.commit_keystore(note)
            self._noted = now

    # -- inside ------------------------------------------------------------------

    def _beside(self, name: str, credential: str) -> Mapping[str, Record] | None:
        section = self._kept.get(name)
        if section is None:
            return None
        if section.shards:
            count = section.count
            place = self.names.of(name, credential, count) if count else name
            shard = section.shards[place]
            current = self._store.storage.change_token(shard.name) == shard.token
            return shard.records if current else None
        return _NO_RECORDS if self._is_current(section) else None

    def _is_current(self, section: Section) -> bool:
        if not section.shards:
            # One that was divided meanwhile has no document of its name: the key store says so.
            if self._store.keystore_now() is None:
                return False
            first = self.all(section.name)[0]
            return self._store.storage.change_token(first) is None
        found = self._store.change_tokens(section.shards)
        return found == [shard.token for shard in section.shards.values()]

    async def _read(self, name: str) -> Section:
        return await self._flights.fresh(
            name, now=partial(self.now, name), load=partial(self._load, name)
        )

    async def _load(self, name: str) -> Section:
        while True:
            count = self.count(name, await self._store.keystore(refresh=False))
            try:
                return await self._load_shards(name, shard_names(name, count))
            except CorruptDocumentError:
                if count == self.count(name, await self._store.keystore(refresh=False)):
                    raise  # it was not divided meanwhile

    async def _load_shards(self, name: str, names: Collection[str]) -> Section:
        before = self._kept.get(name)
        known = {} if before is None else before.shards
        shards = {each: known[each] for each in names if each in known}
        tokens = zip(names, self._store.change_tokens(names), strict=True)
        moved = [n for n, token in tokens if n not in shards or token != shards[n].token]
        loaded = await self._store.load(moved, partial(open_shard, shared={}))
        exists = self._store.shared is None and len(names) > 1  # as the key store says
        if loaded or shards or exists:
            for each in moved:
                if each not in loaded:
                    raise missing(each)
        shards |= loaded
        found = sum(shard.generation for shard in shards.values())
        refuse_rollback(name, floor=self._floors.get(name, 0), found=(found, ""))
        return self._keep(name, shards)

    def _keep(self, name: str, shards: Mapping[str, Shard]) -> Section:
        """The section out of shards; of each, the newest that this process has."""
        while True:
            self._store.unsealed()
            before = self._kept.get(name)
            known = before.shards if before else {}
            if len(known) > len(shards):  # divided meanwhile
                shards = known
            newest = {
                each: known[each]
                if each in known and known[each].generation > shard.generation
                else shard
                for each, shard in shards.items()
            }
            section = Section(name=name, shards=newest)
            with self._memory:
                if self._kept.get(name) is before:
                    self._kept[name] = section
                    return section

    async def _note(self, section: Section) -> None:
        """One that was not written is not noted: it would be missing from then on.

        A home's is noted while it is one document; that it has shards is noted with them.
        """
        if section.shards and (self._store.shared is not None or not section.count):
            await self._store.note(section.shards)

    def _is_large(self, section: Section) -> bool:
        """Whether a section is to be divided."""
        alone = self._store.shared is None and not section.count
        return alone and division(self._store.storage, len(section.records)) > 0

    async def _divide(self, name: str) -> None:
        """Puts a large section into shards, and has the key store say so, in one commit.

        Raises:
            ConflictError: Other writers were first, a hundred times.
            StorageError: It was not done, or may not have been.
        """
        names = shard_names(name, division(self._store.storage, LARGE + 1))

        def sealed(section: Section, keystore: Keystore) -> list[tuple[Data, Shard]]:
            place, now = (
                partial(self.names.of, name, count=len(names)),
                self._store.clock.time(),
            )
            [whole] = section.shards.values()
            parts = split(whole, names, place)
            return [seal_shard(part, part.records, keystore, now=now) for part in parts]

        async def attempt() -> bool | None:
            section = await self.read(name)
            keystore = await self._store.keystore(refresh=False)
            if not self._is_large(section) or self.count(name, keystore):
                return False
            token = section.shards[name].token
            try:
                made = await off_loop(len(section.records), partial(sealed, section, keystore))
                shards = {**keystore.body.shards, name: len(names)}
                body = msgspec.structs.replace(keystore.body, shards=shards)
                writes = [Write(shard.name, data, None) for data, shard in made]
                gone = Write(name, None, token, remove=True)
                _, results = await self._store.commit_with_keystore(
                    [*writes, gone], keystore, body
                )
            except (ConflictError, SecretWipedError):
                return None
            there = {}
            for (_, shard), result in zip(made, results, strict=False):
                there[shard.name] = dataclasses.replace(shard, token=result.token)
                self._store.rollback.register(shard.name, (shard.generation, shard.mac))
            self._keep(name, there)
            return True

        async with self._store.writing.held():
            await until_committed(name, attempt)

    async def _recommit(self, name: str, chosen: Collection[str]) -> Written | None:
        section = await self.read(name)
        keystore = await self._store.keystore(refresh=False)
        names = shard_names(name, self.count(name, keystore))
        if section.shards and section.shards.keys() != set(names):
            self.forget(name)
            return None
        there = {each: _shard(section, each).records for each in chosen if each in names}
        return await self._write(section, there, keystore, shred=False)

    async def _write(
        self, section: Section, changed: Changed, keystore: Keystore, *, shred: bool
    ) -> Written | None:
        """The section as written; None where another writer was first."""
        if not changed:
            return section, "no"
        size, now = sum(map(len, changed.values())), self._store.clock.time()
        before = {each: _shard(section, each) for each in changed}

        def sealed() -> list[tuple[Data, Shard]]:
            return [seal_shard(before[n], r, keystore, now=now) for n, r in changed.items()]

        try:
            made = await off_loop(max(size, 8 * (len(changed) - 1)), sealed)
            writes = [(shard.name, data, before[shard.name].token) for data, shard in made]
            results = await self._store.commit(writes, keystore, shred=shred)
        except (ConflictError, SecretWipedError):  # wiped: its key was destroyed
            return None
        shards = dict(section.shards)
        for (_, shard), result in zip(made, results, strict=True):
            shards[shard.name] = dataclasses.replace(shard, token=result.token)
            self._store.rollback.register(shard.name, (shard.generation, shard.mac))
        return self._keep(section.name, shards), results[0].shredded


def seal_shard(
    before: Shard, records: Mapping[str, Record], keystore: Keystore, *, now: float
) -> tuple[Data, Shard]:
    """A shard's next document, and the shard as it is then (its token is not known yet)."""
    used = keys_used(records.values())
    header = keystore.next_header(
        before.name, after=before.generation, written=now, keys_used=used
    )
    if any_owned(records.values()):
        header = msgspec.structs.replace(header, version=OWNED_VERSION)
    keys = keystore.document_keys(header)
    uses = count_uses(before, records, used)
    data = seal_shard_body(header, records.values(), keys, uses=uses)
    shard = Shard(
        name=before.name,
        token=None,
        header=header,
        mac=mac_of(data),
        records=records,
        uses=uses,
    )
    return data, shard


def changed_shards(section: Section, changes: Changes, place: Callable[[str], str]) -> Changed:
    """The new records of each shard in which some are to be others.

    Args:
        section: As it is.
        changes: The records that are to be others.
        place: The document of a credential.
    """
    parts: dict[str, list[str]] = {}
    found: list[str] = []
    for document, shard in section.shards.items():
        there = list(shard.records.keys() & changes.keys())
        found += there
        if any(changes[name] is not shard.records[name] for name in there):
            parts[document] = there
    if len(found) < len(changes):  # none is in two
        known = set(found)
        for name, record in changes.items():
            if record is not None and name not in known:
                parts.setdefault(place(name), []).append(name)
    changed = {}
    for document, names in parts.items():
        after = changed[document] = dict(_shard(section, document).records)
        for name in names:
            record = changes[name]
            if record is None:
                del after[name]
            else:
                after[name] = record
    return changed


def split(whole: Shard, names: Iterable[str], place: Callable[[str], str]) -> list[Shard]:
    """What the shards of a section begin with that is in one document.

    Their generations go on from the document's, so that the section's never falls; so do the
    counts of what was sealed under each key.

    Args:
        whole: The document.
        names: Of the shards.
        place: The shard of a credential.
    """
    parts: dict[str, dict[str, Record]] = {name: {} for name in names}
    for credential, record in whole.records.items():
        parts[place(credential)][credential] = record
    counted = {name: records_by_key(records.values()) for name, records in parts.items()}
    surplus = dict(whole.uses)
    for counts in counted.values():
        for key, count in counts.items():
            surplus[key] = surplus.get(key, 0) - count
    shards = []
    for name, records in parts.items():
        uses = {key: count + surplus.pop(key, 0) for key, count in counted[name].items()}
        shards.append(dataclasses.replace(whole, name=name, records=records, uses=uses))
    return shards


def records_by_key(records: Iterable[Record]) -> dict[tuple[str, int], int]:
    """How many records are under each DEK version."""
    chosen = list(records)
    counts, examples = Counter(heads(chosen)), dict(zip(heads(chosen), chosen, strict=True))
    keys = {head: record.key for head, record in examples.items()}
    return {(keys[head][0].hex(), keys[head][1]): count for head, count in counts.items()}


def _shard(section: Section, name: str) -> Shard:
    """A shard of a section, which may have to be made."""
    return section.shards.get(name) or Shard(
        name=name, token=None, header=None, mac="", records={}
    )
