"""What became of every entry of every source.

Guarantee: pure values without a secret; each entry of a source is in its report once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from apex_creds.migration.entries import Format
from apex_creds.migration.state import Phase


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
"""Those of which nobody knows what they are: what has them is never erased."""


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
        format: None where that could not be told.
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
        """How many entries nobody could read."""
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
