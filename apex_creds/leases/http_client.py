"""Sends a secret without showing it: the transports of ``handle.client()``, and their bodies.

Guarantee: the secret is added to a copy of the request, below everything that a plugin
can reach: not in ``request``, not in ``response.request``, not in hooks, logs or errors,
and in no request to an origin, method or path that is not allowed. Connection options
that a plugin could use to listen in are refused or dropped.

The body of a response goes on without the references that lead to what was sent. It gives its
connection, and its place, back when it is closed, when its client is, or when its lease ends,
whichever is first. The body of a request is stepped by a task, or a thread, that has nothing
but the plugin's stream: the frames above it, which the plugin can walk, belong to no request.
What comes out of it is plain bytes, read only as fast as it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, Generic, NamedTuple, TypeVar

import httpx

from apex_creds.errors import (
    ApexCredsError,
    EventLoopError,
    InvalidInputError,
    RequestNotAllowedError,
)
from apex_creds.leases.broker import find_open, keep_open
from apex_creds.leases.connection_pool import (
    Answer,
    AsyncConnections,
    AsyncPool,
    Connections,
    Key,
    Permit,
    Pool,
)
from apex_creds.leases.lease import AccessRequest, Lease, caller
from apex_creds.leases.request_signing import (
    Outgoing,
    Snapshot,
    inject,
    snapshot,
    without_secret,
)
from apex_creds.model import CredentialInfo
from apex_creds.plain import plain_bytes, plain_text
from apex_creds.vault import Opened

T = TypeVar("T")
_AnyBody = httpx.AsyncByteStream | httpx.SyncByteStream
_closing: Final[set[asyncio.Task[None]]] = set()
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
_KEPT_RESPONSE_EXTENSION: Final = "http_version"
"""Not the reason phrase: a server may repeat the secret there; httpx knows the usual ones."""


def open_async_client(
    lease_id: str, scope: str | None, options: dict[str, object]
) -> httpx.AsyncClient:
    """See ``CredentialHandle.client``."""
    chosen: dict[str, Any] = _checked(options)
    transport = InjectingTransport(lease_id, _scope(scope))
    return httpx.AsyncClient(transport=transport, trust_env=False, **chosen)


def open_client(lease_id: str, scope: str | None, options: dict[str, object]) -> httpx.Client:
    """See ``CredentialHandle.sync_client``."""
    chosen: dict[str, Any] = _checked(options)
    transport = SyncInjectingTransport(lease_id, _scope(scope))
    return httpx.Client(transport=transport, trust_env=False, **chosen)


class InjectingTransport(httpx.AsyncBaseTransport):
    """Redeems a lease for each request; holds the lease's id only."""

    def __init__(self, lease_id: str, scope: str | None) -> None:
        self._lease_id = lease_id
        self._scope = scope
        self._bodies: list[AsyncBody] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a copy of ``request`` that carries the secret."""
        lease, broker = find_open(self._lease_id)
        try:
            taken = snapshot(request)
        except RequestNotAllowedError:
            broker.log_refused_request(lease)
            raise
        asked = AccessRequest(taken.method, taken.origin, taken.path, self._scope)
        pool = await broker.connections.here(Key(caller(), lease.record_id))
        # A refusal is not waited for.
        waits = taken.origin if taken.origin in lease.permission.origins else None
        permit = await pool.permit(waits, patience=taken.timeout["pool"])
        handed_over = False
        try:
            body = _NOTHING if taken.stream is None else async_upload(taken.stream)
            try:
                record, opened = await broker.redeem(lease, asked)
                outgoing = _injected(taken, opened, record.info, body)
                sent = await _send(pool, outgoing)
                del outgoing
            finally:
                if body is not _NOTHING:
                    body.stop()
            if isinstance(sent, Failure):
                raise sent.error(request)
            stream = sent.stream
            assert isinstance(stream, httpx.AsyncByteStream)
            answer = AsyncBody(stream, request, permit, lease, asyncio.get_running_loop())
            handed_over = True
        finally:
            if not handed_over:
                permit.done()
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
        lease, broker = find_open(self._lease_id)
        try:
            taken = snapshot(request)
        except RequestNotAllowedError:
            broker.log_refused_request(lease)
            raise
        asked = AccessRequest(taken.method, taken.origin, taken.path, self._scope)
        pool = broker.connections.entered(Key(caller(), lease.record_id))
        waits = taken.origin if taken.origin in lease.permission.origins else None
        permit = pool.permit(waits, patience=taken.timeout["pool"])
        handed_over = False
        try:
            body = _NOTHING if taken.stream is None else upload(taken.stream)
            try:
                record, opened = broker.redeem_blocking(lease, asked)
                outgoing = _injected(taken, opened, record.info, body)
                sent = _send_blocking(pool, outgoing)
                del outgoing
            finally:
                if body is not _NOTHING:
                    body.stop()
            if isinstance(sent, Failure):
                raise sent.error(request)
            stream = sent.stream
            assert isinstance(stream, httpx.SyncByteStream)
            answer = SyncBody(stream, request, permit, lease)
            handed_over = True
        finally:
            if not handed_over:
                permit.done()
        self._bodies = [open_ for open_ in self._bodies if open_.is_open] + [answer]
        return _detached(sent, answer)

    def close(self) -> None:
        """Closes the responses that are still open; the pool is shared and stays."""
        for body in self._bodies:
            body.close()


def _injected(
    taken: Snapshot, opened: Opened, info: CredentialInfo, body: _AnyBody
) -> Outgoing | Failure:
    try:
        return inject(taken, opened, info.delivery, body=body, name=info.name)
    except ApexCredsError as error:
        return failure(error)
    except Exception:  # its frames and words may hold the secret
        return _not_built()
    finally:
        opened.close()


def _not_built() -> Failure:
    refused = InvalidInputError("The request can't be built with the credential in it.")
    return Failure(refused, "")


async def _send(pool: AsyncPool, outgoing: Outgoing | Failure) -> Answer | Failure:
    if isinstance(outgoing, Failure):
        return outgoing
    transport = pool.transport
    try:
        if isinstance(transport, AsyncConnections):
            answer = await transport.send(
                outgoing.method,
                outgoing.url,
                outgoing.headers,
                outgoing.body,
                {"timeout": outgoing.timeout},
            )
        else:
            answer = _answer_of(await transport.handle_async_request(outgoing.request()))
    except BaseException as error:
        return failure(error)
    headers = without_secret(answer.headers, outgoing)
    return answer if headers is answer.headers else answer._replace(headers=headers, given=None)


def _send_blocking(pool: Pool, outgoing: Outgoing | Failure) -> Answer | Failure:
    if isinstance(outgoing, Failure):
        return outgoing
    transport = pool.transport
    try:
        if isinstance(transport, Connections):
            answer = transport.send(
                outgoing.method,
                outgoing.url,
                outgoing.headers,
                outgoing.body,
                {"timeout": outgoing.timeout},
            )
        else:
            answer = _answer_of(transport.handle_request(outgoing.request()))
    except BaseException as error:
        return failure(error)
    headers = without_secret(answer.headers, outgoing)
    return answer if headers is answer.headers else answer._replace(headers=headers, given=None)


def _answer_of(response: httpx.Response) -> Answer:
    headers = response.headers
    return Answer(
        response.status_code, headers.raw, response.stream, response.extensions, headers
    )


def _detached(answer: Answer, body: AsyncBody | SyncBody) -> httpx.Response:
    """A response without the references that lead to the request as it was sent."""
    version = answer.extensions.get(_KEPT_RESPONSE_EXTENSION)
    return httpx.Response(
        answer.status,
        headers=answer.headers if answer.given is None else answer.given,
        stream=body,
        extensions={} if version is None else {_KEPT_RESPONSE_EXTENSION: version},
    )


def _scope(scope: object) -> str | None:
    return None if scope is None else plain_text(scope, what="scope")


def _checked(options: dict[str, object]) -> dict[str, object]:
    refused = sorted(set(options) - _OPTIONS)
    if refused:
        raise InvalidInputError(
            f"handle.client() does not take {', '.join(refused)}.",
            hint=f"It takes {', '.join(sorted(_OPTIONS))}.",
        )
    return {"timeout": _TIMEOUT, **options}


class Failure(NamedTuple):
    """What went wrong while sending, without the frames that held the secret."""

    cause: BaseException
    text: str

    def error(self, request: httpx.Request) -> BaseException:
        """The error to raise: of the same class, without traceback, cause or context."""
        if not isinstance(self.cause, httpx.HTTPError):
            return self.cause
        if isinstance(self.cause, httpx.RequestError):
            return type(self.cause)(self.text, request=request)
        return httpx.RequestError(self.text, request=request)


def failure(error: BaseException) -> Failure:
    """What may be said of an error of the pool."""
    # The frames of the pool hold the headers as they were sent.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    # A connection's failure comes before anything was sent, so its words are safe.
    before = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    words = str(error) if before else "while a request with a credential was sent"
    return Failure(error, f"{type(error).__name__}: {words}")


class _Open(NamedTuple, Generic[T]):
    """What a body holds until it is closed."""

    stream: T
    permit: Permit
    loop: asyncio.AbstractEventLoop | None


_OPEN: Final[dict[object, _Open[Any]]] = {}


class _Body(Generic[T]):
    """What both kinds of body do; ``T`` is the stream within.

    A plugin holds a body, so that it has only its lease's id: what leads to the pool, where
    other requests are being sent, is kept in ``_OPEN`` until the body is closed.
    """

    def __init__(
        self,
        inner: T,
        request: httpx.Request,
        permit: Permit,
        lease: Lease,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._request = request
        self._lease_id = lease.id
        _OPEN[self] = _Open(inner, permit, loop)
        lease.close_at_end(self.abandon)

    @property
    def is_open(self) -> bool:
        """Whether it still has its connection."""
        return self in _OPEN

    def abandon(self) -> None:
        """Closes it from code that can't wait: its lease has ended."""
        raise NotImplementedError

    def _opened(self) -> _Open[T]:
        opened: _Open[T] | None = _OPEN.get(self)
        if opened is None:
            raise httpx.StreamClosed
        return opened

    def _taken(self) -> _Open[T] | None:
        keep_open(self._lease_id, self.abandon)
        return _OPEN.pop(self, None)


