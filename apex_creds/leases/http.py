"""Sending a secret without showing it: the transports of ``handle.client()``.

Guarantee: the secret is added to a copy of the request, below everything that a plugin
can reach: not in ``request``, not in ``response.request``, not in hooks, logs or errors,
and in no request to an origin, method or path that is not allowed. Connection options
that a plugin could use to listen in are refused or dropped.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httpx

from apex_creds.errors import ApexCredsError, InvalidInputError, RequestNotAllowedError
from apex_creds.leases.body import AsyncBody, Failure, SyncBody, failure
from apex_creds.leases.invocation import caller
from apex_creds.leases.lease import Lease, find_lease
from apex_creds.leases.outgoing import Outgoing, Snapshot, inject, snapshot, without_secret
from apex_creds.leases.pools import AsyncPool, Key, Pool, Turn
from apex_creds.leases.upload import async_upload, upload
from apex_creds.leases.use import Use
from apex_creds.model import CredentialInfo, Origin
from apex_creds.vault import Opened

_AnyBody = httpx.AsyncByteStream | httpx.SyncByteStream
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
_KEPT_RESPONSE_EXTENSIONS: Final = ("http_version",)
"""Not the reason phrase: a server may repeat the secret there; httpx knows the usual ones."""


def open_async_client(
    lease_id: str, scope: str | None, options: dict[str, object]
) -> httpx.AsyncClient:
    """See ``CredentialHandle.client``."""
    chosen: dict[str, Any] = _checked(options)
    transport = InjectingTransport(lease_id, scope)
    return httpx.AsyncClient(transport=transport, trust_env=False, **chosen)


def open_client(lease_id: str, scope: str | None, options: dict[str, object]) -> httpx.Client:
    """See ``CredentialHandle.sync_client``."""
    chosen: dict[str, Any] = _checked(options)
    transport = SyncInjectingTransport(lease_id, scope)
    return httpx.Client(transport=transport, trust_env=False, **chosen)


class InjectingTransport(httpx.AsyncBaseTransport):
    """Redeems a lease for each request; holds the lease's id only."""

    def __init__(self, lease_id: str, scope: str | None) -> None:
        self._lease_id = lease_id
        self._scope = scope
        self._bodies: list[AsyncBody] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a copy of ``request`` that carries the secret."""
        lease = find_lease(self._lease_id)
        taken = _snapshot(request, lease)
        use = taken.use(self._scope)
        pool = await lease.broker.pools.here(_key(lease))
        turn = await pool.turn(_allowed(use, lease), patience=taken.timeout["pool"])
        try:
            body = async_upload(taken.stream)
            try:
                lease, record, opened = await lease.broker.redeem(self._lease_id, use)
                with opened:
                    outgoing = _injected(taken, opened, record.info, body)
                sent = await _send(pool, outgoing)
                del outgoing
            finally:
                body.stop()
            if isinstance(sent, Failure):
                raise sent.error(request)
            stream = sent.stream
            assert isinstance(stream, httpx.AsyncByteStream)
            answer = AsyncBody(stream, request, turn, lease, asyncio.get_running_loop())
            turn = Turn()
        finally:
            turn.done()
        self._bodies = [open_ for open_ in self._bodies if open_.is_open] + [answer]
        return _detached(sent, answer)

    async def aclose(self) -> None:
        """Closes the responses that are still open; the pool is shared and stays."""
        for body in self._bodies:
            await body.aclose()


class SyncInjectingTransport(httpx.BaseTransport):
    """As ``InjectingTransport``, for worker threads."""

    def __init__(self, lease_id: str, scope: str | None) -> None:
        self._lease_id = lease_id
        self._scope = scope
        self._bodies: list[SyncBody] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a copy of ``request`` that carries the secret."""
        lease = find_lease(self._lease_id)
        taken = _snapshot(request, lease)
        use = taken.use(self._scope)
        pool = lease.broker.pools.entered(_key(lease))
        turn = pool.turn(_allowed(use, lease), patience=taken.timeout["pool"])
        try:
            body = upload(taken.stream)
            try:
                lease, record, opened = lease.broker.redeem_blocking(self._lease_id, use)
                with opened:
                    outgoing = _injected(taken, opened, record.info, body)
                sent = _send_blocking(pool, outgoing)
                del outgoing
            finally:
                body.stop()
            if isinstance(sent, Failure):
                raise sent.error(request)
            stream = sent.stream
            assert isinstance(stream, httpx.SyncByteStream)
            answer = SyncBody(stream, request, turn, lease)
            turn = Turn()
        finally:
            turn.done()
        self._bodies = [open_ for open_ in self._bodies if open_.is_open] + [answer]
        return _detached(sent, answer)

    def close(self) -> None:
        """Closes the responses that are still open; the pool is shared and stays."""
        for body in self._bodies:
            body.close()


def _snapshot(request: httpx.Request, lease: Lease) -> Snapshot:
    try:
        return snapshot(request)
    except RequestNotAllowedError:
        lease.broker.log_refused_request(lease)
        raise


def _key(lease: Lease) -> Key:
    """Who sends, with what: the plugin that is running, whoever's handle it was given."""
    return Key(caller(), lease.record_id)


def _allowed(use: Use, lease: Lease) -> Origin | None:
    """The origin, if a turn is to be waited for; a refusal is not waited for."""
    return use.origin if use.origin in lease.permission.origins else None


def _injected(
    taken: Snapshot, opened: Opened, info: CredentialInfo, body: _AnyBody
) -> Outgoing | Failure:
    try:
        return inject(taken, opened, info.delivery, body=body, name=info.name)
    except ApexCredsError as error:
        return failure(error)
    except Exception:  # its frames and words may hold the secret
        refused = InvalidInputError("The request can't be built with the credential in it.")
        return Failure(refused, "")


async def _send(pool: AsyncPool, outgoing: Outgoing | Failure) -> httpx.Response | Failure:
    if isinstance(outgoing, Failure):
        return outgoing
    try:
        response = await pool.transport.handle_async_request(outgoing.request)
    except BaseException as error:
        return failure(error)
    response.headers = without_secret(response.headers, outgoing)
    return response


def _send_blocking(pool: Pool, outgoing: Outgoing | Failure) -> httpx.Response | Failure:
    if isinstance(outgoing, Failure):
        return outgoing
    try:
        response = pool.transport.handle_request(outgoing.request)
    except BaseException as error:
        return failure(error)
    response.headers = without_secret(response.headers, outgoing)
    return response


def _detached(response: httpx.Response, body: AsyncBody | SyncBody) -> httpx.Response:
    """A response without the references that lead to the request as it was sent."""
    extensions: dict[str, Any] = {
        name: response.extensions[name]
        for name in _KEPT_RESPONSE_EXTENSIONS
        if name in response.extensions
    }
    return httpx.Response(
        response.status_code, headers=response.headers, stream=body, extensions=extensions
    )


def _checked(options: dict[str, object]) -> dict[str, object]:
    refused = sorted(set(options) - _OPTIONS)
    if refused:
        raise InvalidInputError(
            f"handle.client() does not take {', '.join(refused)}.",
            hint=f"It takes {', '.join(sorted(_OPTIONS))}.",
        )
    return {"timeout": _TIMEOUT, **options}
