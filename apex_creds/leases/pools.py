"""The connection pools that all clients of a broker share.

Guarantee: a pool that was given is never closed here; one that was made here is, by
``close``. Making one costs milliseconds (certificates are loaded), so it is made once.
"""

from __future__ import annotations

import threading
from typing import Final

import httpx

_LIMITS: Final = httpx.Limits(max_connections=256, max_keepalive_connections=64)


class Pools:
    """One asynchronous and one synchronous pool, each made when first needed.

    Args:
        transport: To be used instead of an asynchronous pool of httpx.
        sync_transport: To be used instead of a synchronous one.
    """

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport | None,
        sync_transport: httpx.BaseTransport | None,
    ) -> None:
        self._given = transport
        self._sync_given = sync_transport
        self._lock = threading.Lock()  # worker threads come here at once
        self._made: httpx.AsyncHTTPTransport | None = None
        self._sync_made: httpx.HTTPTransport | None = None

    def transport(self) -> httpx.AsyncBaseTransport:
        """For ``handle.client()``."""
        if self._given is not None:
            return self._given
        if self._made is None:
            self._made = httpx.AsyncHTTPTransport(limits=_LIMITS)
        return self._made

    def sync_transport(self) -> httpx.BaseTransport:
        """For ``handle.sync_client()``."""
        if self._sync_given is not None:
            return self._sync_given
        with self._lock:
            if self._sync_made is None:
                self._sync_made = httpx.HTTPTransport(limits=_LIMITS)
            return self._sync_made

    async def close(self) -> None:
        """Closes what was made here; idempotent."""
        made, self._made = self._made, None
        sync_made, self._sync_made = self._sync_made, None
        if made is not None:
            await made.aclose()
        if sync_made is not None:
            sync_made.close()
