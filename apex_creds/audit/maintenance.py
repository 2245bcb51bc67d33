"""What a log does beside writing: its tree, checkpoints, new segments, compression.

Guarantee: nothing here is on the path of an append, and no failure of it makes one fail; a
checkpoint states what is durable, and ``on_checkpoint`` is called after that, so that a copy
kept elsewhere may be behind the log but never ahead of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apex_creds.audit.checkpoint import Checkpoint, CheckpointFile, LogKey
from apex_creds.audit.crash_recovery import End
from apex_creds.audit.nodes import count_until, has_nodes, keep_nodes, keep_open_nodes
from apex_creds.audit.segment import MAX_SEGMENT, compress, segments
from apex_creds.audit.summary import has_summary, signed_summary
from apex_creds.audit.tree import Frontier
from apex_creds.audit.writer import Writer
from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.telemetry import semconv, tracing

__all__ = ["DEFAULT_CADENCE", "Cadence", "Upkeep"]

_logger = logging.getLogger("apex_creds.audit")
_MIN_SEGMENT: Final = 8192  # more than the longest first line
_monotonic: Final = time.monotonic


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """How often a log signs and begins a new segment.

    Attributes:
        events: A checkpoint after that many events at the latest.
        seconds: A checkpoint that many seconds after an event at the latest.
        segment_bytes: A segment of that length is sealed; the next one begins.
    """

    events: int = 1000
    seconds: float = 10.0
    segment_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        fits = _MIN_SEGMENT <= self.segment_bytes <= MAX_SEGMENT
        if self.events < 1 or self.seconds <= 0 or not fits:
            raise InvalidInputError("The audit log can't be kept at that cadence.")


DEFAULT_CADENCE: Final = Cadence()


class Upkeep:
    """The upkeep of one log.

    Args:
        writer: Where its lines are written.
        end: Where the log ended on opening.
        key: Signs checkpoints; without it none are made.
        cadence: See there.
        on_checkpoint: Called after each new checkpoint; with None where ``notify_soon`` was
            and no checkpoint came.
    """

    def __init__(
        self,
        writer: Writer,
        end: End,
        *,
        key: LogKey | None,
        cadence: Cadence,
        on_checkpoint: Callable[[Checkpoint | None], None] | None,
    ) -> None:
        self._writer = writer
        self._key = key
        self._cadence = cadence
        self._on_checkpoint = on_checkpoint
        self._directory = end.segment.directory
        self._file = None
        if key is not None:
            self._file = CheckpointFile(self._directory, vault_id=key.vault_id)
        # Taken before the writer's lock, never after it.
        self._lock = threading.RLock()
        self._edge = end.edge
        self._nodes_from = end.before.size
        self._nodes_head, self._nodes_kept = b"", 0
        self._signed = end.signed
        self._since = self._notify_since = 0.0
        self._asked = False
        self._packing: list[threading.Thread] = []
        self._healthy, self._ending = True, False
        self.newest: Checkpoint | None = None
        if end.alone:
            self._pack(list(segments(self._directory).values())[:-1])

    def absorb(self) -> Frontier:
        """Takes every event that was written or seen into the tree, and returns it."""
        with self._lock:
            self._edge.extend(self._writer.take_leaves())
            return self._edge

    def due_in(self) -> float | None:
        """Seconds until there is something to do; None if there is nothing."""
        waits = (self._checkpoint_in(), self._notify_in())
        return min((seconds for seconds in waits if seconds is not None), default=None)

    def _notify_in(self) -> float | None:
        if not self._notify_since:
            return None
        return max(0.0, self._notify_since + self._cadence.seconds - _monotonic())

    def _checkpoint_in(self) -> float | None:
        if self._key is None or self._writer.seq <= self._signed:
            return None
        if self._asked:
            return 0.0
        if not self._since:
            self._since = _monotonic()
        if self._writer.seq - self._signed >= self._cadence.events:
            return 0.0
        return max(0.0, self._since + self._cadence.seconds - _monotonic())

    def ask(self) -> None:
        """Makes a checkpoint of what is in the log due at once."""
        self._asked = True

    def notify_soon(self) -> bool:
        """Has ``on_checkpoint`` called in the time of a checkpoint; whether that is new."""
        first = not self._notify_since
        if first:
            self._notify_since = _monotonic()
        return first

    def work(self) -> None:
        """Does what is due; what fails is tried again later, and said once."""
        try:
            self.absorb()
            if self._writer.end >= self._cadence.segment_bytes:
                self._rotate()
            if self._checkpoint_in() == 0.0:
                self.sign()
            if self._notify_in() == 0.0:
                self._notify(None)
        except Exception as error:  # noqa: BLE001 - the log goes on without it
            self._asked = False
            self._failed(error)
        else:
            self._healthy = True

    def _rotate(self) -> None:
        # Most of the segment is made durable before anyone has to wait for it.
        self._writer.sync()
        with self._lock:
            sealed = self._writer.seal(self.absorb)
        self._pack([] if sealed is None else [sealed])

    def sign(self) -> Checkpoint | None:
        """Signs a checkpoint of all that is in the log, after making it durable.

        Raises:
            AuditUnavailableError: It could not be written.
            AuditTamperedError: Someone altered the log.
        """
        if self._key is None or self._file is None:
            return None
        self._since, self._asked = 0.0, False
        with self._lock:
            self._edge.extend(self._writer.current_leaves())
            if not self._edge.size or self._edge.size == self._signed:
                return self.newest
            made = Checkpoint.make(self._edge.size, self._edge.root(), key=self._key)
            first, head = self._writer.head()
            # The nodes that end in the segment that is written to, if there are new ones.
            nodes: list[bytes] = []
            kept = self._edge.nodes
            if kept is not None and self._edge.size >= first:
                del kept[: count_until(first) - count_until(self._nodes_from)]
                self._nodes_from = first
                if (head, len(kept)) != (self._nodes_head, self._nodes_kept):
                    self._nodes_head, self._nodes_kept = head, len(kept)
                    nodes = kept.copy()
        self._writer.sync()
        self._file.add(made)
        if nodes:
            keep_open_nodes(self._directory, head=head, nodes=nodes)
        self._signed, self.newest = made.size, made
        what: dict[str, tracing.AttributeValue] = {
            semconv.AUDIT_SIZE: made.size,
            semconv.AUDIT_ROOT: made.root.hex(),
        }
        with tracing.step(semconv.CHECKPOINT, what):
            self._notify(made)
        return made

    def finish(self) -> None:
        """Signs what is left, and compresses what is begun, before the log closes."""
        for work in (self.sign, lambda: self._notify(None) if self._notify_since else None):
            try:
                work()
            except ApexCredsError as error:
                self._failed(error)
        self._ending = True
        for thread in self._packing:
            thread.join()

    def _notify(self, made: Checkpoint | None) -> None:
        self._notify_since = 0.0
        try:
            if self._on_checkpoint is not None:
                self._on_checkpoint(made)
        except BaseException:
            self.notify_soon()  # to be tried again
            raise

    def _pack(self, sealed: Sequence[Path]) -> None:
        """Compresses segments and makes what is beside them, in a thread: it takes long."""
        todo = [
            path
            for path in sealed
            if path.suffix != ".gz"
            or not has_nodes(path)
            or (self._key is not None and not has_summary(path))
        ]
        if todo:
            with self._lock:
                size, root = self._edge.size, self._edge.root()
            arguments = (todo, size, root)
            work = threading.Thread(target=self._compress, args=arguments, daemon=True)
            work.start()
            self._packing.append(work)  # one for each segment: few, so none is taken out

    def _compress(self, paths: Sequence[Path], size: int, root: bytes) -> None:
        try:
            for path in paths:
                if path.suffix != ".gz":
                    compress(path)
            for path in reversed(paths):
                note, content = b"", None
                if self._key is not None:
                    note, content = signed_summary(path, key=self._key, size=size, root=root)
                keep_nodes(path, vault_id=self._writer.vault_id, note=note, content=content)
                if self._ending:
                    break  # an older log may have many: the next opening goes on
        except Exception as error:  # noqa: BLE001 - the next opening tries again
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if self._healthy:
            self._healthy = False
            known = isinstance(error, ApexCredsError)
            what = str(error) if known else type(error).__name__
            _logger.warning("The upkeep of the audit log failed: %s", what)
