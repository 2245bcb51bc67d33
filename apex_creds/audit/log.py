"""The append-only log: written before anything is released.

Guarantee: when ``append`` returns a number, the event is in the file after a line that it
is chained to, whoever else writes to the file, and a crash of this process can't lose it;
at most ``durable_within`` seconds later (plus the disk's own time) a crash of the machine
can't either. When it can't be written, ``append`` raises and the file is as it was.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

import msgspec

from apex_creds.audit import chain
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.listening import Listener
from apex_creds.audit.segment import SEGMENT, Segment, end_of_lines, lines, unavailable
from apex_creds.errors import AuditTamperedError, AuditUnavailableError
from apex_creds.model import Clock

__all__ = ["AuditLog"]

_QUEUE_LIMIT: Final = 4096
# Bound once: they are on the path of every append.
_encode: Final = chain.encode
_link: Final = chain.link
_logger = logging.getLogger("apex_creds.audit")


class AuditLog:
    """The log of one vault. Threads share it; several processes may have one each.

    Args:
        directory: ``security/audit``; made 0700 when absent.
        vault_id: Starts the chain, so that a log can't pass for another vault's.
        clock: Dates what the log itself has to record.
        durable_within: Seconds from an append to its fsync; 0 makes every append wait.

    Raises:
        AuditTamperedError: The end or the start of the log is not what was written.
        AuditUnavailableError: It can't be opened or read.
        UnsafePathError: See ``Segment``, as for UnsafePermissionsError.
    """

    def __init__(
        self, directory: Path, *, vault_id: str, clock: Clock, durable_within: float = 0.1
    ) -> None:
        self._directory = Path(directory)
        self._genesis = chain.genesis(vault_id)
        self._clock = clock
        # Half of the window, so that the disk has the other half.
        self._period = durable_within / 2
        self._each = self._urgent = durable_within <= 0
        self._queue: deque[bytes] = deque()
        self._lock = threading.RLock()
        self._sync_lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._notes: list[str] = []
        self._listeners: tuple[Listener, ...] = ()
        self._busy = self._dirty = self._closing = False
        self._idle = True
        self._stopped = ""
        self._fault = ""
        self._seq, self._end, self._head = 0, 0, self._genesis
        self._segment = Segment(self._directory)
        _open_logs.add(self)
        try:
            self._find_end()
        except BaseException:
            self._segment.close()
            raise
        self._thread = threading.Thread(target=self._run, name="apex-creds-audit", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def seq(self) -> int:
        """The number of the last event that this log wrote or saw; 0 for none."""
        return self._seq

    @property
    def head(self) -> str:
        """The hash of that event: 64 hexadecimal digits."""
        return self._head.decode()

    def attach(self, listener: Listener) -> None:
        """Has ``listener`` hear of what is written from now on, until the log closes."""
        with self._lock:
            self._listeners = (*self._listeners, listener)

    def append(self, event: AuditEvent, *, flush: bool = True) -> int | None:
        """Writes ``event``, after everything queued, and returns its number.

        With ``flush=False`` it is only queued: it goes out with the next write or within
        ``durable_within``, and None is returned. That form never waits for a lock, so it
        may be called from destructors and signal handlers.

        Raises:
            AuditUnavailableError: It can't be written; the event is not in the log, queued
                ones stay queued, and the next append tries again.
            AuditTamperedError: Someone altered, cut or took away the file.
            InvalidInputError: A field of the event has the wrong type.
        """
        return self.append_encoded(_encode(event), flush=flush)

    def append_encoded(self, body: bytes, *, flush: bool = True) -> int | None:
        """As ``append``, for an event that ``text`` has encoded; it is not checked again."""
        if self._stopped:
            raise self._refusal()
        if not flush and not self._urgent and len(self._queue) < _QUEUE_LIMIT:
            self._queue.append(body)
            self._mark()
            return None
        if flush and self._listeners:
            for listener in self._listeners:
                listener.ready()
        # `with`, not acquire(): a KeyboardInterrupt can't leave it locked.
        with self._lock:
            if self._busy:
                raise AuditUnavailableError("The audit log is being written by this thread.")
            self._busy = True
            try:
                return self._flush(body)
            finally:
                self._busy = False

    def flush(self) -> None:
        """Writes everything queued.

        Raises:
            AuditUnavailableError: As ``append``, and so for AuditTamperedError.
        """
        with self._lock:
            if self._stopped:
                raise self._refusal()
            if self._busy or not (self._queue or self._notes):
                return
            self._busy = True
            try:
                self._flush(None)
            finally:
                self._busy = False

    def sync(self) -> None:
        """Writes everything queued and makes the log durable before it returns.

        Raises:
            AuditUnavailableError: As ``append``, and so for AuditTamperedError.
        """
        with self._lock:
            if self._fault:
                self._repair()
        self.flush()
        self._fsync()

    def close(self) -> None:
        """Flushes, makes durable, stops the thread, closes the file; again does nothing.

        Raises:
            AuditUnavailableError: The last events could not be written; the log is closed.
        """
        if self._stopped or self._closing:
            return
        if self._listeners:
            self._close_listeners()
        self._closing = self._urgent = True
        self._wake.put(None)
        self._thread.join()
        atexit.unregister(self.close)
        try:
            self.sync()
        finally:
            with self._lock, self._sync_lock:
                self._stopped = "is closed"
                self._segment.close()

    def _close_listeners(self) -> None:
        with suppress(AuditUnavailableError, AuditTamperedError):
            self.flush()
        for listener in self._listeners:
            listener.close()

    # -- writing, under the lock -----------------------------------------------------

    def _flush(self, body: bytes | None) -> int:
        """Writes the queue and ``body`` in one write; returns the last number."""
        if self._stopped or self._fault:
            self._make_usable()
        segment = self._segment
        queued = 0
        try:
            size = segment.begin()
            if size != self._end:
                self._catch_up(size)
            if body is None or self._queue or self._notes:
                queued = len(self._queue)
                data, seq, head = self._batch(queued, body)
            else:
                seq = self._seq + 1
                data, head = _link(self._head, seq, body)
            segment.append(data, end=self._end)
            self._seq, self._head = seq, head
            self._end += len(data)
        except OSError as error:
            raise unavailable("read", error) from None
        finally:
            segment.unlock()
        if queued or self._notes:
            self._drop(queued)
        self._dirty = True
        if self._idle or self._each:
            self._mark()
        for listener in self._listeners:
            listener.written(data)
        return seq

    def _make_usable(self) -> None:
        if self._stopped:
            raise self._refusal()
        self._repair()

    def _batch(self, queued: int, body: bytes | None) -> tuple[bytes, int, bytes]:
        """Returns the lines of notes, queue and ``body``, and the last number and hash."""
        # By index: destructors may add to the queue meanwhile.
        bodies = [self._queue[i] for i in range(queued)]
        if self._notes:
            bodies[:0] = [self._recovered(note) for note in self._notes]
        if body is not None:
            bodies.append(body)
        made, seq, head = [], self._seq, self._head
        for each in bodies:
            seq += 1
            line, head = chain.link(head, seq, each)
            made.append(line)
        return b"".join(made), seq, head

    def _drop(self, queued: int) -> None:
        for _ in range(queued):
            self._queue.popleft()
        self._notes.clear()

    def _recovered(self, note: str) -> bytes:
        return chain.encode(AuditEvent(self._clock.time(), EventKind.RECOVERED, detail=note))

    def _catch_up(self, size: int) -> None:
        """Takes in what other processes wrote; sets a torn last line aside."""
        if size < 0:
            self._fault = _MOVED
            raise _moved()
        if size < self._end:
            raise AuditTamperedError(
                f"The audit log was cut short while in use, before line {self._seq + 1}.",
                hint="Keep a copy, find out who did it, and restore the file.",
            )
        for line in lines(self._segment.fd, self._end, size):
            if not line.endswith(b"\n"):
                self._set_aside()
                return
            self._take(line)

    def _take(self, line: bytes) -> None:
        wrong = chain.fault(self._head, self._seq + 1, line)
        if wrong:
            raise tampered(self._seq + 1, wrong)
        self._seq, self._head = self._seq + 1, chain.head_of(line)
        self._end += len(line)

    def _set_aside(self) -> None:
        now = self._clock.time()
        what = self._segment.set_aside(self._end, seq=self._seq + 1, now=now)
        self._note(f"torn last line: {what}")

    def _note(self, note: str) -> None:
        """Has ``note`` recorded by the next write."""
        if note not in self._notes:
            self._notes.append(note)

    # -- opening and reopening -------------------------------------------------------

    def _find_end(self) -> None:
        """Reads the first line and the last two, and repairs a torn end."""
        segment = self._segment
        try:
            segment.lock()
            size = segment.size()
            self._read_end(size)
            torn = size != self._end
        except OSError as error:
            raise unavailable("read", error) from None
        finally:
            segment.unlock()
        if torn:
            self._flush(None)

    def _read_end(self, size: int) -> None:
        fd = self._segment.fd
        first = next(lines(fd, 0, min(size, chain.MAX_LINE)), b"")
        if not first.endswith(b"\n") and size < chain.MAX_LINE:
            return
        wrong = chain.fault(self._genesis, 1, first)
        if wrong:
            raise tampered(1, f"{wrong} (or the log is another vault's)")
        end = end_of_lines(fd, size)
        self._seq, self._head = self._last_line(fd, end)
        self._end = end

    def _last_line(self, fd: int, end: int) -> tuple[int, bytes]:
        """Returns number and hash of the line that ends at ``end``, checked."""
        *before, last = lines(fd, max(0, end - 2 * chain.MAX_LINE), end)
        prev = chain.head_of(before[-1]) if before else self._genesis
        try:
            seq = chain.decode(last).seq
        except (msgspec.MsgspecError, ValueError):
            seq = 0
        wrong = chain.fault(prev, seq, last)
        if wrong:
            raise AuditTamperedError(f"The last line of the audit log {wrong}.", hint=_HINT)
        return seq, chain.head_of(last)

    def _repair(self) -> None:
        """Undoes what made the log unusable, or raises why it can't."""
        if not self._segment.in_place():
            self._reopen()
        self._fsync()
        self._note(self._fault)
        self._fault = ""

    def _reopen(self) -> None:
        """Goes on in the file that is now at the path, if what we wrote is in it."""
        fresh = Segment(self._directory, create=False)
        try:
            ours = fresh.size() >= self._end and self._is_copy(fresh)
        except OSError as error:
            raise unavailable("read", error) from None
        if not ours:
            fresh.close()
            raise _moved()
        with self._sync_lock:
            self._segment.close()
            self._segment = fresh

    def _is_copy(self, segment: Segment) -> bool:
        if not self._end:
            return True
        return self._last_line(segment.fd, self._end) == (self._seq, self._head)

    # -- durability, in the background ------------------------------------------------

    def _mark(self) -> None:
        """Has things made durable: soon by the thread, without a lock, or at once."""
        self._dirty = True
        if self._each:
            self._fsync()
        elif self._idle:
            self._idle = False
            self._wake.put(None)

    def _run(self) -> None:
        while not self._closing:
            self._idle = True
            if not self._dirty:
                self._wake.get()
            self._idle = False
            while self._dirty and not self._closing:
                self._pause()
                self._round()

    def _pause(self) -> None:
        # A closing log ends the pause; a failing one is not tried again at once.
        seconds = max(self._period, 0.001)
        try:
            self._wake.get(timeout=max(seconds, 0.5) if self._fault else seconds)
        except Empty:
            return

    def _round(self) -> None:
        healthy = not self._fault
        try:
            if not self._segment.in_place():
                self._fault = self._fault or _MOVED
            self.sync()
        except Exception as error:  # noqa: BLE001 - the thread holds the promise of durability
            if healthy:
                _logger.warning("The audit log is not durable now: %s", type(error).__name__)
            self._fault = self._fault or f"not durable for a while: {type(error).__name__}"
            self._dirty = True

    def _fsync(self) -> None:
        self._dirty = False
        with self._sync_lock:
            try:
                self._segment.sync()
            except OSError as error:
                self._dirty = True
                self._fault = self._fault or _NOT_SYNCED
                raise unavailable("made durable", error) from None

    # -- refusing ---------------------------------------------------------------------

    def _refusal(self) -> AuditUnavailableError:
        return AuditUnavailableError(
            f"The audit log {self._stopped}.", hint="Open the vault again in this process."
        )

    def _after_fork(self) -> None:
        # The child's descriptor shares the parent's lock: gone before it can hold it up.
        self._stopped = "was opened before a fork"
        self._segment.close()


_HINT: Final = "Keep a copy, run `apex-creds audit verify`, and restore the file."
_MOVED: Final = (
    f"{SEGMENT} was removed or replaced while in use; a file that continues it is back"
)
_NOT_SYNCED: Final = "fsync failed: a crash then could have lost events before this one"


def _moved() -> AuditTamperedError:
    return AuditTamperedError(
        f"The audit log {SEGMENT} was removed or replaced while in use.", hint=_HINT
    )


def tampered(line: int, wrong: str) -> AuditTamperedError:
    """Returns the error for a line of the log."""
    return AuditTamperedError(f"Line {line} of the audit log {wrong}.", hint=_HINT)


_open_logs: weakref.WeakSet[AuditLog] = weakref.WeakSet()


def _stop_all() -> None:
    for log in list(_open_logs):
        log._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stop_all)
