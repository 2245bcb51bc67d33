"""DEK steps of a rotation: retire, destroy, mark as compromised.

Guarantee: see ``documents.key_versions``, which has what other changes of keys share.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import partial

from apex_creds.documents import key_versions
from apex_creds.documents.key_versions import map_deks, step_unused
from apex_creds.documents.store import DocumentStore
from apex_creds.keys.keyset import Keyset, KeyState


async def retire_unused(
    store: DocumentStore, section: str, labels: Iterable[str], *, now: float
) -> frozenset[tuple[str, int]]:
    """Retires the active versions that no record of the section refers to.

    Returns:
        Key id and version of each that was retired.
    """
    return await step_unused(store, section, labels, partial(key_versions.retire, now=now))


async def destroy_retired(
    store: DocumentStore,
    section: str,
    labels: Iterable[str],
    *,
    before: float,
    now: float,
) -> frozenset[tuple[str, int]]:
    """Destroys the retired versions whose grace is over, after another scan.

    Args:
        store: The vault's documents.
        section: The section whose records the keysets protect.
        labels: The keysets.
        before: Those retired at that time or earlier go; compromised ones at once.
        now: The time of the change.

    Returns:
        Key id and version of each that was destroyed.
    """
    return await step_unused(
        store, section, labels, partial(key_versions.destroy, before=before, now=now)
    )


async def mark_compromised(
    store: DocumentStore, which: Mapping[str, Collection[int]], *, now: float
) -> None:
    """Flags versions by label; those that do not exist, or are destroyed, are passed over."""

    def mark(keyset: Keyset) -> Keyset:
        for version in keyset.versions:
            if (
                version.version in which[keyset.label]
                and version.state is not KeyState.DESTROYED
            ):
                keyset = keyset.mark_compromised(version.version, now=now)
        return keyset

    chosen = frozenset(which)
    await store.commit_keystore(lambda body: map_deks(body, chosen, mark))
