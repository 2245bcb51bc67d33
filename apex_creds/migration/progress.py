"""How far a migration is, and what came of it: the state document, the report, the settings.

Guarantee: the state is committed before and after each step, so that a crash loses none; a
report has names, numbers and reasons, never values. An interval or a permission of an old
configuration is taken only in the form described; everything else in it becomes a note.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from weakref import WeakKeyDictionary

import msgspec

from apex_creds.documents.cached import Document
from apex_creds.documents.store import DocumentStore
from apex_creds.migration.entries import Format

# -- the state document ---------------------------------------------------------------------


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
"""While a source is in one of these, what is not in the vault is read there."""


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
        unread: How many of its entries could not be read. Its files are never erased then.
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


# -- the report -----------------------------------------------------------------------------


class Fate(StrEnum):
    """What became of an entry.

    In the vault: ``MIGRATED`` now, ``PRESENT`` already with the same value, ``REPLACED``
    (a new version, as the flag said), ``KEPT`` (the vault's other value, as the flag said),
    ``CHANGED`` or ``REMOVED`` there since an earlier run put it there.
    Nothing to store: ``PLACEHOLDER``, ``EMPTY``.
    Only in the source: ``CONFLICT``, ``UNREADABLE``, ``INVALID``, ``SKIPPED``.
    """

    MIGRATED = "migrated"
    PRESENT = "present"
    REPLACED = "replaced"
    KEPT = "kept"
    CHANGED = "changed"
    REMOVED = "removed"
    PLACEHOLDER = "placeholder"
    EMPTY = "empty"
    CONFLICT = "conflict"
    UNREADABLE = "unreadable"
    INVALID = "invalid"
    SKIPPED = "skipped"


MISSING: Final = frozenset({Fate.CONFLICT, Fate.UNREADABLE, Fate.INVALID, Fate.SKIPPED})
"""The fates of entries that only the source has."""
UNREAD: Final = MISSING - {Fate.CONFLICT}
"""Those that could not be read: what has them is never erased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryReport:
    """One entry.

    Attributes:
        service: As the source names it.
        kind: ``api_key``, ``oauth_token`` …
        name: Of its credential; empty where there is none.
        detail: Why, in words.
        origins: Where its credential may be sent.
        delivery: How it is sent.
    """

    service: str
    kind: str
    name: str
    fate: Fate
    detail: str = ""
    origins: tuple[str, ...] = ()
    delivery: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceReport:
    """One source.

    Attributes:
        format: None where that is not known.
        phase: How far it has come; None where nothing was done.
        problem: Why nothing in it could be read; empty where something was.
        backups: The new names of its files.
        notes: What the operator should know.
    """

    path: str
    format: Format | None
    entries: tuple[EntryReport, ...] = ()
    phase: Phase | None = None
    problem: str = ""
    hint: str = ""
    backups: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[Fate]:
        """How many entries had which fate."""
        return Counter(entry.fate for entry in self.entries)

    @property
    def missing(self) -> int:
        """How many entries only the source has."""
        return sum(entry.fate in MISSING for entry in self.entries)

    @property
    def nowhere(self) -> tuple[str, ...]:
        """The names of credentials that may be sent nowhere yet."""
        return tuple(e.name for e in self.entries if e.delivery and not e.origins)

    @property
    def unread(self) -> int:
        """How many entries could not be read."""
        return sum(entry.fate in UNREAD for entry in self.entries)

    @property
    def complete(self) -> bool:
        """Whether the source is not needed any more."""
        return not self.problem and not self.missing


@dataclass(frozen=True, slots=True)
class Report:
    """All sources that were found."""

    sources: Sequence[SourceReport] = ()
    dry_run: bool = False

    @property
    def complete(self) -> bool:
        """Whether no source is needed any more."""
        return all(source.complete for source in self.sources)


# -- the old configuration ------------------------------------------------------------------


LEVELS: Final = ("master_key", "key_encryption_keys", "data_encryption_keys")
"""The names that the old manager gives the levels of keys."""
MAX_DAYS: Final = 36_500

_PERMISSIONS: Final = ("plugin_permissions", "permissions")
_DAYS: Final = ("rotation_interval_days", "interval_days", "rotation_interval", "days")
_DEPTH: Final = 6

Permissions = dict[str, tuple[str, ...]]


def read_config(
    data: bytes, metadata: object = None
) -> tuple[Permissions, dict[str, int], tuple[str, ...]]:
    """Permissions by plugin, days by level, notes.

    Args:
        data: The file's bytes; empty where there is none.
        metadata: The key store's ``metadata``, which may have intervals too.
    """
    notes: list[str] = []
    try:
        document = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        document = {}
        notes.append("config.json is not JSON: its intervals and permissions are not taken.")
    permissions: Permissions = {}
    intervals: dict[str, int] = {}
    for name, value in (*_walk(metadata), *_walk(document)):
        days = value
        if isinstance(value, dict):
            days = next((value[unit] for unit in _DAYS if unit in value), None)
        if name in LEVELS and type(days) is int and 1 <= days <= MAX_DAYS:
            intervals[name] = days
        if name in _PERMISSIONS and isinstance(value, dict):
            permissions |= {
                plugin: tuple(text for text in services if isinstance(text, str))
                for plugin, services in value.items()
                if isinstance(services, list)
            }
    return permissions, intervals, tuple(notes)


def _walk(value: object, depth: int = 0) -> Iterator[tuple[str, object]]:
    if not isinstance(value, dict) or depth > _DEPTH:
        return
    for name, inner in value.items():
        yield name, inner
        yield from _walk(inner, depth + 1)
