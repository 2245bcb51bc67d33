"""The log as it grows: what is new since the last look, from all processes.

Guarantee: each event is checked by itself (its own hash) before it is given out, once, in
order; a line that is not what was written is told, and what comes after it goes on. Only
what is new is read. It blocks: call it in a thread.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from apex_creds.audit import line as lines
from apex_creds.audit.archive import file_name, read_segment, segments
from apex_creds.audit.events import Recorded
from apex_creds.audit.files import open_to_read, read_between, settled_size
from apex_creds.errors import AuditTamperedError

SEGMENTS: Final = 3
"""How many of the newest segments the first look reads."""
_MANY_FAULTS: Final = 20
_NUMBER: Final = re.compile(rb'\{"v":\d{1,9},"seq":(\d{1,18}),')


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is not what was written."""

    seq: int
    how: str
    segment: str


@dataclass(slots=True)
class Batch:
    """What one look found.

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

    def look(self) -> Batch:
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
        while self._sealed and self._exists(self._number + 1):
            self._number, self._offset, self._sealed = self._number + 1, 0, False
            self._read_one(batch)
        batch.first = self._first
        return batch

    def _read_one(self, batch: Batch) -> None:
        """Reads what is new in the present segment."""
        data = b"" if self._sealed else self._data()
        end = data.rfind(b"\n") + 1
        for text in data[:end].splitlines(keepends=True):
            begun = self._offset > 0
            self._offset += len(text)
            if not begun:
                self._begin(text)
            elif text == lines.seal(segment=self._number, last=self._next - 1):
                self._sealed = True
                return
            else:
                self._take(text, batch)

    def _data(self) -> bytes:
        plain = self._directory / file_name(self._number)
        packed = plain.with_name(f"{plain.name}.gz")
        if not plain.exists() and packed.exists():
            return read_segment(packed)[self._offset :]
        try:
            fd = open_to_read(plain)
        except AuditTamperedError:
            if not packed.exists():
                raise
            return read_segment(packed)[self._offset :]
        try:
            size = settled_size(fd)
            if size < self._offset:
                raise AuditTamperedError(
                    f"{plain.name} of the audit log was cut.",
                    hint="Keep a copy, and run: apex-creds audit verify",
                )
            return read_between(fd, self._offset, size)
        finally:
            os.close(fd)

    def _exists(self, number: int) -> bool:
        plain = self._directory / file_name(number)
        return plain.exists() or plain.with_name(f"{plain.name}.gz").exists()

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
        wrong = lines.fault(self._next, text)
        if wrong:
            self._note(wrong, batch)
            found = _NUMBER.match(text)
            own = int(found[1]) if found else 0
            if not own or lines.fault(own, text):
                self._next += 1
                return
            self._next = own
        batch.events.append(lines.decode(text))
        self._next += 1

    def _note(self, how: str, batch: Batch) -> None:
        self._faults += 1
        if self._faults <= _MANY_FAULTS:
            batch.faults.append(Fault(self._next, how, file_name(self._number)))
