"""All destinations of one log beside its own file: a queue and a thread for each.

Guarantee: what the log has written is offered to every destination in the log's order,
without waiting for any of them: an outlet queues it, or counts a drop, which is recorded in
the log itself. Events are delivered one at a time and in order; one that the sink did not
take is delivered again until it does or the outlet closes, so a sink that was away loses
only what its queue could not hold, and may see an event twice. While a required destination
can't take events, ``ready`` refuses, before anything is written or released (rule 5 for
several destinations).
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from apex_creds.audit import line as lines
from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log import AuditLog
from apex_creds.audit.sinks.base import Destination, Line
from apex_creds.errors import AuditUnavailableError, InvalidInputError
from apex_creds.model import Clock
from apex_creds.telemetry import instruments

__all__ = [
    "Destinations",
    "Outlet",
]

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_logger = logging.getLogger("apex_creds.audit")


class Outlet:
    """Takes lines for one destination.

    Args:
        destination: Where they go.
        record: Called in the outlet's thread when events were lost and can be recorded, with
            what is to be said of them.
    """

    def __init__(self, destination: Destination, record: Callable[[str], None]) -> None:
        self.destination = destination
        self.dropped = 0
        self._record = record
        self._queue: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._lost: tuple[int, bytes, bytes] | None = None
        self._failing = ""
        self._closing = self._is_open = False
        self._stop = threading.Event()
        name = f"apex-creds-audit-{destination.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Connects, if the destination is required, and starts delivering.

        Raises:
            OSError: A required destination can't be reached.
        """
        if self.destination.required:
            self.destination.sink.open()
            self._is_open = True
        self._thread.start()

    @property
    def name(self) -> str:
        """The destination's."""
        return self.destination.name

    @property
    def waiting(self) -> int:
        """How many events wait."""
        return len(self._queue)

    @property
    def obstacle(self) -> str:
        """Why it can't be counted on for more events now; empty if it can.

        A quarter of the queue is kept for events that do not wait for an answer.
        """
        if self._failing:
            return f"fails: {self._failing}"
        room = self.destination.capacity - len(self._queue)
        return "is full" if room <= self.destination.capacity // 4 else ""

    def offer(self, line: bytes) -> bool:
        """Queues a line (without newline), or counts it as dropped; never waits.

        Returns:
            False if it is the first to be lost since drops were last reported.
        """
        with self._changed:
            if len(self._queue) >= self.destination.capacity or self._closing:
                return not self._lose(line)
            self._queue.append(line)
            self._changed.notify()
            return True

    def close(self, *, patience: float) -> None:
        """Delivers what waits, for ``patience`` seconds at most, then drops the rest.

        A sink that still blocks then keeps its thread (which does not keep the process).
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is None:
            return
        self._thread.join(patience)
        self._stop.set()
        with self._changed:
            while self._queue:
                self._lose(self._queue.popleft())
            self._changed.notify()
        if self._failing:
            self._thread.join(patience)
        self._report_drops()

    # -- in the outlet's own thread ----------------------------------------------------

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while (line := self._next()) is not None:
            if self._delivered(line):
                pause = _FIRST_PAUSE
                with self._changed:
                    if self._queue and self._queue[0] is line:
                        self._queue.popleft()
                self._report_drops()
            elif self._stop.wait(pause):
                break
            else:
                pause = min(pause * 2, _LONGEST_PAUSE)
        self._disconnect()

    def _next(self) -> bytes | None:
        """The oldest line, left in the queue; None when closing and empty."""
        with self._changed:
            while not self._queue:
                if self._closing:
                    return None
                self._changed.wait()
            return None if self._stop.is_set() else self._queue[0]

    def _delivered(self, line: bytes) -> bool:
        sink = self.destination.sink
        try:
            if not self._is_open:
                sink.open()
                self._is_open = True
            sink.deliver(Line(line, lines.decode(line)))
        except Exception as error:  # noqa: BLE001 - whatever a sink raises stays here
            kind = type(error).__name__
            if not self._failing:
                _logger.warning("Audit events wait for %s: %s", self.destination.name, kind)
            self._failing = kind
            self._disconnect()
            return False
        self._failing = ""
        return True

    def _disconnect(self) -> None:
        self._is_open = False
        try:
            self.destination.sink.close()
        except Exception:  # noqa: BLE001 - it is gone either way
            _logger.debug("Closing %s failed.", self.destination.name)

    def _lose(self, line: bytes) -> bool:
        """Counts a lost line; returns whether it is the first of its kind."""
        self.dropped += 1
        count, first, _ = self._lost or (0, line, line)
        self._lost = (count + 1, first, line)
        return count == 0

    def _report_drops(self) -> None:
        """Reports losses once per run of them: more events would be lost to report more."""
        with self._changed:
            if len(self._queue) > self.destination.capacity // 2:
                return
            lost, self._lost = self._lost, None
        if lost is not None:
            count, first, last = lost[0], *(lines.decode(each).seq for each in lost[1:])
            what = "1 event lost" if count == 1 else f"{count} events lost"
            self._record(f"{self.destination.name}: {what}, of numbers {first} to {last}")


_KIND: Final = b'"kind":"'


class Destinations:
    """Passes on what a log writes: the log's observer, closed with it.

    Make it, give it to the log, then ``bind`` the log to it.

    Args:
        destinations: With names that differ.
        clock: Dates the records of drops.
        patience: Seconds that ``close`` waits for each to take what is queued.

    Raises:
        AuditUnavailableError: A required one can't be reached.
        InvalidInputError: Two have one name.
    """

    def __init__(
        self,
        destinations: Iterable[Destination],
        *,
        clock: Clock,
        patience: float = 2.0,
    ) -> None:
        self._log: AuditLog | None = None
        self._clock = clock
        self._patience = patience
        self._closed = False
        self.outlets = [Outlet(each, self._record) for each in destinations]
        self._required = [each for each in self.outlets if each.destination.required]
        self._takers = {  # which outlets take which kind
            kind.value.encode(): [
                outlet for outlet in self.outlets if outlet.destination.level.takes(kind)
            ]
            for kind in EventKind
        }
        if len({each.destination.name for each in self.outlets}) < len(self.outlets):
            raise InvalidInputError(
                "Two audit destinations have one name.", hint="Add ?name=… to one of them."
            )
        for outlet in self.outlets:
            try:
                outlet.start()
            except Exception as error:  # noqa: BLE001 - a sink may raise anything
                self._stop()
                raise _refusal(outlet, f"can't be reached: {type(error).__name__}") from None
        instruments.watch_outlets(self)

    def bind(self, log: AuditLog) -> None:
        """Names the log in which losses are recorded."""
        self._log = log

    def ready(self) -> None:
        """Called before an event that something waits for is written.

        Raises:
            AuditUnavailableError: A required destination can't take it.
        """
        for outlet in self._required:
            if obstacle := outlet.obstacle:
                raise _refusal(outlet, obstacle)

    def written(self, data: bytes) -> None:
        """Called after lines were written, each with its newline; never raises."""
        if self._closed:
            return
        for line in data.splitlines():
            # Before the kind there are numbers only, so that no name can stand in for it.
            start = line.find(_KIND) + len(_KIND)
            kind = line[start : line.find(b'"', start)]
            for outlet in self._takers.get(kind, self.outlets):
                if not outlet.offer(line):
                    self._record(f"{outlet.destination.name} is full: events are lost")

    def close(self) -> None:
        """Delivers what waits, as far as that is possible, and records what was lost."""
        if not self._closed:
            self._closed = True
            self._stop()

    def _stop(self) -> None:
        for outlet in self.outlets:
            outlet.close(patience=self._patience)

    def _record(self, detail: str) -> None:
        if self._log is None:
            return
        # Queued: this may run within the log's own write.
        event = AuditEvent(self._clock.time(), EventKind.DROPPED, detail=detail)
        with contextlib.suppress(AuditUnavailableError):
            self._log.append(event, flush=False)


def _refusal(outlet: Outlet, why: str) -> AuditUnavailableError:
    return AuditUnavailableError(
        f"The required audit destination {outlet.destination.name!r} {why}.",
        hint="Fix it, or change the configuration so that it is not required.",
    )
