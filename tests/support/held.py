"""Sinks that a test holds by the hand, and events for them."""

from __future__ import annotations

import threading

from apex_creds.audit import AuditEvent, EventKind
from apex_creds.audit.sinks import Line
from tests.support.loops import WITHIN


class HeldSink:
    """Blocks in ``deliver`` until the test lets it go; remembers what it took."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()
        self.taken: list[Line] = []
        self.opened = self.closed = 0

    def open(self) -> None:
        self.opened += 1

    def deliver(self, line: Line) -> None:
        self.entered.set()
        assert self.go.wait(WITHIN)
        self.taken.append(line)

    def close(self) -> None:
        self.closed += 1


class FailingSink:
    """Raises while ``broken`` is set; ``failed`` and ``delivered`` tell the test."""

    def __init__(self, *, broken: bool) -> None:
        self.broken = broken
        self.failed, self.delivered = threading.Event(), threading.Event()
        self.taken: list[int] = []

    def open(self) -> None:
        if self.broken:
            self.failed.set()
            raise ConnectionRefusedError("hunter2 is in this text")

    def deliver(self, line: Line) -> None:
        if self.broken:
            self.failed.set()
            raise BrokenPipeError("hunter2 is in this text")
        self.taken.append(line.event.seq)
        self.delivered.set()

    def close(self) -> None:
        pass


def event(kind: EventKind = EventKind.REDEEM, **fields: object) -> AuditEvent:
    return AuditEvent(1700000000.25, kind, **fields)  # type: ignore[arg-type]