class AsyncBody(_Body[httpx.AsyncByteStream], httpx.AsyncByteStream):
    """The body of an asynchronous response."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        failed: Failure | None = None
        opened = self._opened()
        if opened.loop is not asyncio.get_running_loop():
            raise EventLoopError(
                "A response is read on the event loop that it was requested on.",
                hint="Read it there, and pass on what it says.",
            )
        try:
            async for chunk in opened.stream:
                yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            failed = failure(error)
        if failed is not None:
            raise failed.error(self._request)

    async def aclose(self) -> None:
        """Gives connection and place back; idempotent."""
        opened = self._taken()
        if opened is None:
            return
        if opened.loop is asyncio.get_running_loop():
            await _close(opened)
        else:
            _close_on_its_loop(opened)

    def abandon(self) -> None:
        """Has it closed by its loop."""
        opened = self._taken()
        if opened is not None:
            _close_on_its_loop(opened)


class SyncBody(_Body[httpx.SyncByteStream], httpx.SyncByteStream):
    """As ``AsyncBody``, for worker threads."""

    def __iter__(self) -> Iterator[bytes]:
        failed: Failure | None = None
        opened = self._opened()
        try:
            yield from opened.stream
        except GeneratorExit:
            raise
        except BaseException as error:
            failed = failure(error)
        if failed is not None:
            raise failed.error(self._request)

    def close(self) -> None:
        """Gives connection and place back; idempotent."""
        opened = self._taken()
        if opened is None:
            return
        try:
            opened.stream.close()
        finally:
            opened.permit.done()

    abandon = close


def _close_on_its_loop(opened: _Open[httpx.AsyncByteStream]) -> None:
    loop = opened.loop
    with contextlib.suppress(RuntimeError):  # closed meanwhile, and its pools with it
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(_close_soon, opened)


def _close_soon(opened: _Open[httpx.AsyncByteStream]) -> None:
    task = asyncio.get_running_loop().create_task(_close(opened))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _close(opened: _Open[httpx.AsyncByteStream]) -> None:
    try:
        await opened.stream.aclose()
    except httpx.HTTPError:
        return
    finally:
        opened.permit.done()


_Chunk = bytes | BaseException | None
"""A part of the body; or what its stream raised; or its end."""


class AsyncUpload(httpx.AsyncByteStream):
    """The body of an asynchronous request; stop it when that was sent."""

    def __init__(self, source: httpx.AsyncByteStream) -> None:
        self._source = source
        self._chunks: asyncio.Queue[_Chunk] = asyncio.Queue(1)
        self._wanted = asyncio.Event()
        # Made before the secret is open: a loop may run a task's first step at once.
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self._wanted.set()
        while (chunk := await self._chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def stop(self) -> None:
        """Reads no further; idempotent."""
        self._reading.cancel()

    async def _read(self) -> None:
        await self._wanted.wait()
        try:
            async for chunk in self._source:
                await self._chunks.put(plain_bytes(chunk, what="body"))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            await self._chunks.put(error)
        else:
            await self._chunks.put(None)


class Upload(httpx.SyncByteStream):
    """As ``AsyncUpload``, for threads."""

    def __init__(self, source: httpx.SyncByteStream) -> None:
        self._source = source
        self._chunks: queue.Queue[_Chunk] = queue.Queue(1)
        self._stopped = False
        self._context = contextvars.copy_context()

    def __iter__(self) -> Iterator[bytes]:
        run = self._context.run
        threading.Thread(target=run, args=(self._read,), daemon=True).start()
        while (chunk := self._chunks.get()) is not None:
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk

    def stop(self) -> None:
        """Reads no further than the next chunk; idempotent."""
        self._stopped = True
        with contextlib.suppress(queue.Empty):
            self._chunks.get_nowait()

    def _read(self) -> None:
        try:
            for chunk in self._source:
                self._chunks.put(plain_bytes(chunk, what="body"))
                if self._stopped:
                    return
        except BaseException as error:
            self._chunks.put(error)
        else:
            self._chunks.put(None)


class Whole(httpx.ByteStream):
    """A body that is there already."""

    def stop(self) -> None:
        """Nothing reads it."""


_NOTHING: Final = Whole(b"")


def async_upload(stream: object) -> AsyncUpload | Whole:
    """How the body of an asynchronous request is sent.

    Raises:
        InvalidInputError: It is none.
    """
    if type(stream) is httpx.ByteStream:
        return _whole(stream)
    if not isinstance(stream, httpx.AsyncByteStream):
        raise InvalidInputError("The request's body can't be read asynchronously.")
    return AsyncUpload(stream)


def upload(stream: object) -> Upload | Whole:
    """As ``async_upload``, for threads."""
    if type(stream) is httpx.ByteStream:
        return _whole(stream)
    if not isinstance(stream, httpx.SyncByteStream):
        raise InvalidInputError("The request's body can only be read asynchronously.")
    return Upload(stream)


def _whole(stream: httpx.ByteStream) -> Whole:
    chunks = [plain_bytes(chunk, what="body") for chunk in stream]
    return Whole(chunks[0] if len(chunks) == 1 else b"".join(chunks))
