"""Loads, caches and commits the documents of one vault over any storage.

Guarantee: one load and one commit for every document there is.

R1 A load takes the key store before the document; a commit takes it again after. A
   reader with generation g of a document has every key version that was made before g.
R2 A commit is tied: it fails if the key store moved since it was computed. So nothing is
   ever stored under a key version that is not primary at that moment, and a version may be
   destroyed after one scan.
R3 No lost update: compare-and-set, computed again from fresh state, ``ATTEMPTS`` times.
R4 No rollback: floor and newest generation are taken before a read and checked after it.
R5 A document that the key store has noted can't be missing; every commit of the key store
   raises its floors to what was authenticated.
R6 The key store is read back after each of its commits before anything refers to it.
R7 A key that is missing while a document is opened, or changed, is looked for again as long
   as the document, or the key store, moves.
R8 In a lockdown no key is in memory: see ``keystore``.
R9 Reads cost no trip while tokens stand; all who wait for one document share one load.
R10 What is large is opened and sealed in a worker thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import msgspec
from anyio import to_thread

from apex_creds.concurrency import Lock, SingleFlight, off_loop, until_committed
from apex_creds.crypto import kdf
from apex_creds.documents.document import (
    KEK_VERSION,
    VERSION,
    Header,
    Packed,
    RootHeader,
    give_back,
    mac_of,
    parse,
)
from apex_creds.documents.grant_set import GrantSet
from apex_creds.documents.keystore import (
    DOCUMENTS_LABEL,
    Keystore,
    KeystoreBody,
    MasterKeySource,
    SealState,
    index,
    needed_keks,
    open_keystore,
    root_header,
    seal_keystore,
    takes_away,
    with_document_key,
)
from apex_creds.documents.rollback import (
    KEK,
    MASTER,
    RollbackGuard,
    missing,
    refuse_old_keys,
    refuse_rollback,
)
from apex_creds.documents.sections import SectionSet
from apex_creds.errors import (
    ConflictError,
    MasterKeyError,
    RetiredKeyError,
    SecretWipedError,
    StorageStaleError,
    UnknownKeyError,
    VaultNotFoundError,
    VaultSealedError,
    WrongMasterKeyError,
)
from apex_creds.keys.hierarchy import KEYSTORE, DocumentKeys, Hierarchy, master_check
from apex_creds.keys.keyset import KeyState
from apex_creds.model import Clock
from apex_creds.storage.base import (
    Data,
    Divides,
    Stamped,
    Storage,
    Stored,
    Token,
    Write,
    WriteResult,
    shared,
)
from apex_creds.storage.portal import StoragePortal

T = TypeVar("T")

_AT_ONCE: Final = 8
"""Files that are read before the first is opened: a file is as large as what it becomes."""
ChangeKeystore = Callable[[KeystoreBody], KeystoreBody]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rekeyed:
    """A key store under other keys: its clear part, its body, and what opens both.

    A hierarchy that is not the one of before belongs to the store from then on.
    """

    root: RootHeader
    body: KeystoreBody
    hierarchy: Hierarchy


ChangeRoot = Callable[[Keystore], Rekeyed | KeystoreBody | None]


class DocumentStore(SealState):
    """The documents of one vault.

    Args:
        storage: Where they lie; closed by ``close``.
        clock: Stamps what is written.
        masters: Get the master key when KEKs must be derived; it is closed as soon as
            they are.

    Attributes:
        shared: The storage, where several processes may share it over a network.
        sections: The credentials.
        grants: What plugins may do with them.
        rollback: The newest versions that were authenticated.
        anchor: Has them anchored outside the vault, before it returns. Called for a commit
            that took something away; others are anchored with the next checkpoint.
        recovering: Whether documents under retired keys are read, too.
        branch: What the key store's generations are above from now on; see ``BRANCH``.
        on_keystore_commit: Called before the key store is written, with the one of before
            and the new body.
    """

    def __init__(self, storage: Storage, *, clock: Clock, masters: MasterKeySource) -> None:
        super().__init__()
        self.storage = storage
        self.shared = shared(storage)
        self.clock = clock
        self.masters = masters
        self.rollback = RollbackGuard()
        self.writing = Lock()
        """Held for a commit of sections or the key store: each would only undo the others'."""
        self.sections = SectionSet(self)
        self.grants = GrantSet(self, lambda: self.sections.names)
        self.anchor: Callable[[], Awaitable[None]] = _no_anchor
        self.recovering = False
        self.branch = 0
        self.on_keystore_commit: list[Callable[[Keystore, KeystoreBody], object]] = []
        self._keystores: SingleFlight[str, Keystore] = SingleFlight()
        self._stamped = storage if isinstance(storage, Stamped) else None

    # -- the key store -----------------------------------------------------------------

    def keystore_now(self) -> Keystore | None:
        """The key store if what is in memory is current, without waiting; else None.

        Raises:
            VaultSealedError: The vault is sealed.
        """
        keystore = self.unsealed()
        return keystore if self._is_current(KEYSTORE, keystore.token) else None

    async def keystore(self, *, refresh: bool = True) -> Keystore:
        """The key store as stored now.

        Args:
            refresh: Whether memory is compared with the storage first; not needed right
                after something else was.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
        """
        if refresh:
            await self.refresh()
        return await self._keystores.fresh(
            KEYSTORE, now=self.keystore_now, load=self._reload_keystore
        )

    async def stored_keystore(self) -> Keystore:
        """The key store out of the storage, not out of memory; opened, and compared.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
            StorageError: The storage can't be read, or reached.
        """
        await self.refresh_strict()
        return await self._reload_keystore()

    async def refresh(self) -> None:
        """Has what is in memory compared with what is stored, where that costs a trip.

        Where the storage can't be reached, what was seen last goes on to be used for as long
        as its ``staleness``.

        Raises:
            StorageStaleError: It can't be reached for too long.
        """
        if self.shared is not None:
            await self.shared.refresh()

    async def refresh_strict(self) -> None:
        """As ``refresh``, for what must not be decided on what was true a while ago.

        Raises:
            StorageStaleError: The storage can't be reached.
        """
        if self.shared is None:
            return
        await self.shared.refresh()
        if self.shared.stale_for():
            raise StorageStaleError(
                "The storage can't be reached, and this is not to be decided without it.",
                hint="It will be tried again.",
            )

    def refresh_blocking(self) -> None:
        """As ``refresh``, from code that can't wait."""
        if isinstance(self.shared, StoragePortal):
            self.shared.refresh_blocking()

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
        self.rollback.register_keystore(keystore.header, keystore.mac, keystore.body.sections)
        self.for_operator = keystore.body.lockdown is not None
        self.sections.open()
        self.grants.open(keystore)
        return keystore

    async def close(self) -> None:
        """Wipes the keys, forgets the records, closes the storage; idempotent."""
        self.sections.close()
        keystore, self._keystore = self._keystore, None
        if keystore is not None:
            keystore.hierarchy.close()
        await self.storage.close()

    # -- any document ------------------------------------------------------------

    async def load(
        self, names: Collection[str], open_one: Callable[[Packed, Token, DocumentKeys], T]
    ) -> dict[str, T]:
        """Those of the documents that exist, authenticated, none older than was seen.

        Args:
            names: Which.
            open_one: Makes the value out of a document; called in a worker thread where they
                are large.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
        """
        loaded: dict[str, T] = {}
        left, step = list(names), _AT_ONCE if self.shared is None else len(names)
        while left:
            some = left[:step]
            before = self.change_tokens([*some, KEYSTORE])
            try:
                loaded |= await self._load_once(some, open_one)
            except SecretWipedError:  # while it was used, in another thread
                continue
            except UnknownKeyError:  # its key was destroyed after it had moved away from it
                await self.refresh_strict()
                if self.change_tokens([*some, KEYSTORE]) == before:
                    raise
                continue
            del left[:step]
        if len(loaded) > step:
            await to_thread.run_sync(give_back)
        return loaded

    async def computed(
        self,
        given: Mapping[str, Token | None],
        keystore: Keystore,
        work: Callable[[], T],
        *,
        size: int = 0,
    ) -> T | None:
        """What ``work`` returns that needs keys.

        Another process may destroy a key version between the read of a document and that of
        the key store, after it has moved the document away from it.

        Args:
            given: The documents that it is computed from, and their tokens.
            keystore: Has their keys.
            work: Computes it, in a worker thread where ``size`` is large.
            size: See ``off_loop``.

        Returns:
            None where a key is gone, and one of them has moved: read them again.
        """
        try:
            return await off_loop(size, work)
        except (UnknownKeyError, SecretWipedError):
            await self.refresh_strict()
            if self.change_tokens([*given, KEYSTORE]) == [*given.values(), keystore.token]:
                raise
            return None

    async def commit(
        self,
        made: Iterable[tuple[str, Data, Token | None]],
        keystore: Keystore,
        *,
        shred: bool = False,
    ) -> list[WriteResult]:
        """Writes documents, all or nothing, if the key store is still that one.

        Args:
            made: Name, bytes and the token that they are based on, of each.
            keystore: What they were computed from.
            shred: See ``Storage.write``.

        Raises:
            ConflictError: One of them, or the key store, moved.
        """
        writes = [Write(name, data, before) for name, data, before in made]
        tie = Write(KEYSTORE, None, keystore.token)
        return (await self.storage.write_many([*writes, tie], shred=shred))[:-1]

    async def commit_with_keystore(
        self, writes: Sequence[Write], keystore: Keystore, body: KeystoreBody
    ) -> tuple[Keystore, list[WriteResult]]:
        """Writes and removes documents together with a new body of the key store.

        With the old body, they are only tied to it. A storage that takes one write at a time
        gets them one after another, the key store last.

        Raises:
            ConflictError: One of them, or the key store, moved.
        """
        tie, results = Write(KEYSTORE, None, keystore.token), list[WriteResult]()
        if self.shared is None and not isinstance(self.storage, Divides):
            for write in writes:
                results.append((await self.storage.write_many([write, tie]))[0])
            changed = body is not keystore.body
            return await self._write_keystore(keystore, body) if changed else keystore, results
        if body is keystore.body:
            return keystore, (await self.storage.write_many([*writes, tie]))[:-1]
        after = await self._write_keystore(keystore, body, beside=(writes, results))
        return after, results

    async def note(self, names: Iterable[str]) -> None:
        """Has the key store note that documents exist: their absence is an error then."""
        made = dict.fromkeys(names, 1)
        if made.keys() <= self.unsealed().body.sections.keys():
            return
        await self.commit_keystore(
            lambda body: (
                body
                if made.keys() <= body.sections.keys()
                else msgspec.structs.replace(body, sections={**made, **body.sections})
            )
        )

    def minimum_generation(self, name: str, keystore: Keystore) -> int:
        """The generation that a document must have reached, as far as is known here."""
        return max(keystore.body.sections.get(name, 0), self.rollback.minimum(name))

    async def keys_for(self, header: Header) -> DocumentKeys:
        """The keys of a document, also if another process has just made its key.

        Raises:
            RetiredKeyError: Nothing is under that key any more, and this is no recovery.
            UnknownKeyError: There is no such key.
        """
        keystore = self.unsealed()
        if keystore.key_state(header) in (None, KeyState.DESTROYED):
            keystore = await self.keystore()
        if keystore.key_state(header) is KeyState.RETIRED and not self.recovering:
            key = "KEK" if header.version == KEK_VERSION else "document key"
            raise RetiredKeyError(
                f"The document for {header.section!r} is under {key} version "
                f"{header.key_version}, which is retired: who has that key may have made it.",
                hint="Restore the newest copy. To take over an older one on purpose: "
                "apex-creds audit accept-rollback --reason …",
            )
        return keystore.document_keys(header)

    # -- writing -----------------------------------------------------------------

    async def move_forward(self) -> None:
        """Has an older program's key store get a key for documents, before one is written."""
        if DOCUMENTS_LABEL not in self.unsealed().by_label:
            await self.commit_rekeyed(
                lambda before: with_document_key(
                    before.body,
                    before.hierarchy,
                    kek_version=before.header.key_version,
                    now=self.clock.time(),
                )
            )

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
        return await self.commit_rekeyed(lambda before: change(before.body))

    async def commit_rekeyed(self, change: ChangeRoot, *, size: int = 0) -> Keystore:
        """As ``commit_keystore``, for changes that need the keys, or replace them.

        ``change`` returns a new body, the whole key store under other keys, or None (or
        the old body) for nothing to do. It runs in a worker thread where the key store
        is large, or the change (``size`` keysets).

        Raises:
            ConflictError: Other writers were first, a hundred times.
        """

        async def attempt() -> tuple[Keystore, bool] | None:
            before = await self.keystore()
            many = max(len(before.body.deks), size)
            made = await off_loop(many, partial(change, before))
            if made is None or made is before.body:
                return before, False
            try:
                after = await self._write_keystore(before, made)
            except ConflictError:
                return None
            body = made.body if isinstance(made, Rekeyed) else made
            rekeyed = before.header.root != after.header.root
            return after, rekeyed or takes_away(before.body, body)

        async with self.writing.held():
            after, to_anchor = await until_committed(KEYSTORE, attempt)
        if to_anchor:
            await self.anchor()
        return after

    # -- inside ------------------------------------------------------------------

    def unsealed(self) -> Keystore:
        """The key store in memory, current or not.

        Raises:
            VaultSealedError: The vault is sealed.
        """
        if self._keystore is None:
            raise VaultSealedError("The vault is sealed.", hint="Unseal it again.")
        return self._keystore

    def change_tokens(self, names: Iterable[str]) -> list[Token | None]:
        """What the storage says of each document."""
        if self._stamped is not None:
            return self._stamped.change_tokens(names)
        return [self.storage.change_token(name) for name in names]

    def _is_current(self, name: str, token: object) -> bool:
        return self.storage.change_token(name) == token

    async def _stands(self, stored: Stored) -> bool:
        """Whether the key store is still that one; a later one has another master key."""
        await self.refresh_strict()
        return self._is_current(KEYSTORE, stored.token)

    async def _derive(self, header: Header) -> Hierarchy:
        root = root_header(header)
        with await self.masters.load(root.master, header.vault_id) as master:
            check = master_check(master, vault_id=header.vault_id)
            if not kdf.constant_time_equal(check, root.master.check):
                raise self._wrong_master(root.master.uri)
            return Hierarchy.from_master(master, vault_id=header.vault_id, keks=root.keks)

    def _wrong_master(self, recorded: str) -> WrongMasterKeyError:
        if self.masters.provider(recorded).uri.startswith("passphrase:"):
            return WrongMasterKeyError(
                "The passphrase is wrong: it does not open this vault.",
                hint="Type it again. It is the one that the vault was made with, or that "
                "apex-creds rotate master asked for last.",
            )
        return WrongMasterKeyError(
            "This master key does not open this vault.",
            hint="Name the right one with --master, or restore the key store.",
        )

    async def _reload_keystore(self, written: Keystore | None = None) -> Keystore:
        """Reads the key store; ``written`` is what this process has just put there."""
        before = self.unsealed()
        # Taken before the read: what another task writes meanwhile is no rollback.
        floors = {name: self.rollback.minimum(name) for name in (KEYSTORE, KEK, MASTER)}
        seen = max((before.header.generation, before.mac), self.rollback.newest(KEYSTORE))
        stored = await self.storage.read(KEYSTORE)
        await self.refresh_strict()  # so that no older section in memory is current
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
        self.rollback.register_keystore(after.header, after.mac, after.body.sections)
        with self._memory:
            newest = self.unsealed().header.generation <= after.header.generation
            if newest:
                self._keystore = after
                hierarchy.forget_keks(needed)
                hierarchy.forget_destroyed(after.by_id)
        if newest:
            self.seal_if_locked_down()
        return after

    async def _load_once(
        self, names: Collection[str], open_one: Callable[[Packed, Token, DocumentKeys], T]
    ) -> dict[str, T]:
        keystore = await self.keystore(refresh=False)
        # Taken before the read: what another task writes meanwhile is no rollback.
        floors = {name: self.minimum_generation(name, keystore) for name in names}
        newest = {name: self.rollback.newest(name) for name in names}
        token = self.storage.change_token
        wanted = [name for name in names if floors[name] or token(name) is not None]
        stored = await self.storage.read_many(wanted) if wanted else {}
        if wanted:
            await self.refresh_strict()  # so that no older key store in memory is current
        packed: dict[str, tuple[Packed, Token, DocumentKeys]] = {}
        for name in wanted:
            if name in stored:
                each = stored[name]
                made = parse(each.data, section=name, vault_id=keystore.header.vault_id)
                keys = await self.keys_for(made.header)
                packed[name] = (made, each.token, keys)
            elif floors[name]:
                raise missing(name)
        size = sum(len(each.data) for each in stored.values())
        opened = await off_loop(
            size >> 9, lambda: {name: open_one(*each) for name, each in packed.items()}
        )
        for name, (made, at, _) in packed.items():
            found = (made.header.generation, made.mac)
            refuse_rollback(name, floor=floors[name], seen=newest[name], found=found)
            self.rollback.register(name, found)
            self.rollback.register_key(name, at, made.header.key)
        return opened

    async def _write_keystore(
        self,
        before: Keystore,
        made: Rekeyed | KeystoreBody,
        *,
        beside: tuple[Sequence[Write], list[WriteResult]] = ((), []),
    ) -> Keystore:
        """Writes the key store, and what goes with it: ``beside`` takes the results."""
        rekeyed = made if isinstance(made, Rekeyed) else None
        root = rekeyed.root if rekeyed else before.root_header
        hierarchy = rekeyed.hierarchy if rekeyed else before.hierarchy
        body = made.body if isinstance(made, Rekeyed) else made
        body = msgspec.structs.replace(body, sections=self.rollback.raised(body.sections))
        primary, now = root.keks.primary.version, self.clock.time()
        body = with_document_key(body, hierarchy, kek_version=primary, now=now)
        for call in self.on_keystore_commit:
            call(before, body)
        header = msgspec.structs.replace(
            before.header,
            version=VERSION,
            generation=max(before.header.generation, self.branch) + 1,
            written=now,
            root=root,
            key_version=primary,
        )
        try:
            data = await off_loop(
                len(body.deks), lambda: seal_keystore(header, body, hierarchy=hierarchy)
            )
            writes, results = beside
            if writes:
                both = [*writes, Write(KEYSTORE, data, before.token)]
                *others, last = await self.storage.write_many(both, shred=True)
                results += others
            else:
                last = await self.storage.write(
                    KEYSTORE, data, expected=before.token, shred=True
                )
            token = last.token
            written = index(header, body, mac=mac_of(data), token=token, hierarchy=hierarchy)
            self.rollback.register_keystore(header, written.mac, body.sections)
            after = await self._reload_keystore(written)
        except BaseException:
            # If it was written all the same, the next read derives the keys again.
            if hierarchy not in (before.hierarchy, self._keystore and self._keystore.hierarchy):
                hierarchy.close()
            raise
        if hierarchy not in (before.hierarchy, after.hierarchy):
            hierarchy.close()
        return after


async def _no_anchor() -> None:
    """There is none before the vault's log is open."""


def _open(packed: Packed, stored: Stored, hierarchy: Hierarchy) -> Keystore:
    return open_keystore(packed, token=stored.token, hierarchy=hierarchy)
