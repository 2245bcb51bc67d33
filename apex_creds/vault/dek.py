"""Steps in the life of a DEK: made, renewed, moved away from, destroyed.

Guarantee: each step is idempotent, and safe with writers in other processes. A version is
durable and read back before anything refers to it (rule 4). It is destroyed only after
every record of its section was read, in a generation that was committed after the version
stopped being primary: a writer that comes later bases itself on that generation, and so
on a key store in which the version no longer encrypts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import ConflictError
from apex_creds.keys.hierarchy import KEY_BYTES
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.storage.base import Shredded
from apex_creds.vault.keystore import Keystore, KeystoreBody
from apex_creds.vault.section import Record, Section, reseal_record
from apex_creds.vault.store import DocumentStore

_LIVE: Final = frozenset({KeyState.ACTIVE, KeyState.RETIRED})


async def ensure(store: DocumentStore, labels: Iterable[str], *, now: float) -> None:
    """Makes a keyset for each label that has none, in one commit."""
    keystore = await store.keystore()
    wanted = sorted(set(labels) - set(keystore.by_label))
    if not wanted:
        return
    made = {label: _new_keyset(keystore, label, now) for label in wanted}

    def change(body: KeystoreBody) -> KeystoreBody:
        have = {keyset.label for keyset in body.deks}
        missing = tuple(keyset for label, keyset in made.items() if label not in have)
        return msgspec.structs.replace(body, deks=(*body.deks, *missing)) if missing else body

    await store.commit_keystore(change)


async def renew(store: DocumentStore, label: str, *, now: float) -> None:
    """Gives a keyset a new primary: pending, committed and read back, then promoted."""
    keystore = await store.keystore()
    keyset = keystore.by_label.get(label)
    if keyset is None:
        return
    if keyset.pending is None:
        await _add_pending(store, keystore, keyset, now)
    await store.commit_keystore(lambda body: _update(body, label, lambda k: _promote(k, now)))


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

    def change(before: Section, keystore: Keystore) -> Mapping[str, Record]:
        _refuse_unshreddable(before.records.get(without), keystore, label)
        kept = {name: r for name, r in before.records.items() if name != without}
        keyset = keystore.by_label.get(label)
        if keyset is None:
            return kept
        key = keystore.hierarchy.unwrap(keyset, keyset.primary.version)
        vault_id = bytes.fromhex(keystore.header.vault_id)
        current = (bytes.fromhex(keyset.id), keyset.primary.version)
        for name, record in kept.items():
            if record.key[0] == current[0] and record.key != current:
                kept[name] = reseal_record(
                    record, vault_id=vault_id, find_key=keystore.dek, keyset=keyset, key=key
                )
        return kept

    return (await store.commit_section(section, change, shred=True))[1]


async def destroy_unused(store: DocumentStore, section: str, label: str, *, now: float) -> bool:
    """Destroys the versions of a label that no record refers to any more.

    Returns:
        Whether, as read back, no version but the primary is left that could decrypt.
    """
    used = _versions_used(await store.section(section), await store.keystore(), label)

    def destroy(keyset: Keyset) -> Keyset:
        for version in keyset.versions:
            if version.state in _LIVE and version.version not in used:
                if version.state is KeyState.ACTIVE:
                    keyset = keyset.retire(version.version, now=now)
                keyset = keyset.destroy(version.version, now=now)
        return keyset

    after = await store.commit_keystore(lambda body: _update(body, label, destroy))
    keyset = after.by_label.get(label)
    if keyset is None:
        return True
    for version in keyset.versions:
        if version.state is KeyState.DESTROYED:
            after.hierarchy.forget(keyset.id, version.version)
    return not any(version.state in _LIVE for version in keyset.versions)


def _refuse_unshreddable(record: Record | None, keystore: Keystore, label: str) -> None:
    keyset = keystore.by_label.get(label)
    if record is None or keyset is None:
        return
    key_id, version = record.key
    if key_id.hex() != keyset.id or version == keyset.primary.version:
        raise ConflictError("Other writers keep moving that credential.", hint="Try again.")


async def _add_pending(
    store: DocumentStore, keystore: Keystore, keyset: Keyset, now: float
) -> None:
    number = keyset.versions[-1].version + 1
    kek = keystore.header.kek_version
    with SecretBytes.random(KEY_BYTES) as key:
        wrapped = keystore.hierarchy.wrap(
            key, key_id=keyset.id, version=number, kek_version=kek
        )

    def add(found: Keyset) -> Keyset:
        if found.pending is not None or found.versions[-1].version + 1 != number:
            return found
        return found.add_pending(material=wrapped, parent=kek, now=now)

    await store.commit_keystore(lambda body: _update(body, keyset.label, add))


def _promote(keyset: Keyset, now: float) -> Keyset:
    return keyset.promote(keyset.pending.version, now=now) if keyset.pending else keyset


def _update(body: KeystoreBody, label: str, change: object) -> KeystoreBody:
    deks = tuple(change(k) if k.label == label else k for k in body.deks)  # type: ignore[operator]
    return body if deks == body.deks else msgspec.structs.replace(body, deks=deks)


def _versions_used(section: Section, keystore: Keystore, label: str) -> frozenset[int]:
    keyset = keystore.by_label.get(label)
    keys = (record.key for record in section.records.values())
    wanted = bytes.fromhex(keyset.id) if keyset else b""
    return frozenset(version for key_id, version in keys if key_id == wanted)


def _new_keyset(keystore: Keystore, label: str, now: float) -> Keyset:
    key_id = os.urandom(16).hex()
    kek = keystore.header.kek_version
    with SecretBytes.random(KEY_BYTES) as key:
        wrapped = keystore.hierarchy.wrap(key, key_id=key_id, version=1, kek_version=kek)
    return Keyset.new(id=key_id, label=label, material=wrapped, parent=kek, now=now)
