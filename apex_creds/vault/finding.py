"""The grants and the record of a credential, as of one moment.

Guarantee: both are current, and the key store in memory has the record's key: neither has
moved since the other was read. Other processes may be destroying keys.
"""

from __future__ import annotations

from apex_creds.concurrency import until_committed
from apex_creds.documents.store import DocumentStore
from apex_creds.vault.values import Facts

__all__ = ["facts", "facts_now"]


def facts_now(store: DocumentStore, name: str) -> Facts | None:
    """The facts, without waiting; None where memory is not current."""
    keystore = store.keystore_now()
    if keystore is None:
        return None
    found = store.sections.find_now(name)
    return None if found is None else Facts(keystore.grants, found.get(name))


async def facts(store: DocumentStore, name: str) -> Facts:
    """The facts as of some moment after the call.

    Raises:
        ConflictError: Other writers keep changing the vault.
    """

    async def attempt() -> Facts | None:
        await store.sections.read_all()
        await store.keystore()
        return facts_now(store, name)

    return await until_committed("keystore", attempt)
