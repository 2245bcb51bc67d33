"""What a migration must remember, as the document ``migration`` stores it.

Guarantee: immutable values, encrypted like everything in the vault, and without a secret.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final
from weakref import WeakKeyDictionary

import msgspec

from apex_creds.documents.cached import Document
from apex_creds.documents.store import DocumentStore
from apex_creds.migration.entries import Format

DOCUMENT: Final = "migration"
READER: Final = 1
"""Raised when the readers understand what they overlooked before."""


class Phase(StrEnum):
    """How far a source has come; each is durable before the next one begins.

    ``COPYING``: entries are being written. ``PARTIAL``: all were tried, and some are only in
    the source. ``COPIED``: all are in the vault; the files are being renamed.
    ``BACKED_UP``: they have their ``.bak`` names. ``ERASING``: those are being erased.
    ``DONE``: they are erased. ``LEFT``: all are in the vault, and the source stays.
    """

    COPYING = "copying"
    PARTIAL = "partial"
    COPIED = "copied"
    BACKED_UP = "backed up"
    ERASING = "erasing"
    DONE = "done"
    LEFT = "left in place"


OPEN: Final = (Phase.COPYING, Phase.PARTIAL)
"""While a source is in one of these, what is not in the vault is looked up there."""


class Written(msgspec.Struct, frozen=True, array_like=True):
    """An entry that is in the vault, or was put there once.

    Attributes:
        key: The entry's, within its source.
        name: The credential's.
        version: The credential's version then; 0: it was deleted on purpose.
    """

    key: str
    name: str
    version: int


class Backup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a source, its ``.bak`` name, and the SHA-256 of its content."""

    path: str
    backup: str
    digest: str


class SourceState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One source.

    Attributes:
        path: Names it, together with ``format``.
        digest: Of the content that was last read.
        began: Unix seconds; so is ``changed``, of the last phase.
        total: How many entries it has.
        missing: How many are only there.
        written: The entries that are in the vault.
        backups: Of the files, once all is copied.
        erase_at: Unix seconds; None: not before ``migrate finish``.
        granted: Whether its permissions have become grants.
        unread: How many of its entries nobody could read. Its files are never erased then.
        reader: Which readers read it; 0: those of a version that overlooked some layouts.
        agreed: Of the content that was last read without a conflict, which ``written``
            describes; empty where an earlier program wrote it.
    """

    format: Format
    path: str
    digest: str
    phase: Phase
    began: float
    changed: float
    total: int = 0
    missing: int = 0
    written: tuple[Written, ...] = ()
    backups: tuple[Backup, ...] = ()
    erase_at: float | None = None
    granted: bool = False
    unread: int = 0
    reader: int = 0
    agreed: str = ""

    @property
    def erasable(self) -> bool:
        """Whether all that its backups hold was read, and by readers that overlook nothing."""
        return self.phase is Phase.BACKED_UP and not self.unread and self.reader >= READER


class MigrationState(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The document.

    Attributes:
        automatic: Whether unsealing migrates what it finds.
        access_control: What ``enable_access_control`` of the old manager was given.
        intervals: Days by level of key, as an old configuration had them.
        applied: Whether the intervals have become rotation policy.
        titles: What the old manager's users call a credential, by its name.
    """

    sources: tuple[SourceState, ...] = ()
    automatic: bool = True
    access_control: bool = True
    intervals: dict[str, int] = {}
    applied: bool = False
    titles: dict[str, str] = {}

    def source(self, path: str) -> SourceState | None:
        """The state of a source."""
        return next((found for found in self.sources if found.path == path), None)

    def with_source(self, source: SourceState) -> MigrationState:
        """A copy in which ``source`` has this state."""
        others = tuple(found for found in self.sources if found.path != source.path)
        return msgspec.structs.replace(self, sources=(*others, source))


_documents: WeakKeyDictionary[DocumentStore, Document[MigrationState]] = WeakKeyDictionary()


def migration_document(store: DocumentStore) -> Document[MigrationState]:
    """The document; one object for all that use it in this process."""
    found = _documents.get(store)
    if found is None:
        found = Document(store, name=DOCUMENT, empty=MigrationState())
        _documents[store] = found
    return found
