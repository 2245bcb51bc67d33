"""Declaring keys compromised: which versions that concerns, marked durably.

Guarantee: idempotent; with the numbers of the versions that there were at the time of the
event only those are marked, so that acting on it again after a crash does not rotate what
was rotated because of it. No clock is asked. A thief of a key can have everything that it
ever opened, so the levels below are marked with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from msgspec.structs import replace

from apex_creds.documents import key_versions
from apex_creds.documents.cached import Document
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import InvalidInputError, UnknownKeyError
from apex_creds.keys.keyset import Keyset
from apex_creds.scheduler import kek_rotation
from apex_creds.scheduler.rotation_state import (
    Numbers,
    RotationState,
    labels_of,
    newest_below,
    request_key,
)
from apex_creds.scheduler.schedule import Level


async def declare(
    store: DocumentStore,
    document: Document[RotationState],
    *,
    level: Level,
    service: str = "",
    version: int = 0,
    upto: Numbers | None = None,
) -> None:
    """Marks what may be in wrong hands; the state machine does the rest.

    Args:
        store: The vault's documents.
        document: Its document ``rotation``.
        level: Of the key.
        service: For a DEK: the service; empty for all.
        version: The version; 0 for all that there are.
        upto: The versions that there were when it happened, those of the levels below
            too; those that there are now when not given.

    Raises:
        CredentialNotFoundError: No credential is of that service.
        UnknownKeyError: There is no such version.
        InvalidInputError: A version of no particular DEK.
    """
    now, keystore = store.clock.time(), await store.keystore()
    if level is Level.DEK and version and not service:
        raise InvalidInputError("A version of which service?", hint="Name the service.")
    if upto is None:
        labels = labels_of(keystore, service) if level is Level.DEK else ()
        upto = newest_below(keystore, level, labels)
    if level is Level.DEK:
        await mark_deks_compromised(store, _deks(keystore, upto, version=version), now=now)
        return
    keks = keystore.root_header.keks
    if level is Level.KEK:
        chosen = frozenset(_numbers(keks, upto[request_key(level)], version))
        if version and not chosen:
            raise _no_version(version)
    else:
        if version > keystore.root_header.master.version:
            raise _no_version(version)
        lost = version or upto[request_key(level)]
        state = await document.change(
            lambda s: s if lost <= s.compromised_master else replace(s, compromised_master=lost)
        )
        most = state.compromised_master
        chosen = frozenset(v.version for v in keks.versions if v.parent <= most)
    await kek_rotation.mark_keks_compromised(store, chosen, now=now)
    await mark_deks_compromised(store, _deks(keystore, upto, under=chosen), now=now)


async def mark_deks_compromised(
    store: DocumentStore, which: Mapping[str, Collection[int]], *, now: float
) -> None:
    """Flags versions by label; see ``key_versions.mark_compromised``."""

    def mark(keyset: Keyset) -> Keyset:
        return key_versions.mark_compromised(keyset, which[keyset.label], now=now)

    labels = frozenset(which)
    await store.commit_keystore(lambda body: key_versions.map_deks(body, labels, mark))


def _deks(
    keystore: Keystore, upto: Numbers, *, version: int = 0, under: Collection[int] = ()
) -> dict[str, list[int]]:
    """DEK versions by label: those that there were, and what is under a lost KEK now.

    Which KEK opened a version earlier is not known, but that it was an earlier one.
    """
    chosen: dict[str, list[int]] = {}
    for label, keyset in keystore.by_label.items():
        most = upto.get(request_key(Level.DEK, label), 0)
        found = _numbers(keyset, most, version)
        found += [v.version for v in keyset.versions if v.parent in under]
        if found:
            chosen[label] = found
    if version and not chosen:
        raise _no_version(version)
    return chosen


def _numbers(keyset: Keyset, most: int, version: int) -> list[int]:
    return [
        v.version for v in keyset.versions if v.version <= most and version in (0, v.version)
    ]


def _no_version(version: int) -> UnknownKeyError:
    return UnknownKeyError(
        f"There is no version {version} of that key.", hint="See: apex-creds rotation status"
    )
