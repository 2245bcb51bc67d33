"""KEK rotation: the key store under a new KEK in one commit, and which KEKs are still needed.

Guarantee: every key was opened with the new keys, and compared, before the commit. A rotation
names the version that it replaces, and does nothing where that was replaced already: of any
number of processes that rotate at once, one does. Documents and credentials are not touched:
the cost is that of the keys.

What a ``KeyScan`` finds is all that refers, or ever will, to the versions that were not
primary when it began: each commit is tied to the key store that it was computed from, and the
scan reads that first. A version is retired, and destroyed, only after one that finds nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from apex_creds.crypto import envelope
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import key_versions, observe
from apex_creds.documents.cached import Document
from apex_creds.documents.document import KeyName, MasterRecord, RootHeader
from apex_creds.documents.keystore import DOCUMENTS_LABEL, Keystore
from apex_creds.documents.store import DocumentStore, Rekeyed
from apex_creds.errors import KeyStateError
from apex_creds.keys.hierarchy import SALT_BYTES, Hierarchy, derive_kek, is_wrapped
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.model import SECTION_NAMES
from apex_creds.storage.base import STATE_DOCUMENTS


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyScan:
    """What KEKs and document keys protect, as read just now.

    Attributes:
        keystore: As of before the documents were read.
        documents: The key version that each document is under: a KEK's, if it is of version 1.
        keys: How many wrapped keys each KEK version opens.
    """

    keystore: Keystore
    documents: Mapping[str, KeyName]
    keys: Mapping[int, int]

    @property
    def keks(self) -> Keyset:
        """The KEKs."""
        return self.keystore.root_header.keks

    @property
    def stale(self) -> tuple[str, ...]:
        """The documents that are under a key version that is not primary."""
        found = (self.keks, self.keystore.by_label.get(DOCUMENTS_LABEL))
        primaries = {(each.id, each.primary.version) for each in found if each}
        return tuple(name for name, key in self.documents.items() if key not in primaries)

    @property
    def only(self) -> bool:
        """Whether nothing is under another KEK than the primary."""
        primary = self.keks.primary.version
        return {*self.keys, *self.under(self.keks)} <= {primary}

    def under(self, keyset: Keyset) -> Counter[int]:
        """How many documents are under each version of a keyset."""
        return Counter(at for key_id, at in self.documents.values() if key_id == keyset.id)

    def protects(self, version: int) -> int:
        """How many documents and keys a KEK version protects."""
        return self.under(self.keks)[version] + self.keys.get(version, 0)


async def scan(store: DocumentStore) -> KeyScan:
    """Reads which KEK and document key versions protect what.

    Raises:
        IntegrityError: A document is not what this vault wrote.
    """
    await store.refresh_strict()
    keystore = await store.keystore()
    documents: dict[str, KeyName] = {}
    for name in SECTION_NAMES:
        documents |= await store.sections.keys(name)
    documents |= await store.grants.keys()
    for name in STATE_DOCUMENTS:
        key = await Document(store, name=name, empty=b"").key()
        if key is not None:
            documents[name] = key
    return KeyScan(keystore=keystore, documents=documents, keys=wrapped_under(keystore))


def wrapped_under(keystore: Keystore) -> dict[int, int]:
    """How many wrapped keys each KEK version opens."""
    counts: dict[int, int] = {}
    for keyset in (keystore.body.root, *keystore.body.deks):
        for version in keyset.versions:
            if version.state is not KeyState.DESTROYED:
                counts[version.parent] = counts.get(version.parent, 0) + 1
    for version in filter(is_wrapped, keystore.root_header.keks.versions):
        under = envelope.header(version.material)[1]
        counts[under] = counts.get(under, 0) + 1
    return counts


async def step_unused(
    store: DocumentStore, step: Callable[[Keyset, Collection[int]], Keyset]
) -> None:
    """Takes ``step`` with the document key versions that no document is under."""
    found = await scan(store)
    keyset = found.keystore.by_label.get(DOCUMENTS_LABEL)
    if keyset is not None:
        await key_versions.step_spent(store, [keyset], set(found.documents.values()), step)


@observe.rotating("kek")
async def rotate_kek(store: DocumentStore, *, replaces: int, now: float) -> Keystore:
    """Makes a new primary KEK and wraps every key under it.

    Args:
        store: The vault's documents.
        replaces: The primary version that the decision to rotate was about.
        now: The time of the change.

    Raises:
        MasterKeyError: The master key can't be had.
    """
    before = await store.keystore()
    record = before.root_header.master
    if before.root_header.keks.primary.version != replaces:
        return before
    with await store.masters.load(record, before.header.vault_id) as master:

        def change(found: Keystore) -> Rekeyed | None:
            root = found.root_header
            if root.keks.primary.version != replaces or root.master != record:
                return None
            return rekeyed(found, master, record, now=now)

        return await store.commit_rekeyed(change)


async def mark_keks_compromised(
    store: DocumentStore, versions: Collection[int], *, now: float
) -> None:
    """Flags KEK versions; those that are destroyed are passed over."""
    step = partial(key_versions.mark_compromised, now=now)
    await _change_keks(store, lambda keks: step(keks, versions))


async def retire_keks(store: DocumentStore, *, now: float) -> frozenset[int]:
    """Retires the active KEK versions, if a scan shows that only the primary is in use.

    Returns:
        The versions that were retired.
    """
    idle = await _idle(store)
    return await _change_keks(store, lambda keks: key_versions.retire(keks, idle, now=now))


async def destroy_keks(store: DocumentStore, *, before: float, now: float) -> frozenset[int]:
    """Destroys the retired KEK versions whose grace is over, after another scan.

    Args:
        store: The vault's documents.
        before: Those retired at that time or earlier go; compromised ones at once.
        now: The time of the change.

    Returns:
        The versions that were destroyed.
    """
    idle, step = await _idle(store), partial(key_versions.destroy, before=before, now=now)
    return await _change_keks(store, lambda keks: step(keks, idle))


async def _idle(store: DocumentStore) -> frozenset[int]:
    """The versions that nothing refers to, nor will again."""
    found = await scan(store)
    if not found.only:
        return frozenset()
    keks = found.keks
    return frozenset(v.version for v in keks.versions if v.version < keks.primary.version)


async def _change_keks(
    store: DocumentStore, change: Callable[[Keyset], Keyset]
) -> frozenset[int]:
    """Commits a change of the KEK versions' states; those that changed theirs."""
    moved: frozenset[int] = frozenset()

    def commit(found: Keystore) -> Rekeyed | None:
        nonlocal moved
        before, in_use = found.root_header.keks, wrapped_under(found)
        after = change(before)
        pairs = list(zip(before.versions, after.versions, strict=True))
        moved = frozenset(new.version for old, new in pairs if old.state is not new.state)
        if after == before or moved & set(in_use):
            moved = frozenset()
            return None
        root = RootHeader(master=found.root_header.master, keks=after)
        return Rekeyed(root=root, body=found.body, hierarchy=found.hierarchy)

    await store.commit_rekeyed(commit)
    return moved


