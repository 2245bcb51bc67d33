"""A connection of a browser, or of anybody else on this machine.

Guarantee: connections on which no session was shown are bounded in number, and a new one is
always taken: the oldest of them is cut off for it, whatever it waits for (the rest of a
request, a reader of an answer). Those with a session are never cut off by others, so who
opens many neither fills the dashboard up nor ends what somebody looks at.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from apex_creds.dashboard.sessions import WITH_SESSION

BACKLOG: Final = 128
MAX_STRANGERS: Final = 2 * BACKLOG
"""More than are taken at once: a new one is read before others can crowd it out."""

_order = count()


class Connection(H11Protocol):
    """One connection."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.number = next(_order)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes it, and cuts off the oldest stranger if there are too many."""
        super().connection_made(transport)
        known = [each for each in self.connections if isinstance(each, Connection)]
        strangers = [each for each in known if each.stranger]
        if len(strangers) > MAX_STRANGERS:
            min(strangers, key=lambda each: each.number).transport.abort()

    @property
    def stranger(self) -> bool:
        """Whether it is open, and its last request (there may be none) showed no session."""
        scope: object = self.scope
        shown = isinstance(scope, dict) and WITH_SESSION in scope
        return not shown and not self.transport.is_closing()
