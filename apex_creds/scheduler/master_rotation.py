"""KEK and master rotation: the key store under other keys, in one commit.

Guarantee: whatever fails, the vault opens with the master key that its key store names. A
new master key is stored by its provider and read back before the key store names it
(rule 4); every key was opened with the new keys, and compared, before the commit. Each
operation names the version that it replaces, and does nothing where that was replaced
already: of any number of processes that rotate at once, one does.

The master key is in memory for the moment of the operation alone. Documents are not
touched: the cost is that of the keys.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection
from typing import Final

import anyio
from msgspec.structs import replace

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import observe
from apex_creds.documents.document import MasterRecord, RootHeader
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.store import DocumentStore, Rekeyed
from apex_creds.errors import (
    ApexCredsError,
    ConflictError,
    KeyStateError,
    MasterKeyExistsError,
    MasterKeyUnavailableError,
)
from apex_creds.keys import ADOPTED, MasterKeyProvider, SharedPlace
from apex_creds.keys.hierarchy import (
    SALT_BYTES,
    Hierarchy,
    derive_kek,
    is_wrapped,
    master_check,
)
from apex_creds.keys.keyset import Keyset, KeyState, grace_over
from apex_creds.scheduler.kek_rotation import scan, wrapped_under

_MAX_TRIES: Final = 2000


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
            return _rekeyed(found, master, record, now=now)

        return await store.commit_rekeyed(change)


@observe.rotating("master")
async def rotate_master(store: DocumentStore, *, replaces: int, now: float) -> Keystore:
    """Makes a new master key, a KEK under it, and wraps every key under that.

    It is one that was made here: what a provider has already under the next versions, be it
    planted, leaked or left by a process that was killed, is passed over. The old master key
    stays at its provider until ``discard_master``.

    Raises:
        MasterKeyReadOnlyError: The provider can't make keys.
        MasterKeyError: The provider does not answer, or did not keep the key.
    """
    before = await store.stored_keystore()  # no key is made while the storage is away
    vault_id, old = before.header.vault_id, before.root_header.master
    if old.version != replaces:
        return before
    provider = store.masters.provider(old.uri)
    kept = await _keeps_all(provider, vault_id, old)
    version, master, params = await _make_master(provider, vault_id, after=replaces)
    with master:
        record = MasterRecord(
            version=version,
            uri=provider.uri,
            params=params | kept,
            check=master_check(master, vault_id=vault_id),
        )

        def change(found: Keystore) -> Rekeyed | None:
            if found.root_header.master.version != replaces:
                return None
            return _rekeyed(found, master, record, now=now)

        try:
            after = await store.commit_rekeyed(change)
        except ApexCredsError as error:
            if _was_not_written(store, error):
                await _discard_unless_named(store, provider, vault_id, record)
            raise
        if after.root_header.master != record:
            await _discard_unless_named(store, provider, vault_id, record)
        return after


async def _make_master(
    provider: MasterKeyProvider, vault_id: str, *, after: int
) -> tuple[int, SecretBytes, dict[str, str]]:
    """A new master key under the first version number that is free at the provider."""
    for version in range(after + 1, after + _MAX_TRIES):
        with contextlib.suppress(MasterKeyExistsError):
            made, params = await provider.create(vault_id=vault_id, version=version)
            return version, made, params
    raise MasterKeyUnavailableError(
        f"{provider.uri} has {_MAX_TRIES} later master keys that nobody made here.",
        hint="Find out who put them there, and remove them.",
    )


async def _keeps_all(
    provider: MasterKeyProvider, vault_id: str, old: MasterRecord
) -> dict[str, str]:
    """The mark of a place whose keys may be another vault's too."""
    if provider.uri == old.uri:
        return {ADOPTED: old.params[ADOPTED]} if ADOPTED in old.params else {}
    shared = isinstance(provider, SharedPlace) and await provider.share(vault_id=vault_id)
    return {ADOPTED: "yes"} if shared else {}


def _was_not_written(store: DocumentStore, error: Exception) -> bool:
    """Whether a look at the storage can tell what became of a commit that failed so.

    A server may still be at a write that nobody got an answer to: of that no look can.
    """
    return store.shared is None or isinstance(error, ConflictError | KeyStateError)


