"""Loads, caches and commits the vault's documents over a storage backend.

Guarantee: a read returns the document that the backend holds now (its change token is
compared on every read), never an older generation than was seen before; a commit is a
compare-and-set that is computed again from fresh state when another writer was first,
so no update is lost (rule 3); the key store is read back after every commit (rule 4).

Order: a section is read before the key store that its change uses. A writer that finds a
section of generation g therefore sees every key version that was made before g.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import anyio.to_thread
import msgspec

from apex_creds.concurrency import Lock, SingleFlight
from apex_creds.crypto import kdf
from apex_creds.documents.alone import Alone
from apex_creds.documents.document import Header, Packed, RootHeader, mac_of, parse
from apex_creds.documents.keystore import (
    KeyHolding,
    Keystore,
    KeystoreBody,
    Masters,
    index,
    needed_keks,
    open_keystore,
    root_header,
    seal_keystore,
    takes_away,
)
from apex_creds.documents.records import Record, Section, narrows, open_section
from apex_creds.documents.rollback import (
    KEK,
    MASTER,
    Seen,
    missing,
    refuse_old_keys,
    refuse_rollback,
)
from apex_creds.documents.sections import seal_part
from apex_creds.errors import (
    ConflictError,
    MasterKeyError,
    RetiredKeyError,
    SecretWipedError,
    UnknownKeyError,
    VaultNotFoundError,
    VaultSealedError,
    WrongMasterKeyError,
)
from apex_creds.keys.hierarchy import KEYSTORE, DocumentKeys, Hierarchy, master_check
from apex_creds.model import Clock
from apex_creds.storage.base import Shredded, Storage, Stored

ATTEMPTS: Final = 100
"""Compare-and-set rounds before a commit gives up; each loses only to a commit that won."""
INLINE_RECORDS: Final = 256
"""Larger sections are sealed and opened in a worker thread, off the event loop."""

T = TypeVar("T")
ChangeKeystore = Callable[[KeystoreBody], KeystoreBody]
ChangeSection = Callable[[Section, Keystore], Mapping[str, Record]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeyed:
    """A key store under other keys: its clear part, its body, and what opens both.

    A hierarchy that is not the one of before belongs to the store from then on.
    """

    root: RootHeader
    body: KeystoreBody
    hierarchy: Hierarchy


ChangeRoot = Callable[[Keystore], Rekeyed | KeystoreBody | None]


class DocumentStore(KeyHolding, Alone):
    """The documents of one vault.

    Args:
        storage: Where they lie; closed by ``close``.
        clock: Stamps what is written.
        masters: Get the master key when KEKs must be derived; it is closed as soon as
            they are.

    Attributes:
        seen: The newest versions that were authenticated.
        anchor: Has them anchored outside the vault, before it returns. Called for a commit
            that took something away; others are anchored with the next checkpoint.
        recovering: Whether documents under retired KEKs are read, too.
        on_keystore_commit: Called before the key store is written, with the one of before
            and the new body.
    """

    def __init__(self, storage: Storage, *, clock: Clock, masters: Masters) -> None:
        super().__init__()
        self.storage = storage
        self.clock = clock
        self.masters = masters
        self._keystores: SingleFlight[str, Keystore] = SingleFlight()
        self._flights: SingleFlight[str, Section] = SingleFlight()
        self._sections: dict[str, Section] = {}
        self._writing = Lock()
        self.seen = Seen()
        self.anchor: Callable[[], Awaitable[None]] = _no_anchor
        self.recovering = False
        self.on_keystore_commit: list[Callable[[Keystore, KeystoreBody], object]] = []

    # -- reading -----------------------------------------------------------------

    def keystore_now(self) -> Keystore | None:
        """The key store if what is in memory is current, without waiting; else None.

        Raises:
            VaultSealedError: The vault is sealed.
        """
        keystore = self.unsealed()
        return keystore if self._is_current(KEYSTORE, keystore.token) else None

    def section_now(self, name: str) -> Section | None:
        """A section if what is in memory is current, without waiting; else None."""
        section = self._sections.get(name)
        if section is not None and self._is_current(name, section.token):
            return section
        return None

    async def keystore(self) -> Keystore:
        """The key store as stored now.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
        """
        return await self._keystores.fresh(
            KEYSTORE, now=self.keystore_now, load=self._reload_keystore
        )

    async def stored_keystore(self) -> Keystore:
        """The key store out of the storage, not out of memory; opened, and compared.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
            StorageError: The storage can't be read, or reached.
        """
        await self.settle()
        return await self._reload_keystore()

    async def section(self, name: str) -> Section:
        """A section as stored now; empty where it was never written.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
        """
        return await self._flights.fresh(
            name, now=lambda: self.section_now(name), load=lambda: self._load_section(name)
        )

    async def sections(self, names: Iterable[str]) -> list[Section]:
        """Several sections, each as of some moment after the call."""
        return [await self.section(name) for name in names]

    async def reread(self, name: str) -> Section:
        """A section out of the storage, not out of memory."""
        self._sections.pop(name, None)
        return await self.section(name)

    async def kek_versions(self, name: str) -> dict[str, int]:
        """The KEK version of each document of a section; 0 for one that is to be made."""
        header = (await self.section(name)).header
        return {name: header.kek_version if header else 0}

    async def unseal(self) -> Keystore:
        """Reads the key store for the first time.

        Raises:
            VaultNotFoundError: There is none.
            MasterKeyError: The master key can't be had, or is the wrong one.
        """
        stored = await self.storage.read(KEYSTORE)
        if stored is None:
            raise VaultNotFoundError(
                "There is no vault here.", hint="Create one with: apex-creds init"
            )
        packed = parse(stored.data, section=KEYSTORE, vault_id=None)
        try:
            hierarchy = await self._derive(packed.header)
        except MasterKeyError:
            if await self._stands(stored):
                raise
            return await self.unseal()
        self._keystore = keystore = _open(packed, stored, hierarchy)
        self.seen.note_keystore(keystore.header, keystore.mac)
        self.for_operator = keystore.body.lockdown is not None
        return keystore

    async def close(self) -> None:
        """Wipes the keys, forgets the records, closes the storage; idempotent."""
        keystore, self._keystore = self._keystore, None
        self._sections = {}
        self._bases = {}
        if keystore is not None:
            keystore.hierarchy.close()
        await self.storage.close()

    def in_memory(self) -> list[Section]:
        """The sections in memory, current or not."""
        return list(self._sections.values())

    # -- writing -----------------------------------------------------------------

    async def commit_keystore(self, change: ChangeKeystore) -> Keystore:
        """Applies ``change`` to the key store and reads the result back.

        What takes something away (a grant, a key, the right to release anything) is
        anchored on return, so that it does not come back with an older copy.

        The replaced version is overwritten as far as the file system lets that be done,
        so that a destroyed key does not live on in free blocks. ``change`` may be called
        several times; if it returns its argument, nothing is written.

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """
        return await self.commit_root(lambda before: change(before.body))

    async def commit_root(self, change: ChangeRoot, *, size: int = 0) -> Keystore:
        """As ``commit_keystore``, for changes that need the keys, or replace them.

        ``change`` returns a new body, the whole key store under other keys, or None (or
        the old body) for nothing to do. It runs in a worker thread where the key store
        is large, or the change (``size`` keysets).

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """
        async with self._writing.held():
            for _ in range(ATTEMPTS):
                before = await self.keystore()
                many = max(len(before.body.deks), size)
                made = await off_loop(many, partial(change, before))
                if made is None or made is before.body:
                    return before
                try:
                    after = await self._write_keystore(before, made)
                except ConflictError:
                    continue
                break
            else:
                raise too_busy(KEYSTORE)
        body = made.body if isinstance(made, Rekeyed) else made
        if takes_away(before.body, body) or before.header.root != after.header.root:
            await self.anchor()
        return after

    async def commit_section(
        self,
        name: str,
        change: ChangeSection,
        *,
        shred: bool = False,
        only: Collection[str] | None = None,
    ) -> tuple[Section, Shredded]:
        """Applies ``change`` to a section's records, in a worker thread where it is large.

        What allows less of a credential in ``only`` is anchored on return.

        Args:
            name: The section.
            change: Given the section and the key store, returns the new records.
            shred: See ``Storage.write``.
            only: The credentials that may change; ``change`` may then be given a part of
                the section that has them, and returns the new records of that part.

        Returns:
            The section as written, and what became of the bytes it replaced.

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """
        async with self._writing.held():
            for _ in range(ATTEMPTS):
                before = await self.section(name)
                keystore = await self.keystore()
                size = max(len(before.records), len(only or ()))
                records = await self._changed(change, before, keystore, size=size)
                if records is None:
                    continue
                try:
                    written = await self._write_section(before, keystore, records, shred=shred)
                except (ConflictError, SecretWipedError):  # wiped: its KEK was destroyed
                    continue
                self._bases[name] = keystore
                break
            else:
                raise too_busy(name)
        await self._written(name, before, records, only)
        return written

    async def _written(
        self,
        name: str,
        before: Section,
        after: Mapping[str, Record],
        only: Collection[str] | None,
    ) -> None:
        """What follows a commit of a section in which only these credentials changed."""
        await self.note(name)
        names = only or ()
        if await off_loop(len(names), lambda: narrows(before.records, after, names)):
            await self.anchor()

    def basis(self, name: str) -> Keystore | None:
        """The key store on which this process's last commit of a section was based.

        Every later writer of that section, in any process, bases itself on this key store
        or a newer one.
        """
        return self._bases.get(name)

    async def recommit(self, documents: Collection[str]) -> None:
        """Commits documents of sections again as they are, under the keys of now."""
        for name in documents:
            await self.commit_section(name, lambda before, _: before.records)

    async def note(self, name: str) -> None:
        """Records that a document exists, so that its absence is an error from now on."""
        if name not in (await self.keystore()).body.sections:
            await self.note_all([name])

    async def note_all(self, names: Iterable[str]) -> None:
        """As ``note``, for several at once."""
        made = dict.fromkeys(names, 1)
        await self.commit_keystore(
            lambda body: (
                body
                if made.keys() <= body.sections.keys()
                else msgspec.structs.replace(body, sections={**made, **body.sections})
            )
        )

    def floor(self, name: str, keystore: Keystore) -> int:
        """The generation that a document must have reached, as far as is known here."""
        return max(keystore.body.sections.get(name, 0), self.seen.least(name))

    async def keys_for(self, name: str, kek_version: int) -> DocumentKeys:
        """The keys of a document, also if another process has just made a new KEK.

        Raises:
            RetiredKeyError: Nothing is under that KEK any more, and this is no recovery.
            UnknownKeyError: There is no such KEK.
        """
        keystore = self.unsealed()
        if kek_version not in keystore.hierarchy.kek_versions:
            keystore = await self.keystore()
        if kek_version in keystore.retired_keks and not self.recovering:
            raise RetiredKeyError(
                f"The document for {name!r} is under KEK version {kek_version}, which is "
                "retired: who has that key may have made it.",
                hint="Restore the newest copy. To take over an older one on purpose: "
                "apex-creds audit accept-rollback --reason …",
            )
        return keystore.hierarchy.document_keys(name, kek_version)

    # -- inside ------------------------------------------------------------------

    def unsealed(self) -> Keystore:
        """The key store in memory, current or not.

        Raises:
            VaultSealedError: The vault is sealed.
        """
        if self._keystore is None:
            raise VaultSealedError("The vault is sealed.", hint="Unseal it again.")
        return self._keystore

    def _is_current(self, name: str, token: object) -> bool:
        return self.storage.change_token(name) == token

    async def _stands(self, stored: Stored) -> bool:
        """Whether the key store is still that one; a later one has another master key."""
        await self.settle()
        return self._is_current(KEYSTORE, stored.token)

    async def _derive(self, header: Header) -> Hierarchy:
        root = root_header(header)
        with await self.masters.load(root.master, header.vault_id) as master:
            check = master_check(master, vault_id=header.vault_id)
            if not kdf.constant_time_equal(check, root.master.check):
                raise WrongMasterKeyError(
                    "This master key does not open this vault.",
                    hint="Name the right one with --master, or restore the key store.",
                )
            return Hierarchy.from_master(master, vault_id=header.vault_id, keks=root.keks)

    async def _reload_keystore(self, written: Keystore | None = None) -> Keystore:
        """Reads the key store; ``written`` is what this process has just put there."""
        before = self.unsealed()
        # Taken before the read: what another task writes meanwhile is no rollback.
        floors = {name: self.seen.least(name) for name in (KEYSTORE, KEK, MASTER)}
        seen = max((before.header.generation, before.mac), self.seen.newest(KEYSTORE))
        stored = await self.storage.read(KEYSTORE)
        await self.settle()  # so that no section in memory counts as current that is older
        if stored is None:
            raise missing(KEYSTORE)
        packed = parse(stored.data, section=KEYSTORE, vault_id=before.header.vault_id)
        ours = written is not None and packed.mac == written.mac
        hierarchy = written.hierarchy if ours and written else before.hierarchy
        needed = needed_keks(packed.header)
        if not needed <= hierarchy.kek_versions:
            try:
                hierarchy = await self._derive(packed.header)
            except MasterKeyError:
                if await self._stands(stored):
                    raise
                return await self._reload_keystore()
        after = await off_loop(len(stored.data) >> 9, lambda: _open(packed, stored, hierarchy))
        found = (after.header.generation, after.mac)
        refuse_rollback(KEYSTORE, floor=floors[KEYSTORE], seen=seen, found=found)
        refuse_old_keys(after.header, floors=floors)
        self.seen.note_keystore(after.header, after.mac)
        with self._memory:
            newest = self.unsealed().header.generation <= after.header.generation
            if newest:
                self._keystore = after
                hierarchy.forget_keks(needed)
                hierarchy.forget_destroyed(after.by_id)
        if newest:
            self.seal_if_locked()
        return after

    async def _load_section(self, name: str) -> Section:
        while True:
            token = self.storage.change_token(name)
            try:
                return await self._load_section_once(name)
            except SecretWipedError:  # while it was used, in another thread
                continue
            except UnknownKeyError:  # its KEK was destroyed after it had moved away from it
                if self._is_current(name, token):
                    raise

    async def _load_section_once(self, name: str) -> Section:
        keystore = await self.keystore()
        # Taken before the read: what another task writes meanwhile is no rollback.
        floor, seen = self.floor(name, keystore), self.seen.newest(name)
        stored = await self.storage.read(name)
        if stored is None:
            if floor:
                raise missing(name)
            loaded = Section(name=name, token=None, header=None, mac="", records={})
        else:
            loaded = await self._open_section(name, stored, keystore)
            found = (loaded.generation, loaded.mac)
            refuse_rollback(name, floor=floor, seen=seen, found=found)
            self.seen.note(name, found)
        self.unsealed()
        self._keep_section(loaded)
        return loaded

    def _keep_section(self, section: Section) -> None:
        with self._memory:
            newest = self._sections.get(section.name)
            if newest is None or newest.generation <= section.generation:
                self._sections[section.name] = section

    async def _open_section(self, name: str, stored: Stored, keystore: Keystore) -> Section:
        packed = parse(stored.data, section=name, vault_id=keystore.header.vault_id)
        keys = await self.keys_for(name, packed.header.kek_version)
        return await off_loop(
            len(stored.data) >> 9, lambda: open_section(packed, token=stored.token, keys=keys)
        )

    async def _changed(
        self, change: ChangeSection, before: Section, keystore: Keystore, *, size: int
    ) -> Mapping[str, Record] | None:
        """The changed records; None where the section has moved away from its keys.

        Another process may destroy a key version between the two reads, after it took the
        last record away from it.
        """
        try:
            return await off_loop(size, lambda: change(before, keystore))
        except (UnknownKeyError, SecretWipedError):
            if self._is_current(before.name, before.token):
                raise
            return None

    async def _write_keystore(self, before: Keystore, made: Rekeyed | KeystoreBody) -> Keystore:
        rekeyed = made if isinstance(made, Rekeyed) else None
        root = rekeyed.root if rekeyed else before.root_header
        hierarchy = rekeyed.hierarchy if rekeyed else before.hierarchy
        body = made.body if isinstance(made, Rekeyed) else made
        body = msgspec.structs.replace(body, sections=self.seen.raised(body.sections))
        for call in self.on_keystore_commit:
            call(before, body)
        header = msgspec.structs.replace(
            before.header,
            generation=before.header.generation + 1,
            written=self.clock.time(),
            root=root,
            kek_version=root.keks.primary.version,
        )
        try:
            data = await off_loop(
                len(body.deks), lambda: seal_keystore(header, body, hierarchy=hierarchy)
            )
            token = (
                await self.storage.write(KEYSTORE, data, expected=before.token, shred=True)
            ).token
            written = index(header, body, mac=mac_of(data), token=token, hierarchy=hierarchy)
            self.seen.note_keystore(header, written.mac)
            after = await self._reload_keystore(written)
        except BaseException:
            # If it was written all the same, the next read derives the keys again.
            if hierarchy not in (before.hierarchy, self._keystore and self._keystore.hierarchy):
                hierarchy.close()
            raise
        if hierarchy not in (before.hierarchy, after.hierarchy):
            hierarchy.close()
        return after

    async def _write_section(
        self,
        before: Section,
        keystore: Keystore,
        records: Mapping[str, Record],
        *,
        shred: bool,
    ) -> tuple[Section, Shredded]:
        now = self.clock.time()
        data, made = await off_loop(
            len(records), lambda: seal_part(before, records, keystore, now=now)
        )
        result = await self.storage.write(before.name, data, expected=before.token, shred=shred)
        written = dataclasses.replace(made, token=result.token)
        self._keep_section(written)
        self.seen.note(before.name, (written.generation, written.mac))
        return written, result.shredded


async def _no_anchor() -> None:
    """There is none before the vault's log is open."""


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Does ``work`` here if it is small, else in a worker thread."""
    if size < INLINE_RECORDS:
        return work()
    return await anyio.to_thread.run_sync(work)


def _open(packed: Packed, stored: Stored, hierarchy: Hierarchy) -> Keystore:
    return open_keystore(packed, token=stored.token, hierarchy=hierarchy)


def too_busy(name: str) -> ConflictError:
    """The error of a commit that always came second."""
    return ConflictError(
        f"Other writers kept changing the document for {name!r}.", hint="Try again."
    )
