"""All destinations of one log beside its own file.

Guarantee: what the log has written is offered to every destination in the log's order,
without waiting for any of them; what one of them loses is counted, and recorded in the log
itself. While a required one can't take events, ``ready`` refuses, before anything is
written or released (rule 5 for several destinations).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Final

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.audit.log import AuditLog
from apex_creds.audit.sinks.base import Destination
from apex_creds.audit.sinks.outlet import Outlet
from apex_creds.errors import AuditUnavailableError, InvalidInputError
from apex_creds.model import Clock
from apex_creds.telemetry import instruments

__all__ = ["Destinations"]

_KIND: Final = b'"kind":"'
_KINDS: Final = {kind.value.encode(): kind for kind in EventKind}


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
        self.outlets = [Outlet(each, self._record_drops) for each in destinations]
        self._required = [each for each in self.outlets if each.destination.required]
        self._takers = _takers(self.outlets)
        self._start()
        instruments.watch_outlets(self)

    def bind(self, log: AuditLog) -> None:
        """Names the log in which losses are recorded."""
        self._log = log

    def _start(self) -> None:
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
            for outlet in self._takers.get(_kind_of(line), self.outlets):
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

    def _record_drops(self, name: str, count: int, first: int, last: int) -> None:
        lost = "1 event lost" if count == 1 else f"{count} events lost"
        self._record(f"{name}: {lost}, of numbers {first} to {last}")

    def _record(self, detail: str) -> None:
        if self._log is None:
            return
        # Queued: this may run within the log's own write.
        event = AuditEvent(self._clock.time(), EventKind.DROPPED, detail=detail)
        with contextlib.suppress(AuditUnavailableError):
            self._log.append(event, flush=False)


def _kind_of(line: bytes) -> bytes:
    # Before the kind there are numbers only, so that no name can stand in for it.
    start = line.find(_KIND) + len(_KIND)
    return line[start : line.find(b'"', start)]


def _takers(outlets: list[Outlet]) -> dict[bytes, list[Outlet]]:
    """Which outlets take which kind."""
    return {
        text: [outlet for outlet in outlets if outlet.destination.level.takes(kind)]
        for text, kind in _KINDS.items()
    }


def _refusal(outlet: Outlet, why: str) -> AuditUnavailableError:
    return AuditUnavailableError(
        f"The required audit destination {outlet.destination.name!r} {why}.",
        hint="Mend it, or change the configuration so that it is not required.",
    )
