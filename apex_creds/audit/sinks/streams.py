"""Events as JSON Lines on a stream, standard error by default; and to a function.

Guarantee: a line goes out with its newline in as few writes as the system allows, and
exactly as the log has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from apex_creds.audit.events import Recorded
from apex_creds.audit.sinks.base import Line

__all__ = ["CallbackSink", "StreamSink"]

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
