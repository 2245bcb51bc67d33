"""Follows the log as it grows: from all processes, over segments, each line checked.

Guarantee: it only reads. Each event is checked (against its own hash) before it is given out,
once, in order; a line that is not what was written is reported, and what comes after it goes
on. It blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from apex_creds.audit import line as lines
from apex_creds.audit.events import Recorded
from apex_creds.audit.segment import SegmentReader, file_name, is_compressed, segments
from apex_creds.dashboard.log_search import placed
from apex_creds.errors import AuditTamperedError

SEGMENTS: Final = 3
"""How many of the newest segments are read at first."""
_MANY_FAULTS: Final = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is not what was written."""

    seq: int
    how: str
    segment: str


@dataclass(slots=True)
class Batch:
    """What one reading found.

    Attributes:
        first: Number of the first event that the tail ever read.
    """

    first: int = 0
    events: list[Recorded] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


class LogTail:
    """Follows one vault's log.

    Args:
        directory: The log's.
        vault_id: Whose it is.
        newest: How many of the newest segments to begin with.
    """

    def __init__(self, directory: Path, *, vault_id: str, newest: int = SEGMENTS) -> None:
        self._directory = directory
        self._vault_id = vault_id
        self._newest = newest
        self._number = 0
        self._offset = 0
        self._sealed = False
        self._next = 0
        self._first = 0
        self._faults = 0

    def poll(self) -> Batch:
        """What is new.

        Raises:
            AuditTamperedError: A segment is missing, cut, or not this vault's.
            AuditUnavailableError: It can't be read.
            UnsafePathError: A file is a symbolic link or not a regular file.
        """
        if not self._number:
            self._number = max(1, len(segments(self._directory)) - self._newest + 1)
        batch = Batch()
        self._read_one(batch)
        while self._sealed:
            following = self._directory / file_name(self._number + 1)
            if not (following.exists() or is_compressed(following)):
                break
            self._number, self._offset, self._sealed = self._number + 1, 0, False
            self._read_one(batch)
        batch.first = self._first
        return batch

    def _read_one(self, batch: Batch) -> None:
        """Reads what is new in the present segment."""
        data = b"" if self._sealed else self._data()
        end = data.rfind(b"\n") + 1
        for line in data[:end].splitlines(keepends=True):
            begun = self._offset > 0
            self._offset += len(line)
            if not begun:
                self._begin(line)
            elif line == lines.seal(segment=self._number, last=self._next - 1):
                self._sealed = True
                return
            else:
                self._take(line, batch)

    def _data(self) -> bytes:
        with SegmentReader(self._directory / file_name(self._number)) as segment:
            if segment.size < self._offset:
                raise AuditTamperedError(
                    f"{file_name(self._number)} of the audit log was cut.",
                    hint="Keep a copy, and run: apex-creds audit verify",
                )
            return segment.read(self._offset, segment.size)

    def _begin(self, head: bytes) -> None:
        edge = lines.parse_header(head, segment=self._number, vault_id=self._vault_id)
        if edge is None:
            self._offset = 0
            raise AuditTamperedError(
                f"{file_name(self._number)} is not a segment of this vault's log.",
                hint="Run: apex-creds audit verify",
            )
        self._next = edge.size + 1
        self._first = self._first or self._next

    def _take(self, text: bytes, batch: Batch) -> None:
        number, wrong = placed(self._next, text)
        if wrong:
            self._faults += 1
            if self._faults <= _MANY_FAULTS:
                batch.faults.append(Fault(self._next, wrong, file_name(self._number)))
        if number:
            batch.events.append(lines.decode(text))
        self._next = (number or self._next) + 1
