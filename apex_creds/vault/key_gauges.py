"""What a vault says of its keys when metrics are collected.

Guarantee: only what is in memory is read, and only when it changed since; a sealed
vault says nothing.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Final

from apex_creds.documents.keystore import Keystore
from apex_creds.documents.sections import Section
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import VaultSealedError
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.model import SECTIONS, ConnectionState, CredentialKind, RotationHealth
from apex_creds.telemetry.instruments import KeyAge

_NONE: Final = {(state.value,): 0 for state in ConnectionState}
_NO_ROTATION: Final = {(health.value,): 0 for health in RotationHealth}


class KeyGauges:
    """Ages of keys, records left to re-encrypt, connections and rotations, of one vault."""

    def __init__(self, store: DocumentStore) -> None:
        self._store = weakref.ref(store)  # metrics keep no vault alive
        self._counted: dict[str, tuple[Section, Keystore, int]] = {}
        self._connected: tuple[Section | None, Counter[tuple[str]]] = None, Counter(_NONE)
        self._rotated: dict[str, tuple[Section, Counter[tuple[str]]]] = {}

    def key_ages(self) -> Iterator[KeyAge]:
        """The oldest version of each level and state."""
        store, keystore = self._now()
        if store is None or keystore is None:
            return
        now = store.clock.time()
        keks, master = keystore.root_header.keks, keystore.root_header.master
        yield from _ages("kek", (keks,), now)
        yield from _ages("dek", (keystore.body.root, *keystore.body.deks), now)
        # A master key has no date; its first KEK was made with it.
        made = [v.created for v in keks.versions if v.parent == master.version]
        if made:
            yield KeyAge("master", KeyState.PRIMARY.value, now - min(made))

    def key_versions(self) -> Counter[tuple[str, str]]:
        """How many versions each level has in each state; destroyed ones are counted."""
        _, keystore = self._now()
        if keystore is None:
            return Counter()
        found = Counter({("master", KeyState.PRIMARY.value): 1})
        for version in keystore.root_header.keks.versions:
            found["kek", version.state.value] += 1
        for keyset in (keystore.body.root, *keystore.body.deks):
            found.update(("dek", version.state.value) for version in keyset.versions)
        return found

    def records_left(self) -> int:
        """How many credentials in memory are not under their keyset's primary version."""
        store, keystore = self._now()
        if store is None or keystore is None:
            return 0
        left = 0
        for section in store.sections.in_memory():
            known = self._counted.get(section.name)
            if known is None or known[0] is not section or known[1] is not keystore:
                count, keys = 0, keystore.by_id.items()
                primary = {key: keyset.primary.version for key, keyset in keys}
                if any(primary.get(bytes.fromhex(key)) != at for key, at in section.keys_used):
                    used = (record.key for record in section.records.values())
                    count = sum(primary.get(key) != version for key, version in used)
                known = self._counted[section.name] = (section, keystore, count)
            left += known[2]
        return left

    def connections(self) -> Counter[tuple[str]]:
        """How many OAuth connections in memory are in each state."""
        store, _ = self._now()
        tokens = SECTIONS[CredentialKind.OAUTH_TOKEN]
        for section in () if store is None else store.sections.in_memory():
            if section.name == tokens and section is not self._connected[0]:
                states = (r.info.connection for r in section.records.values())
                counts = Counter((each.state.value,) for each in states if each)
                counts.update(_NONE)  # so that an alert sees the first one that is lost
                self._connected = section, counts
        return self._connected[1]

    def rotations(self) -> Counter[tuple[str]]:
        """How many credentials in memory that have a rotator are how."""
        store, _ = self._now()
        for section in () if store is None else store.sections.in_memory():
            known = self._rotated.get(section.name)
            if known is None or known[0] is not section:
                found = (r.info.rotation for r in section.records.values())
                counts = Counter((each.health.value,) for each in found if each)
                self._rotated[section.name] = section, counts
        total = Counter(_NO_ROTATION)  # so that an alert sees the first one that fails
        for _, counts in self._rotated.values():
            total.update(counts)
        return total

    def _now(self) -> tuple[DocumentStore | None, Keystore | None]:
        """The documents, and the key store in memory; None where there is none."""
        store = self._store()
        try:
            return store, None if store is None else store.unsealed()
        except VaultSealedError:
            return store, None


def _ages(level: str, keysets: tuple[Keyset, ...], now: float) -> Iterator[KeyAge]:
    oldest: dict[KeyState, float] = {}
    for keyset in keysets:
        for version in keyset.versions:
            before = oldest.get(version.state, version.created)
            oldest[version.state] = min(before, version.created)
    for state, created in oldest.items():
        if state is not KeyState.DESTROYED:
            yield KeyAge(level, state.value, now - created)
