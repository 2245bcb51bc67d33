"""Writing lines to the open segment, beside other processes that do the same.

Guarantee: lines are added after all that anyone wrote before, each checked; a torn end is
set aside and noted, never dropped; a sealed segment is left for the next one; a file that
was cut, replaced or removed is noticed, and nothing is written to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from apex_creds.audit import line, log_files
from apex_creds.audit.crash_recovery import HINT, End, add_segment, parse, tampered
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log_files import lines, unavailable
from apex_creds.audit.segment import Segment, file_name, is_compressed, read_segment
from apex_creds.audit.tree import Frontier
from apex_creds.errors import AuditTamperedError
from apex_creds.model import Clock

__all__ = ["Writer"]

# Bound once: it is on the path of every append.
_link_all: Final = line.link_all
_unlock: Final = log_files.unlock


class Writer:
    """The segment that is written to. Callers hold ``lock``, but for ``sync``.

    Args:
        end: Where the log ended.
        vault_id: Whose it is.
        clock: Dates notes.
        lock: What guards it.

    Attributes:
        vault_id: Whose it is.
        before: The tree before the segment.
        seq: The number of the last event written or seen.
        end: Length of the segment up to its last line.
        notes: Events that go out before everything else.
        busy: It, or who calls it, is in the middle of something; a destructor that comes in
            must wait.
        fault: Why nothing can be written before ``reopen`` and ``recover``; else empty.
    """

    def __init__(self, end: End, *, vault_id: str, clock: Clock, lock: threading.RLock) -> None:
        self._lock = lock
        self.vault_id = vault_id
        self._clock = clock
        self._sync_lock = threading.RLock()
        self._segment = end.segment
        self._leaves: list[bytes] = []
        self.before, self.seq, self.end = end.before, end.edge.size, end.end
        self.notes: list[AuditEvent] = []
        self.busy = False
        self.fault = ""

    # -- writing ---------------------------------------------------------------------

    def write(self, bodies: Sequence[bytes]) -> bytes:
        """Writes the notes and then events, in one write; returns what was written.

        Raises:
            AuditUnavailableError: It could not be; the file is as it was.
            AuditTamperedError: Someone altered, cut or took away the file.
        """
        try:
            size = self._segment.begin()
            if size != self.end:
                self._catch_up(size)
            if self.notes:
                bodies = [*map(line.encode, self.notes), *bodies]
            data, leaves = _link_all(self.seq + 1, bodies)
            self._segment.append(data, end=self.end)
        except OSError as error:
            raise unavailable("read", error) from None
        finally:
            _unlock(self._segment.fd)
        self._leaves += leaves
        self.seq += len(leaves)
        self.end += len(data)
        self.notes.clear()
        return data

    def note(self, text: str, kind: EventKind = EventKind.RECOVERED, reason: str = "") -> None:
        """Has ``text`` recorded by the next write."""
        if all(text != each.detail for each in self.notes):
            now = self._clock.time()
            self.notes.append(AuditEvent(now, kind, reason=reason, detail=text))

    def take_leaves(self) -> list[bytes]:
        """Gives away the leaves that are not in the tree yet."""
        with self._lock:
            leaves, self._leaves = self._leaves, []
            return leaves

    def head(self) -> tuple[int, bytes]:
        """The events before the segment that is written to, and its first line."""
        with self._lock:
            made = line.header(
                segment=self._segment.number, vault_id=self.vault_id, edge=self.before
            )
            return self.before.size, made

    def current_leaves(self) -> list[bytes]:
        """As ``take_leaves``, after taking in what other processes wrote.

        Raises:
            AuditUnavailableError: As ``write``, and so for AuditTamperedError.
        """
        with self._exclusively():
            try:
                self._current()
            except OSError as error:
                raise unavailable("read", error) from None
            finally:
                self._segment.unlock()
            return self.take_leaves()

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """The lock is this thread's, and nothing it calls comes in again."""
        with self._lock:
            self.busy = True
            try:
                yield
            finally:
                self.busy = False

    def seal(self, absorb: Callable[[], Frontier]) -> Path | None:
        """Seals the segment and goes on in a new one; returns the sealed one's path.

        Args:
            absorb: Makes the tree current and returns it; nothing is written meanwhile.

        Returns:
            None where another process was first.

        Raises:
            AuditUnavailableError: As ``write``, and so for AuditTamperedError.
        """
        with self._exclusively():
            sealed = self._segment
            try:
                self._current()
                if self._segment is not sealed:
                    return None
                edge = absorb()
                data = line.seal(segment=sealed.number, last=self.seq)
                sealed.append(data, end=self.end)
                self.end += len(data)
                add_segment(sealed, edge, vault_id=self.vault_id)
                self._take_over(Segment(sealed.directory, sealed.number + 1))
            except OSError as error:
                raise unavailable("sealed", error) from None
            finally:
                self._segment.unlock()
            return sealed.path

    # -- other writers ---------------------------------------------------------------

    def _current(self) -> None:
        size = self._segment.begin()
        if size != self.end:
            self._catch_up(size)

    def _catch_up(self, size: int) -> None:
        """Takes in what other processes wrote; sets a torn last line aside."""
        segment, taken_away = self._segment, size < 0
        if taken_away:
            size = segment.size()
        if size < self.end:
            raise AuditTamperedError(
                f"The audit log was cut short while in use, before event {self.seq + 1}.",
                hint="Keep a copy, find out who did it, and restore the file.",
            )
        for each in lines(segment.fd, self.end, size):
            if each == line.seal(segment=segment.number, last=self.seq):
                self._follow()
                return
            if not each.endswith(b"\n") and not taken_away:
                now = self._clock.time()
                what = segment.set_aside(self.end, seq=self.seq + 1, now=now)
                self.note(f"torn last line: {what}")
                return
            if wrong := line.fault(self.seq + 1, each):
                raise tampered(self.seq + 1, wrong)
            self._leaves.append(line.leaf_of(each))
            self.seq += 1
            self.end += len(each)
        if taken_away:
            name = segment.path.name
            self.fail(
                f"{name} was removed or replaced while in use; a file that continues it is back"
            )
            raise _moved(segment)

    def _follow(self) -> None:
        """Goes on in the segment that is written to, after a sealed one whose lock is held.

        Others may have sealed and compressed more of them meanwhile; those are read.
        """
        sealed, number = self._segment, self._segment.number + 1
        leaves: list[bytes] = []
        fresh = None
        while fresh is None:
            path = sealed.path.with_name(file_name(number))
            try:
                fresh = Segment(sealed.directory, number)
            except AuditTamperedError:  # it is not there
                if is_compressed(path):
                    content = parse(read_segment(path), number=number, vault_id=self.vault_id)
                    before = self.seq + len(leaves)
                    if not content.sealed or content.edge.size != before:
                        raise _not_after(path, before) from None
                    leaves += content.leaves
                    number += 1
                elif number == sealed.number + 1:  # a writer that was killed had sealed it
                    data = log_files.read_between(sealed.fd, 0, sealed.size())
                    content = parse(
                        data, number=sealed.number, vault_id=self.vault_id, trusted=self.seq
                    )
                    edge = content.edge_at(content.last)
                    add_segment(sealed, edge, vault_id=self.vault_id)
                else:
                    raise
        self._take_over(fresh, leaves)
        self._current()

    def _take_over(self, fresh: Segment, leaves: Sequence[bytes] = ()) -> None:
        """Puts ``fresh`` in the place of the segment, and locks it.

        Args:
            fresh: A later one.
            leaves: Of the segments between.
        """
        fresh.lock()
        head = next(lines(fresh.fd, 0, fresh.size()), b"")
        edge = line.parse_header(head, segment=fresh.number, vault_id=self.vault_id)
        if edge is None or edge.size != self.seq + len(leaves):
            fresh.close()
            raise _not_after(fresh.path, self.seq + len(leaves))
        self._leaves += leaves
        self.seq = edge.size
        self._replace(fresh)
        self.before, self.end = edge, len(head)

    def _replace(self, fresh: Segment) -> None:
        with self._sync_lock:
            self._segment.close()
            self._segment = fresh

    # -- trouble ---------------------------------------------------------------------

    def fail(self, why: str) -> None:
        """Refuses writes until it is repaired."""
        self.fault = self.fault or why

    def recover(self) -> None:
        """Ends what ``fail`` began, and has it recorded."""
        self.note(self.fault)
        self.fault = ""

    def is_torn(self) -> bool:
        """Whether the segment has more than was read; another's or a torn line."""
        return self._segment.size() != self.end

    def check_in_place(self) -> None:
        """Checks that the file is still there; a sealed one may be gone.

        Raises:
            AuditTamperedError: It was removed or replaced.
            AuditUnavailableError: Another process keeps the lock.
        """
        with self._exclusively():
            if self._segment.in_place():
                return
            try:
                self._segment.lock()
                self._catch_up(-1)
            finally:
                self._segment.unlock()

    def reopen(self) -> None:
        """Goes on in the file that is now at the path, if what was written is in it.

        Raises:
            AuditTamperedError: It is not.
            AuditUnavailableError: It can't be read.
        """
        ours = self._segment
        if ours.in_place():
            return
        try:
            fresh = Segment(ours.directory, ours.number)
        except AuditTamperedError:
            raise _moved(ours) from None
        try:
            same = fresh.size() >= self.end and all(
                left == right
                for left, right in zip(
                    lines(ours.fd, 0, self.end), lines(fresh.fd, 0, self.end), strict=True
                )
            )
        except OSError as error:
            raise unavailable("read", error) from None
        if not same:
            fresh.close()
            raise _moved(ours)
        self._replace(fresh)

    def sync(self) -> None:
        """Makes what was written durable; needs no lock.

        Raises:
            AuditUnavailableError: The disk did not take it.
        """
        with self._sync_lock:
            try:
                self._segment.sync()
            except OSError as error:
                self.fail("fsync failed: a crash then could have lost events before this one")
                raise unavailable("made durable", error) from None

    def close(self) -> None:
        """Closes the file; again does nothing."""
        with self._sync_lock:
            self._segment.close()

    @property
    def segment(self) -> Segment:
        """The segment that is written to now."""
        return self._segment


def _not_after(path: Path, seq: int) -> AuditTamperedError:
    return AuditTamperedError(
        f"{path.name} of the audit log does not go on where {seq} ended.", hint=HINT
    )


def _moved(segment: Segment) -> AuditTamperedError:
    return AuditTamperedError(
        f"The audit log {segment.path.name} was removed or replaced while in use.", hint=HINT
    )
