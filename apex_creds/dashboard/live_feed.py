"""What changed, as server-sent events for any number of readers, and the tail of the log.

Guarantee: a slow reader holds nothing up and costs no memory: it gets the newest state of each
topic when it reads again, and of the log what is still kept. The tail only reads: events of all
processes, over segments, each checked (against its hash) before it is given out, once, in
order; a line that is not what was written is reported, and what comes after it goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import msgspec

from apex_creds.audit import line as lines
from apex_creds.audit.events import Recorded
from apex_creds.audit.segment import SegmentReader, file_name, is_compressed, segments
from apex_creds.dashboard.log_search import placed
from apex_creds.errors import AuditTamperedError

KEPT: Final = 500
"""Events of the log that a new reader gets at once."""
MAX_READERS: Final = 16
ALIVE: Final = 10.0
"""Seconds between signs of life."""

_encode = msgspec.json.Encoder().encode


class LiveFeed:
    """Topics of one process; used from its event loop alone."""

    def __init__(self) -> None:
        self._topics: dict[str, tuple[int, bytes]] = {}
        self._log: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._version = 0
        self._arrived = 0
        self._changed = anyio.Event()
        self._closed = False
        self.readers = 0

    def publish(self, topic: str, value: object) -> None:
        """The new state of a topic; nobody is woken if it is as before."""
        data = _encode(value)
        before = self._topics.get(topic)
        if before is None or before[1] != data:
            self._version += 1
            self._topics[topic] = (self._version, data)
            self._wake()

    def log(self, events: Iterable[object]) -> None:
        """More events of the log, in the order in which readers get them."""
        before = self._arrived
        for event in events:
            self._arrived += 1
            self._log.append((self._arrived, _encode(event)))
        if self._arrived > before:
            self._wake()

    def latest(self, topic: str) -> bytes:
        """A topic's state as JSON; ``null`` where there is none yet."""
        return self._topics.get(topic, (0, b"null"))[1]

    def close(self) -> None:
        """Ends all readers."""
        self._closed = True
        self._wake()

    async def frames(
        self, *, lasts: Callable[[], bool], alive: float = ALIVE
    ) -> AsyncIterator[bytes]:
        """Server-sent events, until the feed is closed or ``lasts`` says no."""
        seen: dict[str, int] = {}
        last = 0
        self.readers += 1
        try:
            while not self._closed and lasts():
                changed = self._changed
                for topic, (version, data) in list(self._topics.items()):
                    if seen.get(topic) != version:
                        seen[topic] = version
                        yield frame(topic, data)
                new = [item for item in self._log if item[0] > last]
                if new:
                    last = new[-1][0]
                    yield frame("log", b"[" + b",".join(data for _, data in new) + b"]")
                with anyio.move_on_after(alive) as scope:
                    await changed.wait()
                if scope.cancelled_caught:
                    yield b": alive\n\n"
        finally:
            self.readers -= 1

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


def frame(topic: str, data: bytes) -> bytes:
    """One server-sent event; its JSON has no line feeds."""
    return b"event: %b\ndata: %b\n\n" % (topic.encode(), data)


# -- the tail of the log -----------------------------------------------------------------


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
    """Follows one vault's log as it grows; it blocks.

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
        if self._sealed:
            return
        name = file_name(self._number)
        with SegmentReader(self._directory / name) as segment:
            if segment.size < self._offset:
                raise AuditTamperedError(
                    f"{name} of the audit log was cut.",
                    hint="Keep a copy, and run: apex-creds audit verify",
                )
            data = segment.read(self._offset, segment.size)
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            begun = self._offset > 0
            self._offset += len(line)
            if not begun:
                self._begin(line)
                continue
            if line == lines.seal(segment=self._number, last=self._next - 1):
                self._sealed = True
                return
            number, wrong = placed(self._next, line)
            if wrong:
                self._faults += 1
                if self._faults <= _MANY_FAULTS:
                    batch.faults.append(Fault(self._next, wrong, name))
            if number:
                batch.events.append(lines.decode(line))
            self._next = (number or self._next) + 1

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
