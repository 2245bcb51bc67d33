"""Sends a request with its secrets, for whatever library it came from: the one way out.

Guarantee: the secrets are added to a copy of the request, below everything that a plugin can
reach: not in what it handed in, not in what it gets back, not in hooks, logs or errors, and in
no request to an origin, method or path that is not allowed to each of them. In this order: the
request is read once into plain values; a place in the pool of this plugin and these
credentials; each lease is redeemed (checked, audited, decrypted into locked memory); the
secrets are put in, each in its own way; it is sent; the answer is searched for them.

An adapter hands in neutral values and gets neutral values: it knows its library, and nothing of
leases; nothing here knows a library. What is sent elsewhere (a WebSocket, gRPC) gets its head
with the secrets in it, checked, audited and made as every request is, and keeps none of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

from apex_creds.concurrency import run_at_once
from apex_creds.documents.records import Record
from apex_creds.errors import ApexCredsError, InvalidInputError, RequestNotAllowedError
from apex_creds.leases.bodies import (
    NOTHING,
    AsyncBody,
    AsyncUpload,
    SyncBody,
    Upload,
    Whole,
    bare,
    failed,
    upload,
)
from apex_creds.leases.broker import LeaseBroker, find_open
from apex_creds.leases.connection_pool import (
    Answer,
    AsyncPool,
    Connections,
    Key,
    Pool,
)
from apex_creds.leases.deliveries import Snapshot, Use
from apex_creds.leases.http_messages import Answered, AnswerSearch, Request, Say
from apex_creds.leases.lease import AccessRequest, Lease, caller
from apex_creds.leases.outgoing_requests import Outgoing, check_no_source, inject, snapshot
from apex_creds.model import Origin


async def exchange(
    lease_ids: Sequence[str], request: Request, *, blocking: bool = False
) -> Answered:
    """Sends ``request`` with the secrets of these leases, of one invocation.

    Args:
        lease_ids: Of the leases.
        request: As the adapter has it.
        blocking: Without waiting for anything in an event loop: see ``exchange_blocking``.

    Raises:
        ApexCredsError: It may not be sent.
        BaseException: It failed: what ``request.say`` makes of that, or what the request's
            body raised.
    """
    try:
        return await _exchange(lease_ids, request, blocking=blocking)
    except BaseException as error:
        failure = bare(error)
    raise failure


async def _exchange(lease_ids: Sequence[str], request: Request, *, blocking: bool) -> Answered:
    """As ``exchange``; the frames of what it raises lead to what came, and to the pool."""
    leases, broker, taken, asked, key, waits = checked(lease_ids, request)
    if broker.search is not None:
        broker.search.ask(leases, taken.headers)
    patience = taken.timeout["pool"]
    pool: AsyncPool | Pool
    try:
        if blocking:
            pool = broker.connections.entered(key)
            permit = pool.permit(waits, patience=patience)
        else:
            pool = await broker.connections.here(key)
            permit = await pool.permit(waits, patience=patience)
    except httpx.PoolTimeout as error:
        raise failed(error, request.say) from None
    answer: AsyncBody | SyncBody | None = None
    try:
        body = NOTHING if taken.stream is None else upload(taken.stream, blocking=blocking)
        try:
            outgoing, records = await _redeemed(
                broker, leases, asked, taken, body, blocking=blocking
            )
            sent = await _send(pool, outgoing, request.say)
            del outgoing
        finally:
            if body is not NOTHING:
                body.stop()
        if isinstance(sent, BaseException):
            raise sent
        stream: Any = sent.stream
        if blocking:
            answer = SyncBody(stream, request.say, permit, leases)
        else:
            loop = asyncio.get_running_loop()
            answer = AsyncBody(stream, request.say, permit, leases, loop)
    finally:
        if answer is None:
            permit.done()
    return _answered(broker.search, leases, records, taken.method, sent, answer)


def exchange_blocking(lease_ids: Sequence[str], request: Request) -> Answered:
    """As ``exchange``, for worker threads."""
    return run_at_once(exchange(lease_ids, request, blocking=True))


async def _redeemed(
    broker: LeaseBroker,
    leases: Sequence[Lease],
    asked: AccessRequest,
    taken: Snapshot,
    body: AsyncUpload | Upload | Whole,
    *,
    blocking: bool,
) -> tuple[Outgoing | BaseException, list[Record]]:
    """The request with the secrets of the leases in it, and what it was made with.

    What is open is wiped when it returns. Why the request can't be made is no exception yet: a
    frame of its traceback would hold the secret.

    Raises:
        ApexCredsError: A lease can't be redeemed.
    """
    uses: list[Use] = []
    records: list[Record] = []
    try:
        for lease in leases:
            record, opened = (
                broker.redeem_blocking(lease, asked)
                if blocking
                else await broker.redeem(lease, asked)
            )
            uses.append(Use(opened, record))
            records.append(record)
        outgoing: Outgoing | BaseException
        try:
            outgoing = inject(taken, uses, body=body)
        except ApexCredsError as error:
            outgoing = bare(error)
        except Exception:  # its frames and words may hold the secret
            words = "The request can't be built with the credential in it."
            outgoing = InvalidInputError(words)
        return outgoing, records
    finally:
        for use in uses:
            use.opened.close()


def checked(
    lease_ids: Sequence[str], request: Request
) -> tuple[list[Lease], LeaseBroker, Snapshot, AccessRequest, Key, Origin | None]:
    """What is needed before anything is waited for; last the origin to wait for a place to."""
    leases: list[Lease] = []
    credentials = ""
    broker: LeaseBroker | None = None
    bodies: Sequence[str] = ()
    limited = False
    for lease_id in lease_ids:
        lease, its_broker = find_open(lease_id)
        if broker not in (None, its_broker):
            raise InvalidInputError("Credentials of two vaults can't go in one request.")
        broker = its_broker
        may = lease.permission.bodies
        bodies = [each for each in bodies if each in may] if leases else may
        limited = limited or bool(lease.permission.paths)
        leases.append(lease)
        credentials += lease.record_id
    assert broker is not None
    try:
        taken = snapshot(
            request.method,
            request.url,
            request.headers,
            request.body,
            request.timeout,
            bodies,
        )
        if limited:
            check_no_source(taken)
    except RequestNotAllowedError:
        for lease in leases:
            broker.log_refused_request(lease, seen(request))
        raise
    asked = AccessRequest(taken.method, taken.origin, taken.path, request.scope)
    waits: Origin | None = taken.origin
    for lease in leases:
        if taken.origin not in lease.permission.origins:
            waits = None  # a refusal is not waited for
    return leases, broker, taken, asked, Key(caller(), credentials), waits


def seen(request: Request) -> AccessRequest:
    """Where a request goes, as far as that can be seen before it is checked; for the log."""
    method = request.method if type(request.method) is str else ""
    try:
        url = httpx.URL(str(request.url))
        if url.scheme not in ("http", "https"):
            return AccessRequest(method)
        port = url.port or (443 if url.scheme == "https" else 80)
        origin = Origin(url.scheme, url.host, port)
    except (httpx.InvalidURL, ApexCredsError):
        return AccessRequest(method)
    return AccessRequest(method, origin, url.raw_path.decode("ascii").partition("?")[0])


async def _send(
    pool: AsyncPool | Pool, outgoing: Outgoing | BaseException, say: Say
) -> Answer | BaseException:
    if isinstance(outgoing, BaseException):
        return outgoing
    try:
        if isinstance(pool.transport, Connections):
            return await pool.transport.send(outgoing)
        if isinstance(pool, Pool):
            response = pool.transport.handle_request(outgoing.request())
        else:
            response = await pool.transport.handle_async_request(outgoing.request())
        headers = response.headers
        return Answer(
            response.status_code, headers.raw, response.stream, response.extensions, headers
        )
    except BaseException as error:
        return failed(error, say)


def _answered(
    search: AnswerSearch | None,
    leases: Sequence[Lease],
    records: Sequence[Record],
    method: str,
    sent: Answer,
    body: AsyncBody | SyncBody,
) -> Answered:
    """An answer whose head was searched, and whose body is from here on."""
    headers, given = sent.headers, sent.given
    if search is not None:
        try:
            found = search.begin(leases, records, method, sent.status, headers)
        except BaseException:
            body.abandon()
            raise
        if found is not None:
            body.search_with(found)
            if found.headers is not headers:
                headers, given = found.headers, None
    version = sent.extensions.get("http_version")  # not the reason: it may repeat the secret
    return Answered(sent.status, headers, body, version, given)


class Head(NamedTuple):
    """A head, and what it was made with.

    Attributes:
        search: Finds in answers what was sent; None: nothing is searched for.
    """

    outgoing: Outgoing
    leases: list[Lease]
    records: list[Record]
    search: AnswerSearch | None


async def injected_head(
    lease_ids: Sequence[str], request: Request, *, blocking: bool = False
) -> Head:
    """Redeems the leases for a request without a body; ``blocking`` as for ``exchange``.

    Raises:
        ApexCredsError: It may not be sent.
    """
    leases, broker, taken, asked, _, _ = checked(lease_ids, request)
    outgoing, records = await _redeemed(
        broker, leases, asked, taken, NOTHING, blocking=blocking
    )
    if isinstance(outgoing, BaseException):
        raise outgoing
    return Head(outgoing, leases, records, broker.search)