async def _discard_unless_named(
    store: DocumentStore, provider: MasterKeyProvider, vault_id: str, made: MasterRecord
) -> None:
    """Takes back a key that was made for nothing; what is stored decides whether it was.

    Where that can't be read, the key stays: a later rotation passes over it.
    """
    with anyio.CancelScope(shield=True), contextlib.suppress(ApexCredsError):
        stored = await store.stored_keystore()
        if stored.root_header.master.version < made.version:
            await provider.discard(vault_id=vault_id, version=made.version)


async def discard_master(store: DocumentStore, version: int) -> None:
    """Deletes a master key that the key store has left behind; nothing needs it any more.

    Where the vault adopted keys that it did not make, all stay: they may be another's too.

    Raises:
        KeyStateError: The key store still names it.
        MasterKeyError: The provider does not answer, or can't be written.
    """
    keystore = await store.stored_keystore()
    record = keystore.root_header.master
    if version >= record.version:
        raise KeyStateError(
            f"Master key version {version} is in use.", hint="Rotate the master key first."
        )
    # Read back from the provider, not from memory: the old one must not go before that.
    with await store.masters.load(record, keystore.header.vault_id) as master:
        if master_check(master, vault_id=keystore.header.vault_id) != record.check:
            raise MasterKeyUnavailableError(
                f"The provider has another master key v{record.version} than the vault's.",
                hint="Nothing was deleted. Restore the key before anything else.",
            )
    if ADOPTED in record.params:
        return
    provider = store.masters.provider(record.uri)
    await provider.discard(vault_id=keystore.header.vault_id, version=version)


async def mark_keks_compromised(
    store: DocumentStore, versions: Collection[int], *, now: float
) -> None:
    """Flags KEK versions; those that are destroyed are passed over."""

    def mark(keks: Keyset) -> Keyset:
        for version in keks.versions:
            if version.version in versions and version.state is not KeyState.DESTROYED:
                keks = keks.mark_compromised(version.version, now=now)
        return keks

    await _change_keks(store, mark)


async def retire_keks(store: DocumentStore, *, now: float) -> frozenset[int]:
    """Retires the active KEK versions, if a scan shows that only the primary is in use.

    Returns:
        The versions that were retired.
    """

    def retire(keks: Keyset) -> Keyset:
        for version in keks.versions:
            if version.state is KeyState.ACTIVE and version.version in idle:
                keks = keks.retire(version.version, now=now)
        return keks

    idle = await _idle(store)
    return await _change_keks(store, retire)


async def destroy_keks(store: DocumentStore, *, before: float, now: float) -> frozenset[int]:
    """Destroys the retired KEK versions whose grace is over, after another scan.

    Args:
        store: The vault's documents.
        before: Those retired at that time or earlier go; compromised ones at once.
        now: The time of the change.

    Returns:
        The versions that were destroyed.
    """

    def destroy(keks: Keyset) -> Keyset:
        for version in keks.versions:
            due = version.compromised or grace_over(version.changed, before=before, now=now)
            if version.state is KeyState.RETIRED and version.version in idle and due:
                keks = keks.destroy(version.version, now=now)
        return keks

    idle = await _idle(store)
    return await _change_keks(store, destroy)


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


def _rekeyed(
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
        keks = _wrapped_keks(keks, bridge, record.version)
        root = _rewrapped(before.body.root, bridge, number)
        deks = tuple(_rewrapped(keyset, bridge, number) for keyset in before.body.deks)
    finally:
        bridge.close()
    hierarchy = Hierarchy.from_master(master, vault_id=vault_id, keks=keks)
    body = replace(before.body, root=root, deks=deks)
    made = Rekeyed(root=RootHeader(master=record, keks=keks), body=body, hierarchy=hierarchy)
    _compare(before, made)
    return made


def _wrapped_keks(keks: Keyset, bridge: Hierarchy, master_version: int) -> Keyset:
    """Earlier KEKs that this master key does not determine, wrapped under the new one."""
    number = keks.primary.version
    for version in keks.versions:
        foreign = is_wrapped(version) or version.parent != master_version
        if foreign and version.state is not KeyState.DESTROYED:
            wrapped = bridge.wrap_kek(version.version, under=number)
            keks = keks.rewrap(version.version, material=wrapped, parent=version.parent)
    return keks


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