def rekeyed(
    before: Keystore, master: SecretBytes, record: MasterRecord, *, now: float
) -> Rekeyed:
    """The key store under a new KEK, which ``master`` and a fresh salt determine."""
    old, vault_id = before.root_header.keks, before.header.vault_id
    keks = old if old.pending is None else old.abandon(old.pending.version, now=now)
    keks = keks.add_pending(material=os.urandom(SALT_BYTES), parent=record.version, now=now)
    number = keks.versions[-1].version
    keks = keks.promote(number, now=now)
    kek = derive_kek(master, keks.primary, vault_id=vault_id)
    bridge = before.hierarchy.with_kek(number, kek)
    try:
        # Earlier KEKs that this master key does not determine are wrapped under the new one.
        for version in keks.versions:
            foreign = is_wrapped(version) or version.parent != record.version
            if foreign and version.state is not KeyState.DESTROYED:
                wrapped = bridge.wrap_kek(version.version, under=number)
                keks = keks.rewrap(version.version, material=wrapped, parent=version.parent)
        root = _rewrapped(before.body.root, bridge, number)
        deks = tuple(_rewrapped(keyset, bridge, number) for keyset in before.body.deks)
    finally:
        bridge.close()
    hierarchy = Hierarchy.from_master(master, vault_id=vault_id, keks=keks)
    body = replace(before.body, root=root, deks=deks)
    made = Rekeyed(root=RootHeader(master=record, keks=keks), body=body, hierarchy=hierarchy)
    _compare(before, made)
    return made


def _rewrapped(keyset: Keyset, bridge: Hierarchy, kek_version: int) -> Keyset:
    versions = tuple(
        version
        if version.state is KeyState.DESTROYED
        else replace(
            version,
            material=bridge.rewrap(version, key_id=keyset.id, under=kek_version),
            parent=kek_version,
        )
        for version in keyset.versions
    )
    return replace(keyset, versions=versions)


def _compare(before: Keystore, made: Rekeyed) -> None:
    """Opens every key with the new keys as a later process will, and compares.

    Raises:
        KeyStateError: One is not the same; nothing was written.
    """
    old = (before.body.root, *before.body.deks)
    new = (made.body.root, *made.body.deks)
    for keyset, other in zip(old, new, strict=True):
        for one, two in zip(keyset.versions, other.versions, strict=True):
            if one.state is KeyState.DESTROYED:
                continue
            if not before.hierarchy.same(one, two, other=made.hierarchy, key_id=keyset.id):
                made.hierarchy.close()
                raise KeyStateError(
                    f"Key {keyset.id} did not survive its rewrapping; nothing was written.",
                    hint="Report it: the memory of this machine may be faulty.",
                )
