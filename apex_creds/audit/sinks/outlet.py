"""A destination's queue and its thread.

Guarantee: ``offer`` never waits for the sink: it queues, or counts a drop. Events are
delivered one at a time and in order; one that the sink did not take is delivered again
until it does or the outlet closes, so a sink that was away loses only what its queue could
not hold, and may see an event twice.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from apex_creds.audit import line as lines
from apex_creds.audit.sinks.base import Destination, Line

__all__ = ["Outlet"]

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0
_logger = logging.getLogger("apex_creds.audit")


class Outlet:
    """Takes lines for one destination.

    Args:
        destination: Where they go.
        on_drops: Called in the outlet's thread when events were lost and can be told of:
            with the name, how many, and the numbers of the first and the last.
    """

    def __init__(
        self, destination: Destination, on_drops: Callable[[str, int, int, int], None]
    ) -> None:
        self.destination = destination
        self.dropped = 0
        self._on_drops = on_drops
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
            False if it is the first to be lost since all was well, or since it was told.
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
            self._give_up()
            self._changed.notify()
        if self._failing:
            self._thread.join(patience)
        self._tell()

    # -- in the outlet's own thread ----------------------------------------------------

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while (line := self._next()) is not None:
            if self._delivered(line):
                pause = _FIRST_PAUSE
                with self._changed:
                    if self._queue and self._queue[0] is line:
                        self._queue.popleft()
                self._tell()
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
            self._failed(type(error).__name__)
            return False
        self._failing = ""
        return True

    def _failed(self, error: str) -> None:
        if not self._failing:
            _logger.warning("Audit events wait for %s: %s", self.destination.name, error)
        self._failing = error
        self._disconnect()

    def _disconnect(self) -> None:
        self._is_open = False
        try:
            self.destination.sink.close()
        except Exception:  # noqa: BLE001 - it is gone either way
            _logger.debug("Closing %s failed.", self.destination.name)

    def _give_up(self) -> None:
        while self._queue:
            self._lose(self._queue.popleft())

    def _lose(self, line: bytes) -> bool:
        """Counts a lost line; returns whether it is the first of its kind."""
        self.dropped += 1
        count, first, _ = self._lost or (0, line, line)
        self._lost = (count + 1, first, line)
        return count == 0

    def _tell(self) -> None:
        """Tells of losses, once per run of them: more events would be lost to tell more."""
        with self._changed:
            if len(self._queue) > self.destination.capacity // 2:
                return
            lost, self._lost = self._lost, None
        if lost is not None:
            count, first, last = lost
            self._on_drops(
                self.destination.name, count, lines.decode(first).seq, lines.decode(last).seq
            )
