"""The destinations that a vault's log is opened with.

Guarantee: all that are given, configured and named by the environment, or an error; where
there are none, nothing is started.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable

import anyio.to_thread

from apex_creds.audit.sinks.base import Destination
from apex_creds.audit.sinks.hub import Destinations
from apex_creds.audit.sinks.parse import from_environment, parse
from apex_creds.model import Clock

__all__ = ["open_destinations"]


async def open_destinations(
    given: Iterable[Destination], configured: Iterable[str], *, clock: Clock
) -> Destinations | None:
    """Connects and starts them; for the log's ``observer``.

    Args:
        given: By the program.
        configured: As text, see ``parse``.
        clock: Dates the records of drops.

    Raises:
        AuditUnavailableError: A required one can't be reached.
        InvalidInputError: One is not understood, or two have one name.
    """
    wanted = [*given, *map(parse, configured), *from_environment(os.environ)]
    if not wanted:
        return None
    make = functools.partial(Destinations, wanted, clock=clock)
    # Connecting may take as long as a network's timeout.
    return await anyio.to_thread.run_sync(make)
