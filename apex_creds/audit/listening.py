"""What can be attached to an audit log.

Guarantee: a listener hears of every line that this process's log wrote after it was
attached, in order, once, and only after the line is in the file.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Listener"]


class Listener(Protocol):
    """Hears what a log writes; must not block."""

    def ready(self) -> None:
        """Called before an event that a caller waits for.

        Raises:
            AuditUnavailableError: The event may not be written now, so nothing is released.
        """

    def written(self, data: bytes) -> None:
        """Called under the log's lock with whole lines, each with its newline; never raises.

        It may queue events (``append`` with ``flush=False``), and nothing else of the log.
        """

    def close(self) -> None:
        """Called when the log closes, before its last write; idempotent, never raises."""
