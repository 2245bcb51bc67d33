"""Documents under the KEK: sealed again under the primary one, and scanned for old ones.

Guarantee: a document keeps its content and loses no concurrent write. ``KekScan.only``
says that no document, key or KEK refers to another KEK version than the primary, and that
no writer is left who could: each commit is tied to the key store that it was computed from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from apex_creds.crypto import envelope
from apex_creds.documents.cached import Document
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.store import DocumentStore
from apex_creds.keys.hierarchy import is_wrapped
from apex_creds.keys.keyset import KeyState
from apex_creds.model import SECTIONS
from apex_creds.storage.base import STATE_DOCUMENTS

SECTION_NAMES: Final = tuple(SECTIONS.values())
DOCUMENTS: Final = (*SECTION_NAMES, *STATE_DOCUMENTS)
"""All that is sealed under KEK-derived keys, but for the key store itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KekScan:
    """What the KEK versions protect, as read just now.

    Attributes:
        primary: The primary version, as of after the documents were read.
        documents: KEK version by document; 0 for one that does not exist.
        keys: How many wrapped keys each version opens.
    """

    primary: int
    documents: Mapping[str, int]
    keys: Mapping[int, int]

    @property
    def stale(self) -> tuple[str, ...]:
        """The documents that are not sealed under the primary; those that don't exist too."""
        return tuple(name for name, v in self.documents.items() if v != self.primary)

    @property
    def only(self) -> bool:
        """Whether everything is under the primary."""
        return not self.stale and set(self.keys) <= {self.primary}

    def protects(self, version: int) -> int:
        """How many documents and keys a version protects."""
        documents = sum(v == version for v in self.documents.values())
        return documents + self.keys.get(version, 0)


async def scan(store: DocumentStore) -> KekScan:
    """Reads which KEK version protects what.

    Raises:
        IntegrityError: A document is not what this vault wrote.
    """
    await store.refresh_strict()
    documents: dict[str, int] = {}
    for name in SECTION_NAMES:
        documents |= await store.sections.kek_versions(name)
    for name in STATE_DOCUMENTS:
        documents[name] = await Document(store, name=name, empty=b"").kek_version()
    keystore = await store.keystore()
    primary = keystore.root_header.keks.primary.version
    return KekScan(primary=primary, documents=documents, keys=wrapped_under(keystore))


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
