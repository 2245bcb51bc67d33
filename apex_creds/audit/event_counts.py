"""How many events of which kind a log has, kept up to date by reading what is new.

Guarantee: the counts cover the whole log, from its first event on and by all processes that
write it; so they only grow, also over restarts, and there are none before all of it was
read. Reasons are counted apart only where they are a closed set; everything else in an event is
passed over.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

from apex_creds.audit import line
from apex_creds.audit.events import EventKind
from apex_creds.audit.note import VerifierKey
from apex_creds.audit.segment import segments
from apex_creds.audit.summary import OUTCOMES, REASONS, EventLabel, Summaries, label_of
from apex_creds.audit.verify import entries

__all__ = ["EXPECTED", "EventCounts", "EventLabel"]

_Mark = tuple[str, int]

EXPECTED: Final = (
    *(EventLabel(kind.value) for kind in (EventKind.LEAK, EventKind.REVOKE, EventKind.GRANT)),
    *(EventLabel(EventKind.DENIAL.value, reason) for reason in sorted(REASONS)),
    *(EventLabel(EventKind.FACTOR.value, outcome) for outcome in sorted(OUTCOMES)),
    EventLabel(EventKind.REVOKE.value, "lockdown"),
)
"""What is counted as 0 before it happens."""


class EventCounts:
    """The counts of one log.

    Args:
        directory: The log's.
        vault_id: Whose log it is.
    """

    def __init__(self, directory: Path, *, vault_id: str) -> None:
        self._directory = directory
        self._vault_id = vault_id
        self._lock = threading.Lock()
        self._counts: dict[EventLabel, int] = {}
        self._mark: _Mark | None = None
        self.seq = 0

    def update(self, *, key: VerifierKey | None = None) -> None:
        """Counts what is new; where nothing is, one folder is listed.

        Args:
            key: The log's; what it signed of sealed segments is taken for them.

        Raises:
            AuditTamperedError: A line is not what was written.
            AuditUnavailableError: The log can't be read.
        """
        with self._lock:
            mark: _Mark | None = None  # name and length of the newest segment
            paths = list(segments(self._directory).values())
            with suppress(FileNotFoundError):  # compressed meanwhile
                mark = (paths[-1].name, paths[-1].stat().st_size) if paths else None
            if self._counts and mark == self._mark:
                return
            counts = Counter(self._counts or dict.fromkeys(EXPECTED, 0))
            seq = self.seq
            # A segment that was counted in part is read.
            summaries = Summaries(
                self._directory, vault_id=self._vault_id, key=None if seq else key
            )

            def summed(number: int) -> bool:
                nonlocal seq
                found = summaries.of(number)
                if found is not None:
                    counts.update(found.counts)
                    seq = found.last
                return found is not None

            if mark is not None:
                for at, text in entries(
                    self._directory, vault_id=self._vault_id, after=seq, unless=summed
                ):
                    counts[label_of(line.decode(text))] += 1
                    seq = at
            self._counts, self.seq, self._mark = dict(counts), seq, mark

    def read(self) -> dict[EventLabel, int]:
        """The counts as they were after the last update; empty before."""
        return self._counts
