"""``handle.client()``: the sending step as a transport of httpx.

Guarantee: the secret is in none of httpx's objects, and connection options that a plugin could
use to listen in are refused or dropped.
"""

from __future__ import annotations

import functools
from typing import Any, Final, TypeVar

import httpx

from apex_creds.errors import InvalidInputError
from apex_creds.leases.bodies import OPEN, AsyncBody, SyncBody
from apex_creds.leases.exchange import exchange, exchange_blocking
from apex_creds.leases.http_messages import Answered, Request, SendFailure

_OPTIONS: Final = frozenset(
    {
        "base_url",
        "cookies",
        "default_encoding",
        "event_hooks",
        "follow_redirects",
        "headers",
        "max_redirects",
        "params",
        "timeout",
    }
)
_TIMEOUT: Final = httpx.Timeout(5.0, pool=60.0)
"""As httpx's own; but for a connection, which plugins share, a request waits its turn."""
_SHARED: Final = frozenset(
    {
        "_auth",
        "_base_url",
        "_default_encoding",
        "_params",
        "_state",
        "_trust_env",
        "follow_redirects",
        "max_redirects",
    }
)
"""What clients without options have in common; nothing changes it in place."""
_OWN: Final = frozenset(
    {"_cookies", "_event_hooks", "_headers", "_mounts", "_timeout", "_transport"}
)
C = TypeVar("C", httpx.AsyncClient, httpx.Client)


def open_async_client(
    lease_id: str, scope: str | None, options: dict[str, object]
) -> httpx.AsyncClient:
    """See ``CredentialHandle.client``."""
    return _client(httpx.AsyncClient, InjectingTransport(lease_id, scope), options)


def open_client(lease_id: str, scope: str | None, options: dict[str, object]) -> httpx.Client:
    """See ``CredentialHandle.sync_client``."""
    return _client(httpx.Client, SyncInjectingTransport(lease_id, scope), options)


def _client(kind: type[C], transport: object, options: dict[str, object]) -> C:
    refused = options.keys() - _OPTIONS
    if refused:
        raise InvalidInputError(
            f"handle.client() does not take {', '.join(sorted(refused))}.",
            hint=f"It takes {', '.join(sorted(_OPTIONS))}.",
        )
    parts = None if options else _PARTS.get(kind)
    if parts is None:
        chosen: dict[str, Any] = {"timeout": _TIMEOUT, **options, "transport": transport}
        return kind(trust_env=False, **chosen)
    client: Any = kind.__new__(kind)
    vars(client).update(parts)
    client._cookies, client._timeout = httpx.Cookies(), httpx.Timeout(_TIMEOUT)
    client._event_hooks, client._mounts = {"request": [], "response": []}, {}
    client._headers, client._transport = httpx.Headers(parts["_headers"]), transport
    found: C = client
    return found


class InjectingTransport(httpx.AsyncBaseTransport):
    """Redeems a lease for each request; holds the lease's id only."""

    def __init__(self, lease_id: str, scope: str | None) -> None:
        self._lease_ids = (lease_id,)
        self._scope = scope
        self._bodies: list[AsyncBody] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a copy of ``request`` that carries the secret."""
        answered = await exchange(self._lease_ids, neutral(request, self._scope))
        body = answered.body
        assert isinstance(body, AsyncBody)
        if self._bodies:
            self._bodies = [open_ for open_ in self._bodies if open_ in OPEN]
        self._bodies.append(body)
        return response(answered)

    async def aclose(self) -> None:
        """Closes the responses that are still open; the pool is shared and stays."""
        for body in self._bodies:
            if body in OPEN:
                await body.aclose()


class SyncInjectingTransport(httpx.BaseTransport):
    """As ``InjectingTransport``, for worker threads."""

    def __init__(self, lease_id: str, scope: str | None) -> None:
        self._lease_ids = (lease_id,)
        self._scope = scope
        self._bodies: list[SyncBody] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a copy of ``request`` that carries the secret."""
        answered = exchange_blocking(self._lease_ids, neutral(request, self._scope))
        body = answered.body
        assert isinstance(body, SyncBody)
        self._bodies = [*(open_ for open_ in self._bodies if open_ in OPEN), body]
        return response(answered)

    def close(self) -> None:
        """Closes the responses that are still open; the pool is shared and stays."""
        for body in self._bodies:
            body.close()


def _parts(kind: type[httpx.AsyncClient | httpx.Client]) -> dict[str, Any] | None:
    """What clients without options share, and their headers; None: httpx has other parts.

    For each client, httpx would read an empty URL, and make headers, a jar and a map of
    proxies: a seventh of the calls of a request.
    """
    unused: Any = InjectingTransport("", None)
    parts = vars(kind(transport=unused, trust_env=False))
    if parts.keys() != _SHARED | _OWN:
        return None
    return {name: parts[name] for name in (*_SHARED, "_headers")}


_PARTS: Final = {kind: _parts(kind) for kind in (httpx.AsyncClient, httpx.Client)}


def neutral(request: httpx.Request, scope: str | None = None) -> Request:
    """A request of httpx in neutral values."""
    return Request(
        request.method,
        request.url,
        request.headers.raw,
        request.stream,
        request.extensions.get("timeout") or {},
        functools.partial(error, request=request),
        scope,
    )


def response(answered: Answered) -> httpx.Response:
    """An answer as httpx has it."""
    version = answered.http_version
    return httpx.Response(
        answered.status,
        headers=answered.headers if answered.given is None else answered.given,
        stream=answered.body,
        extensions={} if version is None else {"http_version": version},
    )


def error(failure: SendFailure, *, request: httpx.Request) -> Exception:
    """A failure as httpx says it."""
    if failure.kind == "closed":
        return httpx.StreamClosed()
    kind: type[httpx.RequestError] = getattr(httpx, failure.name)
    return kind(failure.text, request=request)
