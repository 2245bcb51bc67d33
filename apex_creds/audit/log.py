"""The append-only log: written before anything is released.

Guarantee: when ``append`` returns a number, the event is in the file under that number,
also where other processes write to it, and a crash of this process can't lose it; at most
``durable_within`` seconds later (plus the disk's own time) a crash of the machine can't
either. When it can't be written, ``append`` raises and the file is as it was. Everything
that is not needed for that (the tree, checkpoints, new segments, compression) is done by a
thread of the log's own.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Protocol

import msgspec

from apex_creds.audit import line
from apex_creds.audit.checkpoint import Checkpoint, LogKey
from apex_creds.audit.crash_recovery import End, find_end
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.maintenance import DEFAULT_CADENCE, Cadence, Upkeep
from apex_creds.audit.writer import Writer
from apex_creds.errors import AuditUnavailableError
from apex_creds.model import Clock, split_key

__all__ = ["AuditLog", "Observer"]

_QUEUE_LIMIT: Final = 4096
# Bound once: they are on the path of every append.
_encode: Final = line.encode
_logger = logging.getLogger("apex_creds.audit")


class Observer(Protocol):
    """Sees what is written."""

    def ready(self) -> None:
        """Called before an event that someone waits for.

        Raises:
            AuditUnavailableError: It must not be written now, so nothing is released.
        """

    def written(self, data: bytes) -> None:
        """Gets the lines that were written; never raises."""

    def close(self) -> None:
        """The log is closing."""


class AuditLog:
    """The log of one vault. Threads share it; several processes may have one each.

    Args:
        directory: ``security/audit``; made 0700 when absent.
        vault_id: Whose log it is, so that it can't pass for another vault's.
        clock: Dates what the log itself has to record.
        durable_within: Seconds from an append to its fsync; 0 makes every append wait.
        key: Signs checkpoints; without it none are made.
        cadence: How often checkpoints and segments are made.
        anchors: Checkpoints kept elsewhere, which the log must contain.
        accept_rollback: Why a log that is behind them is accepted; it is recorded.
        on_checkpoint: Called by the log's thread after each new checkpoint, and with None
            after ``notify_soon``, where there was no event to sign.
        pseudonym: What the names of credentials and principals are replaced by.
        observer: Sees all that this log writes; it is closed with the log.

    Attributes:
        vault_id: Whose log it is; the home's own number where homes share a vault.

    Raises:
        RollbackDetectedError: The log is behind a checkpoint or anchor, or another one.
        AuditTamperedError: The open segment is not what was written.
        AuditUnavailableError: It can't be opened or read.
        UnsafePathError: See ``files.check``, as for UnsafePermissionsError.
    """

    def __init__(
        self,
        directory: Path,
        *,
        vault_id: str,
        clock: Clock,
        durable_within: float = 0.1,
        key: LogKey | None = None,
        cadence: Cadence = DEFAULT_CADENCE,
        anchors: Sequence[Checkpoint] = (),
        accept_rollback: str = "",
        on_checkpoint: Callable[[Checkpoint | None], None] | None = None,
        pseudonym: Callable[[str], str] | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.vault_id = vault_id
        self._pseudonym = pseudonym
        # Half of the window, so that the disk has the other half.
        self._period = durable_within / 2
        self._each = self._urgent = durable_within <= 0
        self._queue: deque[bytes] = deque()
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._dirty = self._closing = False
        self._idle = True
        self._stopped = ""
        self._observer = observer
        end = find_end(
            Path(directory),
            vault_id=vault_id,
            key=key,
            anchors=anchors,
            accept=bool(accept_rollback),
            now=clock.time(),
        )
        self._presence = end.presence
        self._writer = Writer(end, vault_id=vault_id, clock=clock, lock=self._lock)
        self._upkeep = Upkeep(
            self._writer, end, key=key, cadence=cadence, on_checkpoint=on_checkpoint
        )
        _open_logs.add(self)
        try:
            self._record_findings(end, accept_rollback)
        except BaseException:
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name="apex-creds-audit", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def seq(self) -> int:
        """The number of the last event that this log wrote or saw; 0 for none."""
        return self._writer.seq

    @property
    def head(self) -> str:
        """The root of the tree of all events up to then: 64 hexadecimal digits."""
        return self._upkeep.absorb().root().hex()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that this log signed."""
        return self._upkeep.newest

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
        return self.append_encoded(self.encode(event), flush=flush)

    def encode(self, event: AuditEvent) -> bytes:
        """Returns the event as ``append_encoded`` takes it, with pseudonyms if so set up.

        Raises:
            InvalidInputError: A field of the event has the wrong type.
        """
        name, owner = split_key(event.credential)
        if owner:
            event = msgspec.structs.replace(
                event, credential=name, principal=event.principal or owner
            )
        if self._pseudonym is not None and (event.credential or event.principal):
            event = msgspec.structs.replace(
                event,
                credential=self.shown(event.credential),
                principal=self.shown(event.principal),
            )
        return _encode(event)

    def shown(self, name: str) -> str:
        """Returns a credential's or principal's name as the log shows it."""
        return self._pseudonym(name) if name and self._pseudonym is not None else name

    def append_encoded(self, body: bytes, *, flush: bool = True) -> int | None:
        """As ``append``, for an event that is encoded; it is not checked again."""
        if self._stopped:
            raise self._refusal()
        if not flush and not self._urgent and len(self._queue) < _QUEUE_LIMIT:
            self._queue.append(body)
            self._dirty = True
            if self._idle or self._each:
                self._mark()
            return None
        if flush and self._observer is not None:
            self._observer.ready()
        # `with`, not acquire(): a KeyboardInterrupt can't leave it locked.
        with self._lock:
            writer = self._writer
            if writer.busy:
                raise AuditUnavailableError("The audit log is being written by this thread.")
            writer.busy = True
            try:
                return self._flush(body)
            finally:
                writer.busy = False

    def flush(self) -> None:
        """Writes everything queued.

        Raises:
            AuditUnavailableError: As ``append``, and so for AuditTamperedError.
        """
        with self._lock:
            if self._stopped:
                raise self._refusal()
            writer = self._writer
            if writer.busy or not (self._queue or writer.notes):
                return
            writer.busy = True
            try:
                self._flush(None)
            finally:
                writer.busy = False

    def sync(self) -> None:
        """Writes everything queued and makes the log durable before it returns.

        Raises:
            AuditUnavailableError: As ``append``, and so for AuditTamperedError.
        """
        with self._lock:
            if self._writer.fault:
                self._repair()
        self.flush()
        self._fsync()

    def sign(self) -> Checkpoint | None:
        """Makes the log durable and signs a checkpoint of all of it, now.

        Returns:
            The newest checkpoint; None where the log has no key, or no event.

        Raises:
            AuditUnavailableError: As ``append``, and so for AuditTamperedError.
        """
        self.sync()
        return self._upkeep.sign()

    def sign_soon(self) -> None:
        """Has the log's thread sign what is in the log, without waiting for it."""
        self._upkeep.ask()
        self._wake.put(None)

    def notify_soon(self) -> None:
        """Has ``on_checkpoint`` called within the time of a checkpoint, event or not."""
        if self._upkeep.notify_soon():
            self._wake.put(None)

    def close(self) -> None:
        """Flushes, makes durable, signs, stops the thread, closes; again does nothing.

        Raises:
            AuditUnavailableError: The last events could not be written; the log is closed.
        """
        if self._stopped or self._closing:
            return
        self._closing = self._urgent = True
        self._wake.put(None)
        self._thread.join()
        atexit.unregister(self.close)
        try:
            if self._observer is not None:
                with suppress(AuditUnavailableError):
                    self.flush()
                self._observer.close()
            self.sync()
            self._upkeep.finish()
        finally:
            with self._lock:
                self._stopped = "is closed"
                self._release()

    def _release(self) -> None:
        self._writer.close()
        presence, self._presence = self._presence, -1
        if presence >= 0:
            os.close(presence)

    # -- writing, under the lock -----------------------------------------------------

    def _flush(self, body: bytes | None) -> int:
        """Writes the queue and ``body`` in one write; returns the last number."""
        writer = self._writer
        if self._stopped or writer.fault:
            if self._stopped:
                raise self._refusal()
            self._repair()
        queue = self._queue
        queued = len(queue)
        # By index: destructors may add to the queue meanwhile.
        bodies = [] if body is None else [body]
        if queued:
            bodies[:0] = map(queue.__getitem__, range(queued))
        data = writer.write(bodies)
        for _ in range(queued):
            queue.popleft()
        self._dirty = True
        if self._idle or self._each:
            self._mark()
        if self._observer is not None:
            self._observer.written(data)
        return writer.seq

    def _repair(self) -> None:
        """Undoes what made the log unusable, or raises why it can't."""
        self._writer.reopen()
        self._fsync()
        self._writer.recover()

    def _record_findings(self, end: End, reason: str) -> None:
        """Records what was found on opening, and sets a torn end aside."""
        writer = self._writer
        if end.behind:
            writer.note("; ".join(end.behind), EventKind.ROLLBACK, reason)
        elif end.unsigned:
            writer.note(
                f"the {end.unsigned} events before this were not signed when their writer "
                "ended: it was killed, and may have lost events after them"
            )
        if writer.notes or writer.is_torn():
            self._flush(None)

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
                self._wait(self._upkeep.due_in())
            self._idle = False
            self._upkeep.work()
            while self._dirty and not self._closing:
                # A closing log ends the pause; a failing one is not tried again at once.
                seconds = max(self._period, 0.001)
                self._wait(max(seconds, 0.5) if self._writer.fault else seconds)
                self._round()

    def _wait(self, seconds: float | None) -> None:
        with suppress(Empty):
            self._wake.get(timeout=seconds)

    def _round(self) -> None:
        """Makes the log durable, and does what is due."""
        healthy = not self._writer.fault
        try:
            with self._lock:  # the file may be gone; a sealed one may be
                if not self._writer.busy:
                    self._writer.check_in_place()
            self.sync()
        except Exception as error:  # noqa: BLE001 - the thread holds the promise of durability
            if healthy:
                _logger.warning("The audit log is not durable now: %s", type(error).__name__)
            self._writer.fail(f"not durable for a while: {type(error).__name__}")
            self._dirty = True
        else:
            self._upkeep.work()

    def _fsync(self) -> None:
        self._dirty = False
        try:
            self._writer.sync()
        except AuditUnavailableError:
            self._dirty = True
            raise

    # -- refusing ---------------------------------------------------------------------

    def _refusal(self) -> AuditUnavailableError:
        return AuditUnavailableError(
            f"The audit log {self._stopped}.", hint="Open the vault again in this process."
        )


_open_logs: weakref.WeakSet[AuditLog] = weakref.WeakSet()


def _stop_all() -> None:
    for log in list(_open_logs):
        # The child's descriptors share the parent's locks: gone before it can hold them up.
        log._stopped = "was opened before a fork"
        log._release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stop_all)
