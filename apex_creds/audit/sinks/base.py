"""What a destination of audit events is.

Guarantee: a ``Sink`` is called by one thread only, that of its own outlet; it may block
and it may raise, and neither reaches the code that is being audited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from apex_creds.audit.events import Recorded
from apex_creds.audit.sinks.levels import Level
from apex_creds.errors import InvalidInputError

__all__ = ["Destination", "Line", "Sink"]


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
