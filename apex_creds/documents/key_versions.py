"""DEK versions: made, promoted, moved away from, destroyed; what all who change keys share.

Guarantee: each step is idempotent, and safe with writers in other processes. A version is
durable and read back before anything refers to it (rule 4). It is destroyed only after a
scan that shows that no record names it; every commit is tied to the key store, so nobody
seals under it any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final

from msgspec.structs import replace

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import observe
from apex_creds.documents.keystore import Keystore, KeystoreBody
from apex_creds.documents.records import Record, reseal_record
from apex_creds.documents.sections import Changes, Section
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ConflictError
from apex_creds.keys.hierarchy import KEY_BYTES
from apex_creds.keys.keyset import Keyset, KeyState, grace_over
from apex_creds.storage.base import Shredded

_LIVE: Final = frozenset({KeyState.ACTIVE, KeyState.RETIRED})


async def ensure(store: DocumentStore, labels: Iterable[str], *, now: float) -> None:
    """Makes a keyset for each label that has none, in one commit."""
    wanted = sorted(set(labels))
    if set(wanted) <= set((await store.keystore()).by_label):
        return

    def change(before: Keystore) -> KeystoreBody:
        missing = [label for label in wanted if label not in before.by_label]
        make, kek = before.hierarchy.new_keyset, before.header.key_version
        made = (make(label, kek_version=kek, now=now) for label in missing)
        return replace(before.body, deks=(*before.body.deks, *made)) if missing else before.body

    await store.commit_rekeyed(change, size=len(wanted))


async def renew(store: DocumentStore, label: str, *, now: float) -> None:
    """Gives a keyset a new primary: pending, committed and read back, then promoted."""
    await renew_all(store, [label], now=now)


@observe.renewing
async def renew_all(
    store: DocumentStore,
    labels: Iterable[str],
    *,
    now: float,
    replaces: Mapping[str, int] | None = None,
) -> None:
    """As ``renew``, for several keysets at once: two commits for all of them.

    One that has a pending version already, from a rotation that was interrupted, gets
    that one promoted.

    Args:
        store: The vault's documents.
        labels: The keysets.
        now: The time of the change.
        replaces: The primary version of each label that is to be replaced; where it was
            replaced already, nothing happens.
    """
    chosen = frozenset(labels)
    if not chosen:
        return

    def change(before: Keystore) -> KeystoreBody:
        return map_deks(
            before.body,
            chosen,
            lambda k: (
                _add(before, k, now)
                if replaces is None or replaces[k.label] == k.primary.version
                else k
            ),
        )

    await store.commit_rekeyed(change)
    await promote_all(store, chosen, now=now)


async def promote_all(store: DocumentStore, labels: Iterable[str], *, now: float) -> None:
    """Makes the pending versions primary; one that is compromised is given up."""

    def promoted(keyset: Keyset) -> Keyset:
        pending = keyset.pending
        if pending is None:
            return keyset
        if pending.compromised:
            return keyset.abandon(pending.version, now=now)
        return keyset.promote(pending.version, now=now)

    chosen = frozenset(labels)
    await store.commit_rekeyed(lambda keystore: map_deks(keystore.body, chosen, promoted))


@observe.reencrypting
async def move_records(
    store: DocumentStore, section: str, label: str, *, without: str = ""
) -> Shredded:
    """Re-encrypts a label's records under its primary, and drops the record ``without``.

    Returns:
        What became of the bytes that the new document replaced.

    Raises:
        ConflictError: Other writers moved that record to a key that stays: destroying the
            old versions would not shred it. Renew its present label, and try again.
    """

    def change(before: Section, keystore: Keystore) -> Changes:
        records = before.records
        changes: dict[str, Record | None] = {without: None} if without in records else {}
        keyset = keystore.by_label.get(label)
        if keyset is None:
            return changes
        if without in records:
            key_id, version = records[without].key
            if key_id.hex() != keyset.id or version == keyset.primary.version:
                raise ConflictError(
                    "Other writers keep moving that credential.", hint="Try again."
                )
        key = keystore.hierarchy.unwrap(keyset, keyset.primary.version)
        vault_id = bytes.fromhex(keystore.header.vault_id)
        current = (bytes.fromhex(keyset.id), keyset.primary.version)
        for name, record in records.items():
            if name != without and record.key[0] == current[0] and record.key != current:
                changes[name] = reseal_record(
                    record, vault_id=vault_id, find_key=keystore.dek, keyset=keyset, key=key
                )
        return changes

    return (await store.sections.commit(section, change, shred=True))[1]


async def destroy_unused(store: DocumentStore, section: str, label: str, *, now: float) -> bool:
    """Destroys the versions of a label that no record refers to any more, without grace.

    Returns:
        Whether, as read back, no version but the primary is left that could decrypt.
    """
    await step_unused(store, section, [label], partial(destroy_now, now=now))
    return is_alone((await store.keystore()).by_label.get(label))


def destroy_now(keyset: Keyset, spent: Collection[int], *, now: float) -> Keyset:
    """A step: destroys versions without grace."""
    return destroy(retire(keyset, spent, now=now), spent, before=math.inf, now=now)


def is_alone(keyset: Keyset | None) -> bool:
    """Whether no version of a keyset but the primary could decrypt."""
    return keyset is None or not any(version.state in _LIVE for version in keyset.versions)


async def left_behind(store: DocumentStore, section: str) -> list[str]:
    """The labels with a version that no record needs and that still decrypts.

    A deletion leaves none; one that was interrupted does, and so does a rotation for the
    moment before it retires what it has moved away from.
    """
    known = (await store.keystore()).by_label.values()
    used = (await store.sections.read(section)).keys_used
    return [
        keyset.label
        for keyset in known
        if keyset.label.startswith(f"{section}/")
        and any(
            version.state is KeyState.ACTIVE and (keyset.id, version.version) not in used
            for version in keyset.versions
        )
    ]


async def step_unused(
    store: DocumentStore,
    section: str,
    labels: Iterable[str],
    step: Callable[[Keyset, Collection[int]], Keyset],
) -> frozenset[tuple[str, int]]:
    """Takes ``step`` with the versions that no record of a section names.

    Returns:
        Key id and version of each whose state changed.
    """
    chosen = frozenset(labels)
    await store.refresh_strict()
    keysets = (await store.keystore()).by_label
    known = [keysets[label] for label in chosen & keysets.keys()]
    used = (await store.sections.read(section)).keys_used
    return await step_spent(store, known, used, step)


async def step_spent(
    store: DocumentStore,
    known: Iterable[Keyset],
    used: Collection[tuple[str, int]],
    step: Callable[[Keyset, Collection[int]], Keyset],
) -> frozenset[tuple[str, int]]:
    """As ``step_unused``, where the keysets and the versions in use are known."""
    spent = {
        keyset.label: [
            version.version
            for version in keyset.versions
            if version.state in _LIVE and (keyset.id, version.version) not in used
        ]
        for keyset in known
    }
    changed: frozenset[tuple[str, int]] = frozenset()

    def change(body: KeystoreBody) -> KeystoreBody:
        nonlocal changed
        after = map_deks(body, frozenset(spent), lambda k: step(k, spent[k.label]))
        changed = frozenset(
            (new.id, version.version)
            for old, new in zip(body.deks, after.deks, strict=True)
            if new is not old
            for version in new.versions
            if old.get(version.version).state is not version.state
        )
        return after

    after = await store.commit_keystore(change)
    for key_id, version in changed:
        if after.by_id[bytes.fromhex(key_id)].get(version).state is KeyState.DESTROYED:
            after.hierarchy.forget(key_id, version)
    return changed


def map_deks(
    body: KeystoreBody, labels: Collection[str], change: Callable[[Keyset], Keyset]
) -> KeystoreBody:
    """The body with some keysets changed; the same object if none was."""
    deks = tuple(change(k) if k.label in labels else k for k in body.deks)
    if all(new is old for new, old in zip(deks, body.deks, strict=True)):
        return body
    return replace(body, deks=deks)


def retire(keyset: Keyset, spent: Collection[int], *, now: float) -> Keyset:
    """A step: retires versions that are active."""
    for number in spent:
        if keyset.get(number).state is KeyState.ACTIVE:
            keyset = keyset.retire(number, now=now)
    return keyset


def mark_compromised(keyset: Keyset, lost: Collection[int], *, now: float) -> Keyset:
    """Flags versions; those that do not exist, or are destroyed, are passed over."""
    for version in keyset.versions:
        if version.version in lost and version.state is not KeyState.DESTROYED:
            keyset = keyset.mark_compromised(version.version, now=now)
    return keyset


def destroy(keyset: Keyset, spent: Collection[int], *, before: float, now: float) -> Keyset:
    """A step: destroys versions that are retired, and whose grace is over."""
    for number in spent:
        version = keyset.get(number)
        due = version.compromised or grace_over(version.changed, before=before, now=now)
        if version.state is KeyState.RETIRED and due:
            keyset = keyset.destroy(number, now=now)
    return keyset


def _add(keystore: Keystore, keyset: Keyset, now: float) -> Keyset:
    """Adds a pending version, wrapped under the KEK that is primary in the same commit."""
    if keyset.pending is not None:
        return keyset
    number = keyset.versions[-1].version + 1
    kek = keystore.header.key_version
    with SecretBytes.random(KEY_BYTES) as key:
        wrapped = keystore.hierarchy.wrap(
            key, key_id=keyset.id, version=number, kek_version=kek
        )
    return keyset.add_pending(material=wrapped, parent=kek, now=now)
