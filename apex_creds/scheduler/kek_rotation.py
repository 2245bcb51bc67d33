"""What KEKs and document keys protect, as a scan of every document shows.

Guarantee: what a ``KeyScan`` finds is all that refers, or ever will, to the versions that
were not primary when it began: each commit is tied to the key store that it was computed
from, and the scan reads that first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from apex_creds.crypto import envelope
from apex_creds.documents import key_versions
from apex_creds.documents.cached import Document
from apex_creds.documents.document import KeyName
from apex_creds.documents.keystore import DOCUMENTS_LABEL, Keystore
from apex_creds.documents.store import DocumentStore
from apex_creds.keys.hierarchy import is_wrapped
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.model import SECTIONS
from apex_creds.storage.base import STATE_DOCUMENTS

SECTION_NAMES: Final = tuple(SECTIONS.values())
DOCUMENTS: Final = (*SECTION_NAMES, *STATE_DOCUMENTS)
"""All that there may be, but for the key store itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyScan:
    """What KEKs and document keys protect, as read just now.

    Attributes:
        keystore: As of before the documents were read.
        documents: The key version that each document is under: a KEK's, if it is of version 1.
        keys: How many wrapped keys each KEK version opens.
    """

    keystore: Keystore
    documents: Mapping[str, KeyName]
    keys: Mapping[int, int]

    @property
    def keks(self) -> Keyset:
        """The KEKs."""
        return self.keystore.root_header.keks

    @property
    def stale(self) -> tuple[str, ...]:
        """The documents that are under a key version that is not primary."""
        found = (self.keks, self.keystore.by_label.get(DOCUMENTS_LABEL))
        primaries = {(each.id, each.primary.version) for each in found if each}
        return tuple(name for name, key in self.documents.items() if key not in primaries)

    @property
    def only(self) -> bool:
        """Whether nothing is under another KEK than the primary."""
        primary = self.keks.primary.version
        return {*self.keys, *self.under(self.keks)} <= {primary}

    def under(self, keyset: Keyset) -> Counter[int]:
        """How many documents are under each version of a keyset."""
        return Counter(at for key_id, at in self.documents.values() if key_id == keyset.id)

    def protects(self, version: int) -> int:
        """How many documents and keys a KEK version protects."""
        return self.under(self.keks)[version] + self.keys.get(version, 0)


async def scan(store: DocumentStore) -> KeyScan:
    """Reads which KEK and document key versions protect what.

    Raises:
        IntegrityError: A document is not what this vault wrote.
    """
    await store.refresh_strict()
    keystore = await store.keystore()
    documents: dict[str, KeyName] = {}
    for name in SECTION_NAMES:
        documents |= await store.sections.keys(name)
    for name in STATE_DOCUMENTS:
        key = await Document(store, name=name, empty=b"").key()
        if key is not None:
            documents[name] = key
    return KeyScan(keystore=keystore, documents=documents, keys=wrapped_under(keystore))


def wrapped_under(keystore: Keystore) -> dict[int, int]:
    """How many wrapped keys each KEK version opens."""
    counts: dict[int, int] = {}
    for keyset in (keystore.body.root, *keystore.body.deks):
        for version in keyset.versions:
            if version.state is not KeyState.DESTROYED:
                counts[version.parent] = counts.get(version.parent, 0) + 1
    for version in filter(is_wrapped, keystore.root_header.keks.versions):
        under = envelope.header(version.material)[1]
        counts[under] = counts.get(under, 0) + 1
    return counts


async def step_unused(
    store: DocumentStore, step: Callable[[Keyset, Collection[int]], Keyset]
) -> None:
    """Takes ``step`` with the document key versions that no document is under."""
    found = await scan(store)
    keyset = found.keystore.by_label.get(DOCUMENTS_LABEL)
    if keyset is not None:
        await key_versions.step_spent(store, [keyset], set(found.documents.values()), step)
