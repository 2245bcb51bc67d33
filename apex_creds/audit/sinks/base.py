"""What a destination of audit events is, and which it gets; files and streams as one.

Guarantee: a ``Sink`` is called by one thread only, its outlet's; it may block
and it may raise, and neither reaches the code that is being audited. An event of a kind
that this module does not name goes to every level but ``denials``; a new kind is rather
seen too often than not at all. A stream gets each line with its newline in as few writes as
the system allows, and exactly as the log has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, runtime_checkable

from apex_creds.audit.events import EventKind, Recorded
from apex_creds.errors import InvalidInputError

__all__ = [
    "CallbackSink",
    "Destination",
    "Level",
    "Line",
    "Sink",
    "StreamSink",
    "severity",
]

_ROUTINE: Final = frozenset({EventKind.INVOCATION, EventKind.LEASE, EventKind.REDEEM})
_REFUSALS: Final = frozenset({EventKind.DENIAL, EventKind.LEAK, EventKind.UNSEARCHED})
_NO_CHANGE: Final = frozenset({EventKind.UNSEAL, EventKind.EXPOSE})
_EVERYDAY: Final = frozenset({EventKind.PUT})


class Level(StrEnum):
    """How much a destination gets.

    ``mutations`` is what changes the vault; ``denials`` is what was refused, and leaks, and
    output that can't be searched;
    ``security`` is what someone on watch should see: refusals, unsealing, exposures,
    deletions, grants and their ends, and what the log says of itself.
    """

    ALL = "all"
    MUTATIONS = "mutations"
    DENIALS = "denials"
    SECURITY = "security"

    def takes(self, kind: EventKind) -> bool:
        """Whether events of ``kind`` are of this level."""
        if self is Level.DENIALS:
            return kind in _REFUSALS
        return kind not in _EXCLUDED[self]


_EXCLUDED: Final[dict[Level, frozenset[EventKind]]] = {
    Level.ALL: frozenset(),
    Level.MUTATIONS: _ROUTINE | _REFUSALS | _NO_CHANGE,
    Level.SECURITY: _ROUTINE | _EVERYDAY,
}

_INFO, _NOTICE, _WARNING, _ERROR = 6, 5, 4, 3
_SEVERITIES: Final[dict[EventKind, int]] = {
    **dict.fromkeys(_ROUTINE, _INFO),
    EventKind.DENIAL: _WARNING,
    EventKind.LEAK: _ERROR,
    EventKind.UNSEARCHED: _WARNING,
    EventKind.DROPPED: _ERROR,
    EventKind.ROLLBACK: _ERROR,
    EventKind.RECOVERED: _WARNING,
}


def severity(kind: EventKind) -> int:
    """The severity of ``kind`` in syslog and the journal (RFC 5424, section 6.2.1)."""
    return _SEVERITIES.get(kind, _NOTICE)


@dataclass(frozen=True, slots=True)
class Line:
    """One event, as the log has it.

    Attributes:
        data: The line's bytes, without its newline. They are covered by the log's hashes,
            so a copy that is kept elsewhere can be compared with the log.
        event: The same, decoded.
    """

    data: bytes
    event: Recorded


@runtime_checkable
class Sink(Protocol):
    """Takes events to where they are kept or seen."""

    def open(self) -> None:
        """Connects; called again after a failure.

        Raises:
            OSError: It can't be reached now.
        """

    def deliver(self, line: Line) -> None:
        """Hands over one event; may block.

        Raises:
            Exception: It was not taken; it is delivered again later, after ``open``.
        """

    def close(self) -> None:
        """Disconnects; idempotent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A sink, what it gets, and what follows when it can't take it.

    Attributes:
        name: Names it in drops, metrics and errors: 1 to 64 characters.
        sink: Where events go.
        level: Which events.
        required: Whether redeems are refused while it can't take events.
        capacity: How many events wait for it at most.
    """

    name: str
    sink: Sink
    level: Level = Level.ALL
    required: bool = False
    capacity: int = 10_000

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            InvalidInputError: The name is empty or too long, or the capacity below 16.
        """
        if not 0 < len(self.name) <= 64 or self.capacity < 16:
            raise InvalidInputError(
                "A destination needs a name, and room for 16 events or more.",
                hint="Like: syslog:/dev/log?level=security&capacity=10000",
            )


_STDERR = 2


class StreamSink:
    """Writes to a file descriptor, which stays open.

    Args:
        fd: Standard error by default.
    """

    def __init__(self, fd: int = _STDERR) -> None:
        self._fd = fd

    def open(self) -> None:
        """It is open.

        Raises:
            OSError: The descriptor is not.
        """
        os.fstat(self._fd)

    def deliver(self, line: Line) -> None:
        """Writes one line.

        Raises:
            OSError: It can't be written.
        """
        rest = memoryview(line.data + b"\n")
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def close(self) -> None:
        """Leaves it open."""


class CallbackSink:
    """Calls a function with each event, in the outlet's thread.

    Args:
        function: What it raises means that the event was not taken.
    """

    def __init__(self, function: Callable[[Recorded], object]) -> None:
        self._function = function

    def open(self) -> None:
        """Nothing to connect."""

    def deliver(self, line: Line) -> None:
        """Calls the function."""
        self._function(line.event)

    def close(self) -> None:
        """Nothing to disconnect."""
