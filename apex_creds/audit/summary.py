"""What is in a sealed segment, signed and kept beside it: one that nobody asks for is not read.

Guarantee: a summary is made of events that lead to a tree that this process holds, and is
believed only where the log's own key signed it for the tree that the log has there. So it says
what was written, also where others can change the directory; if it is missing or no good, the
segment itself is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from apex_creds.audit import line, tree
from apex_creds.audit import note as notes
from apex_creds.audit.checkpoint import LogKey
from apex_creds.audit.crash_recovery import Content, parse
from apex_creds.audit.events import EventKind, FactorOutcome, Recorded
from apex_creds.audit.nodes import Subtrees, note_of
from apex_creds.audit.note import VerifierKey, base64_of
from apex_creds.audit.segment import edge_before, number_of_file, read_segment, segments
from apex_creds.audit.tree import Frontier
from apex_creds.errors import ApexCredsError
from apex_creds.policy.decide import REFUSALS

__all__ = [
    "OUTCOMES",
    "REASONS",
    "EventLabel",
    "Summaries",
    "Summary",
    "has_summary",
    "label_of",
    "signed_summary",
]

REASONS: Final = frozenset(reason.value for reason in REFUSALS)
OUTCOMES: Final = frozenset(outcome.value for outcome in FactorOutcome)
_OTHER: Final = "_OTHER"
_ROTATED: Final = re.compile(r"(promote|rotate|move|retire|destroy) (master|kek|dek)")
_NAME: Final = "/segment"


class EventLabel(NamedTuple):
    """A kind of event.

    Attributes:
        kind: Of ``EventKind``.
        reason: Why something was refused, how the showing of a second factor ended, the
            step of a rotation, or ``lockdown``; empty where they are not counted apart.
    """

    kind: str
    reason: str = ""


def label_of(event: Recorded) -> EventLabel:
    """What an event is counted as."""
    match event.kind:
        case EventKind.DENIAL:
            reason = event.reason if event.reason in REASONS else _OTHER
        case EventKind.FACTOR if event.action == "verify":
            reason = event.reason if event.reason in OUTCOMES else _OTHER
        case EventKind.ROTATION:
            reason = event.action if _ROTATED.fullmatch(event.action) else ""
        case EventKind.REVOKE if event.decision == "lockdown":
            reason = "lockdown"
        case _:
            reason = ""
    return EventLabel(event.kind.value, reason)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a segment holds.

    Attributes:
        last: The number of its last event.
        earliest: The first time in it, Unix seconds: not that of its first event, where the
            clock was set back.
        latest: The last time.
        counts: How many events of which kind.
    """

    last: int
    earliest: float
    latest: float
    counts: Mapping[EventLabel, int]

    def text(self, name: str, number: int, root: bytes) -> str:
        """What is signed."""
        counts = "".join(
            f"{count} {' '.join(filter(None, kind))}\n"
            for kind, count in sorted(self.counts.items())
        )
        times = f"{self.earliest!r} {self.latest!r}"
        return f"{name}\n{number}\n{self.last}\n{base64_of(root)}\n{times}\n{counts}"


def has_summary(segment: Path) -> bool:
    """Whether there is a summary beside a segment; it may be no good."""
    try:
        return bool(note_of(segment))
    except ApexCredsError:
        return False


def signed_summary(
    segment: Path, *, key: LogKey, size: int, root: bytes
) -> tuple[bytes, Content | None]:
    """Signs what is in a sealed segment, if its events are those of a known tree.

    Args:
        segment: Its file.
        key: The log's.
        size: Of a tree that this process holds, of this segment and what comes after.
        root: Its root.

    Returns:
        A note for ``keep_nodes``, and what is in the segment, as it was read for it. The
        note is empty if they are not, or there is none; then the other is None.
    """
    with suppress(ApexCredsError):
        number, data = number_of_file(segment), read_segment(segment)
        content = parse(data, number=number, vault_id=key.vault_id)
        edge = content.edge_at(content.last)
        kept = Subtrees(segment.parent, vault_id=key.vault_id)
        ranges = tree.consistency_ranges(edge.size, size)
        tree.verify_consistency(
            old=edge.size,
            new=size,
            proof=[kept.root(*each) for each in ranges],
            old_root=edge.root(),
            new_root=root,
        )
        body = data[data.find(b"\n") + 1 : data.rfind(b"\n", 0, content.end - 1) + 1]
        events = line.decode_all(body)
        times = [event.time for event in events]
        if not content.sealed or not times:
            return b"", None
        found = Summary(edge.size, min(times), max(times), Counter(map(label_of, events)))
        name = key.origin + _NAME
        made = notes.sign(found.text(name, number, edge.root()), name=name, key=key.signer)
        return str(made).encode(), content
    return b"", None


class Summaries:
    """The summaries of a log as its files are now.

    Args:
        directory: The log's.
        vault_id: Whose log it is.
        key: The log's; without one there are none.
    """

    def __init__(self, directory: Path, *, vault_id: str, key: VerifierKey | None) -> None:
        self._paths = segments(directory)
        self._vault_id = vault_id
        self._key = None if key is None else VerifierKey(key.name + _NAME, key.public)
        self._edges: dict[int, Frontier] = {}

    def of(self, number: int) -> Summary | None:
        """Returns that of a segment; None where there is none to be believed."""
        path = self._paths.get(number)
        if self._key is None or path is None or number + 1 not in self._paths:
            return None
        with suppress(ApexCredsError, ValueError):  # ValueError: it is no summary
            kept = note_of(path)
            if not kept:
                return None
            after = edge_before(
                self._paths, number + 1, vault_id=self._vault_id, known=self._edges
            )
            note = notes.parse(kept)
            note.check(self._key)
            _, _, last, _, times, *counts, _ = note.text.split("\n")
            earliest, latest = times.split(" ")
            counted: dict[EventLabel, int] = {}
            for each in counts:
                count, kind, *reason = each.split(" ", 2)
                counted[EventLabel(kind, *reason)] = int(count)
            found = Summary(int(last), float(earliest), float(latest), counted)
            if (found.last, note.text) == (
                after.size,
                found.text(self._key.name, number, after.root()),
            ):
                return found
        return None
