"""How many events of which kind a log has, kept up to date by reading what is new.

Guarantee: counts are those of the log itself, whichever process wrote an event, from the
first one on: they grow only, also across restarts of who counts, and nothing is said before
all of it was read. A kind's reason is told apart only where reasons are a closed set;
everything else in an event is passed over.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from apex_creds.audit.events import EventKind, FactorOutcome, Recorded
from apex_creds.audit.segment import segments
from apex_creds.audit.verify import read
from apex_creds.policy.decide import REFUSALS

__all__ = ["EXPECTED", "EventCounts", "What"]

OTHER: Final = "_OTHER"
_ROTATED: Final = re.compile(r"(promote|rotate|move|retire|destroy) (master|kek|dek)")
_REASONS: Final = frozenset(reason.value for reason in REFUSALS)
_OUTCOMES: Final = frozenset(outcome.value for outcome in FactorOutcome)
_Mark = tuple[str, int]


class What(NamedTuple):
    """A kind of event.

    Attributes:
        kind: Of ``EventKind``.
        reason: Why something was refused, how the showing of a second factor ended, the
            step of a rotation, or ``lockdown``; empty where there is nothing to tell apart.
    """

    kind: str
    reason: str = ""


EXPECTED: Final = (
    *(What(kind.value) for kind in (EventKind.LEAK, EventKind.REVOKE, EventKind.GRANT)),
    *(What(EventKind.DENIAL.value, reason) for reason in sorted(_REASONS)),
    *(What(EventKind.FACTOR.value, outcome) for outcome in sorted(_OUTCOMES)),
    What(EventKind.REVOKE.value, "lockdown"),
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
        self._counts: dict[What, int] = {}
        self._mark: _Mark | None = None
        self.seq = 0

    def look(self) -> None:
        """Counts what is new; one look at a folder where nothing is.

        Raises:
            AuditTamperedError: A line is not what was written.
            AuditUnavailableError: The log can't be read.
        """
        with self._lock:
            mark = self._newest()
            if self._counts and mark == self._mark:
                return
            counts = Counter(self._counts or dict.fromkeys(EXPECTED, 0))
            seq = self.seq
            if mark is not None:
                for event in read(self._directory, vault_id=self._vault_id, after=seq):
                    counts[what(event)] += 1
                    seq = event.seq
            self._counts, self.seq, self._mark = dict(counts), seq, mark

    def read(self) -> dict[What, int]:
        """The counts as they were when it looked last; empty before."""
        return self._counts

    def _newest(self) -> _Mark | None:
        """Name and length of the newest segment; None where there is nothing to read."""
        paths = list(segments(self._directory).values())
        try:
            return (paths[-1].name, paths[-1].stat().st_size) if paths else None
        except FileNotFoundError:  # compressed meanwhile
            return None


def what(event: Recorded) -> What:
    """What an event is counted as."""
    match event.kind:
        case EventKind.DENIAL:
            reason = event.reason if event.reason in _REASONS else OTHER
        case EventKind.FACTOR if event.action == "verify":
            reason = event.reason if event.reason in _OUTCOMES else OTHER
        case EventKind.ROTATION:
            reason = event.action if _ROTATED.fullmatch(event.action) else ""
        case EventKind.REVOKE if event.decision == "lockdown":
            reason = "lockdown"
        case _:
            reason = ""
    return What(event.kind.value, reason)
