"""Declaring keys compromised: which versions that concerns, marked durably.

Guarantee: idempotent; only versions that existed at the time of the event are marked, so
that acting on it again after a crash does not rotate what was rotated because of it. Who
has a key can have everything that it ever opened, so the levels below are marked with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from apex_creds.errors import CredentialNotFoundError, InvalidInputError, UnknownKeyError
from apex_creds.keys.keyset import Keyset, KeyState, KeyVersion
from apex_creds.scheduler.policy import Level
from apex_creds.scheduler.state import RotationState
from apex_creds.vault import dek, rotate
from apex_creds.vault.keystore import Keystore
from apex_creds.vault.reseal import SECTION_NAMES
from apex_creds.vault.state import StateDocument
from apex_creds.vault.store import DocumentStore


async def declare(
    store: DocumentStore,
    document: StateDocument[RotationState],
    *,
    level: Level,
    at: float,
    service: str = "",
    version: int = 0,
) -> None:
    """Marks what may be in wrong hands; the state machine does the rest.

    Args:
        store: The vault's documents.
        document: Its document ``rotation``.
        level: Of the key.
        at: When; a key that was made later is not concerned.
        service: For a DEK: the service; empty for all.
        version: The version; 0 for all that there are.

    Raises:
        CredentialNotFoundError: No credential is of that service.
        UnknownKeyError: There is no such version.
        InvalidInputError: A version of no particular DEK.
    """
    now = store.clock.time()
    labels = await labels_of(store, service) if level is Level.DEK else []
    keystore = await store.keystore()  # after the labels, so that it has them
    if level is Level.DEK:
        if version and not service:
            raise InvalidInputError("A version of which service?", hint="Name the service.")
        await dek.mark_compromised(store, _versions(keystore, labels, version, at), now=now)
        return
    keks = keystore.root_header.keks
    if level is Level.KEK:
        chosen = _of_keks(keks, version, at)
    else:
        state = await document.change(lambda s: _master(s, keks, version, at))
        upto = state.compromised_master
        chosen = frozenset(v.version for v in keks.versions if v.parent <= upto)
    await rotate.mark_keks_compromised(store, chosen, now=now)
    every = [keyset.label for keyset in keystore.body.deks]
    await dek.mark_compromised(store, _opened_by(keystore, every, chosen, at), now=now)


async def labels_of(store: DocumentStore, service: str) -> list[str]:
    """The DEK keysets of a service; of every section without one.

    Raises:
        CredentialNotFoundError: There is none.
    """
    known = (await store.keystore()).by_label
    if not service:
        return [label for label in known if label.partition("/")[0] in SECTION_NAMES]
    found = [f"{name}/{service}" for name in SECTION_NAMES if f"{name}/{service}" in known]
    if not found:
        raise CredentialNotFoundError(
            "No credential is of that service.", hint="See: apex-creds list"
        )
    return found


def _versions(
    keystore: Keystore, labels: Collection[str], version: int, at: float
) -> dict[str, list[int]]:
    chosen: dict[str, list[int]] = {}
    for label in labels:
        keyset = keystore.by_label[label]
        chosen[label] = [v.version for v in _existed(keyset, at) if version in (0, v.version)]
    if version and not any(chosen.values()):
        raise _no_version(version)
    return chosen


def _of_keks(keks: Keyset, version: int, at: float) -> frozenset[int]:
    if version:
        return frozenset({keks.get(version).version})
    return frozenset(v.version for v in _existed(keks, at))


def _opened_by(
    keystore: Keystore, labels: Collection[str], keks: Collection[int], at: float
) -> Mapping[str, list[int]]:
    """DEK versions that existed while one of these KEKs was the one that wraps."""
    versions = keystore.root_header.keks.versions
    later = [v.created for v in versions if v.version > max(keks, default=0)]
    until = min(later, default=at)
    return {
        label: [
            v.version
            for v in _existed(keystore.by_label[label], at)
            if v.created <= until and v.state is not KeyState.DESTROYED
        ]
        for label in labels
    }


def _existed(keyset: Keyset, at: float) -> list[KeyVersion]:
    """The versions that there were at a time.

    One of that very instant was there, unless something was marked since: then it may be
    what took the place of that.
    """
    marked = any(v.compromised and v.changed >= at for v in keyset.versions)
    return [v for v in keyset.versions if v.created < at or (v.created == at and not marked)]


def _master(state: RotationState, keks: Keyset, version: int, at: float) -> RotationState:
    """Not of the present master key alone: that may have come between event and reaction.

    One that began at that very instant was there, unless something was marked before: then
    it may be what took the place of that.
    """
    began: dict[int, float] = {}
    for kek in keks.versions:
        began[kek.parent] = min(kek.created, began.get(kek.parent, kek.created))
    marked = bool(state.compromised_master)
    there = [n for n, time in began.items() if time < at or (time == at and not marked)]
    if version and version not in there and version in began:
        return state
    upto = version or max(there, default=0)
    if upto <= state.compromised_master:
        return state
    return replace(state, compromised_master=upto)


def _no_version(version: int) -> UnknownKeyError:
    return UnknownKeyError(
        f"There is no version {version} of that key.", hint="See: apex-creds rotation status"
    )
