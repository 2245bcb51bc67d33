"""Where a credential is, and the grants and the record of it as of one moment.

Guarantee: what is found without waiting is current; a record that is found, awaited or
not, has its key in the key store that is in memory, unless that was destroyed meanwhile.
"""

from __future__ import annotations

from typing import Final

from apex_creds.documents.keystore import Keystore
from apex_creds.documents.records import Record
from apex_creds.documents.shared import SharedStore
from apex_creds.documents.store import ATTEMPTS, DocumentStore
from apex_creds.errors import ConflictError
from apex_creds.keys.keyset import KeyState
from apex_creds.model import SECTIONS
from apex_creds.policy.grants import Grants
from apex_creds.vault.values import Facts

__all__ = ["facts", "search_now"]

_NAMES: Final = tuple(SECTIONS.values())


def search_now(
    store: DocumentStore, name: str, grants: Grants, where: dict[str, str]
) -> Facts | None:
    """The facts, looked for in every section; None where memory is not current.

    Args:
        store: The vault's documents.
        name: The credential's.
        grants: Those of the key store, which is current.
        where: Told in which section it is.
    """
    if isinstance(store, SharedStore):
        found = store.find_now(name)
        return None if found is None else Facts(grants, found.get(name))
    for candidate in _NAMES:
        section = store.section_now(candidate)
        if section is None:
            return None
        if name in section.records:
            where[name] = candidate
            return Facts(grants, section.records[name])
    return Facts(grants, None)


async def facts(store: DocumentStore, name: str, where: dict[str, str]) -> Facts:
    """The facts as of some moment after the call.

    The key store is read after the section, so it has every key that is named there; one
    that was destroyed between the two is looked for again.
    """
    if store.shared is not None:
        return await _settled(store, name)
    found = await _facts(store, name, where)
    for _ in range(ATTEMPTS):
        if found.record is None or not _destroyed(store.unsealed(), found.record):
            break
        found = await _facts(store, name, where)
    return found


def _destroyed(keystore: Keystore, record: Record) -> bool:
    """Whether a record's key is; what else may be wrong is said by who opens it."""
    key_id, number = record.key
    keyset = keystore.by_id.get(key_id)
    return keyset is not None and any(
        version.version == number and version.state is KeyState.DESTROYED
        for version in keyset.versions
    )


async def _facts(store: DocumentStore, name: str, where: dict[str, str]) -> Facts:
    known = where.get(name)
    for candidate in dict.fromkeys((known, *_NAMES) if known else _NAMES):
        record = (await store.section(candidate)).records.get(name)
        if record is not None:
            where[name] = candidate
            return Facts((await store.keystore()).grants, record)
    return Facts((await store.keystore()).grants, None)


async def _settled(store: DocumentStore, name: str) -> Facts:
    """Both as of one look: other processes may be destroying keys."""
    for _ in range(ATTEMPTS):
        await store.sections(_NAMES)
        await store.keystore()
        keystore = store.keystore_now()
        found = None
        if keystore is not None:
            found = search_now(store, name, keystore.grants, {})
        if found is not None:
            return found
    raise ConflictError("Other writers keep changing the vault.", hint="Try again.")
