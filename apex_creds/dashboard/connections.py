"""A connection of a browser, or of anybody else on this machine.

Guarantee: connections on which no session was shown are bounded in number, and a new one is
always taken: the oldest of them is cut off for it, whatever it waits for (its TLS handshake,
the rest of a request, a reader of an answer). Those with a session are never cut off by
others, so who opens many neither fills the dashboard up nor ends what somebody looks at.
"""

from __future__ import annotations

import asyncio
import ssl
from itertools import count
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from apex_creds.dashboard.sessions import WITH_SESSION

BACKLOG: Final = 128
MAX_STRANGERS: Final = 2 * BACKLOG
"""More than are taken at once: a new one is read before others can crowd it out."""

HANDSHAKE_SECONDS: Final = 10.0

_order = count()


class Connection(H11Protocol):
    """One connection.

    Args:
        args: As uvicorn has them.
        tls: What it is served with; None: it is not, or the transport does that.
        more: As ``args``.
    """

    def __init__(self, *args: Any, tls: ssl.SSLContext | None = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.number = next(_order)
        self._tls = tls
        self._handshake: asyncio.Task[None] | None = None
        self._early = b""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes it, and cuts off the oldest stranger if there are too many."""
        super().connection_made(transport)
        known = [each for each in self.connections if isinstance(each, Connection)]
        strangers = [each for each in known if each.stranger]
        if len(strangers) > MAX_STRANGERS:
            min(strangers, key=lambda each: each.number).transport.abort()
        if self._tls is not None:
            self._handshake = self.loop.create_task(self._begin_tls(transport, self._tls))

    async def _begin_tls(self, raw: asyncio.Transport, tls: ssl.SSLContext) -> None:
        """Here and not by the server, which tells of no connection before its handshake."""
        try:
            transport = await self.loop.start_tls(
                raw, self, tls, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except OSError:  # as what TLS refuses and a time that is over are
            transport = None
        if transport is None:  # cut off meanwhile
            raw.abort()
            self.connections.discard(self)
        else:
            self._tls = None
            super().connection_made(transport)
            if self._early:
                self.data_received(self._early)

    def data_received(self, data: bytes) -> None:
        """Takes what came; what came with the end of the handshake waits for its transport."""
        if self._tls is not None:
            self._early += data
        else:
            super().data_received(data)

    @property
    def stranger(self) -> bool:
        """Whether it is open, and its last request (there may be none) showed no session."""
        scope: object = self.scope
        shown = isinstance(scope, dict) and WITH_SESSION in scope
        return not shown and not self.transport.is_closing()
