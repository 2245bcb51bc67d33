"""What a vault says of its keys when metrics are collected.

Guarantee: only what is in memory is looked at, and only when it changed since; a sealed
vault says nothing.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from apex_creds.documents.keystore import Keystore
from apex_creds.documents.sections import Section
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import VaultSealedError
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.telemetry import instruments, semconv, tracing
from apex_creds.telemetry.instruments import KeyAge

if TYPE_CHECKING:
    from apex_creds.vault.vault import Vault

P = ParamSpec("P")
V = TypeVar("V", bound="Vault")


class KeyGauges:
    """Ages of keys, and records left to re-encrypt, of one vault."""

    def __init__(self, store: DocumentStore) -> None:
        self._store = store
        self._counted: dict[str, tuple[Section, Keystore, int]] = {}

    def key_ages(self) -> Iterator[KeyAge]:
        """The oldest version of each level and state."""
        try:
            keystore = self._store.unsealed()
        except VaultSealedError:
            return
        now = self._store.clock.time()
        keks, master = keystore.root_header.keks, keystore.root_header.master
        yield from _ages("kek", (keks,), now)
        yield from _ages("dek", (keystore.body.root, *keystore.body.deks), now)
        # A master key has no date of its own; its first KEK was made with it.
        made = [v.created for v in keks.versions if v.parent == master.version]
        if made:
            yield KeyAge("master", KeyState.PRIMARY.value, now - min(made))

    def key_versions(self) -> Counter[tuple[str, str]]:
        """How many versions each level has in each state; destroyed ones are counted."""
        try:
            keystore = self._store.unsealed()
        except VaultSealedError:
            return Counter()
        found = Counter({("master", KeyState.PRIMARY.value): 1})
        for version in keystore.root_header.keks.versions:
            found["kek", version.state.value] += 1
        for keyset in (keystore.body.root, *keystore.body.deks):
            found.update(("dek", version.state.value) for version in keyset.versions)
        return found

    def records_left(self) -> int:
        """How many credentials in memory are not under their keyset's primary version."""
        try:
            keystore = self._store.unsealed()
        except VaultSealedError:
            return 0
        return sum(
            self._left(section, keystore) for section in self._store.sections.in_memory()
        )

    def _left(self, section: Section, keystore: Keystore) -> int:
        known = self._counted.get(section.name)
        if known is None or known[0] is not section or known[1] is not keystore:
            count = _count(section, keystore)
            known = self._counted[section.name] = (section, keystore, count)
        return known[2]


def observed(unseal: Callable[P, Awaitable[V]]) -> Callable[P, Awaitable[V]]:
    """``unseal`` within a span; the vault that it returns is watched by metrics."""

    @functools.wraps(unseal)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> V:
        if not tracing.on():
            return _watched(await unseal(*args, **kwargs))
        with tracing.step(semconv.UNSEAL) as step:
            vault = _watched(await unseal(*args, **kwargs))
            step.set(semconv.VAULT, vault.vault_id)
            step.set(semconv.AUDIT_SIZE, vault.audit.seq)
            return vault

    return wrapped


def _watched(vault: V) -> V:
    instruments.watch_keys(vault, KeyGauges(vault._store))
    return vault


def _ages(level: str, keysets: tuple[Keyset, ...], now: float) -> Iterator[KeyAge]:
    oldest: dict[KeyState, float] = {}
    for keyset in keysets:
        for version in keyset.versions:
            before = oldest.get(version.state, version.created)
            oldest[version.state] = min(before, version.created)
    for state, created in oldest.items():
        if state is not KeyState.DESTROYED:
            yield KeyAge(level, state.value, now - created)


def _count(section: Section, keystore: Keystore) -> int:
    primary = {key: keyset.primary.version for key, keyset in keystore.by_id.items()}
    if all(primary.get(bytes.fromhex(key)) == at for key, at in section.keys_used):
        return 0
    keys = (record.key for record in section.records.values())
    return sum(primary.get(key) != version for key, version in keys)
