"""Sending a secret without showing it: the transports of ``handle.client()``.

Guarantee: the secret is added to a copy of the request, below everything that a plugin
can reach: not in ``request``, not in ``response.request``, not in hooks, logs or errors,
and in no request to an origin, method or path that is not allowed. Connection options
that a plugin could use to listen in are refused or dropped.
"""

from __future__ import annotations

import base64
import re
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import httpx

from apex_creds.errors import InvalidInputError, RequestNotAllowedError
from apex_creds.leases.broker import LeaseBroker, Use
from apex_creds.leases.lease import find_lease
from apex_creds.leases.pools import Turn
from apex_creds.model import Delivery, DeliveryStyle, Origin
from apex_creds.vault import Opened

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
_TIMEOUT: Final = httpx.Timeout(5.0, pool=None)
"""As httpx's own; but for a connection, which plugins share, a request waits its turn."""
_METHOD: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,31}", re.ASCII)
_SHOWING_METHODS: Final = frozenset({"TRACE", "CONNECT"})
"""TRACE has the server send the request back; CONNECT makes a tunnel of the connection."""
_KEPT_RESPONSE_EXTENSIONS: Final = ("http_version", "reason_phrase")


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
        self._bodies: weakref.WeakSet[_AsyncBody] = weakref.WeakSet()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a copy of ``request`` that carries the secret."""
        broker = find_lease(self._lease_id).broker
        use = _use(request, self._scope)
        turn = await broker.pools.turn(request)
        result: httpx.Response | _Failure | None = None
        try:
            _, record, opened = await broker.redeem(self._lease_id, use)
            with opened:
                outgoing = _inject(request, opened, record.info.delivery)
            result = await _send(broker, outgoing, request, turn)
            del outgoing
        finally:
            if not isinstance(result, httpx.Response):
                turn.done()
        if isinstance(result, _Failure):
            raise result.error(request)
        if isinstance(result.stream, _AsyncBody):
            self._bodies.add(result.stream)
        return result

    async def aclose(self) -> None:
        """Closes the responses that are still open; the pool is shared and stays."""
        for body in list(self._bodies):
            await body.aclose()


class SyncInjectingTransport(httpx.BaseTransport):
    """As ``InjectingTransport``, for worker threads."""

    def __init__(self, lease_id: str, scope: str | None) -> None:
        self._lease_id = lease_id
        self._scope = scope
        self._bodies: weakref.WeakSet[_SyncBody] = weakref.WeakSet()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a copy of ``request`` that carries the secret."""
        broker = find_lease(self._lease_id).broker
        use = _use(request, self._scope)
        turn = broker.pools.turn_blocking(request)
        result: httpx.Response | _Failure | None = None
        try:
            _, record, opened = broker.redeem_blocking(self._lease_id, use)
            with opened:
                outgoing = _inject(request, opened, record.info.delivery)
            result = _send_blocking(broker, outgoing, request, turn)
            del outgoing
        finally:
            if not isinstance(result, httpx.Response):
                turn.done()
        if isinstance(result, _Failure):
            raise result.error(request)
        if isinstance(result.stream, _SyncBody):
            self._bodies.add(result.stream)
        return result

    def close(self) -> None:
        """Closes the responses that are still open; the pool is shared and stays."""
        for body in list(self._bodies):
            body.close()


class _Failure(NamedTuple):
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


def _failure(error: BaseException) -> _Failure:
    # The frames of the pool hold the headers as they were sent.
    error.__traceback__ = error.__cause__ = error.__context__ = None
    # A connection's failure comes before anything was sent, so its words are safe.
    before = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    words = str(error) if before else "while a request with a credential was sent"
    return _Failure(error, f"{type(error).__name__}: {words}")


async def _send(
    broker: LeaseBroker, outgoing: httpx.Request, request: httpx.Request, turn: Turn
) -> httpx.Response | _Failure:
    try:
        response = await broker.pools.transport().handle_async_request(outgoing)
    except BaseException as error:
        return _failure(error)
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)
    return _detached(response, _AsyncBody(stream, request, turn))


def _send_blocking(
    broker: LeaseBroker, outgoing: httpx.Request, request: httpx.Request, turn: Turn
) -> httpx.Response | _Failure:
    try:
        response = broker.pools.sync_transport().handle_request(outgoing)
    except BaseException as error:
        return _failure(error)
    stream = response.stream
    assert isinstance(stream, httpx.SyncByteStream)
    return _detached(response, _SyncBody(stream, request, turn))


def _use(request: httpx.Request, scope: str | None) -> Use:
    url = request.url
    if request.headers.get("host") != url.netloc.decode("ascii"):
        raise RequestNotAllowedError(
            "The Host header names another host than the URL.", hint="Leave it out."
        )
    if url.scheme not in ("http", "https"):
        raise RequestNotAllowedError("A credential is only sent over http or https.")
    method = request.method.upper()
    if not _METHOD.fullmatch(method) or method in _SHOWING_METHODS:
        raise RequestNotAllowedError("A credential is not sent with this method.")
    port = url.port or (443 if url.scheme == "https" else 80)
    origin = Origin(url.scheme, url.raw_host.decode("ascii").strip("[]").lower(), port)
    path = url.raw_path.split(b"?", 1)[0].decode("ascii")
    return Use(method, origin, path, scope)


def _inject(request: httpx.Request, opened: Opened, delivery: Delivery) -> httpx.Request:
    """The copy that is sent.

    Of the extensions only the time-outs are kept: others, such as ``trace``, ``target``
    and ``sni_hostname``, see or redirect what is sent.
    """
    headers, url = request.headers.copy(), request.url
    if delivery.style is DeliveryStyle.QUERY:
        url = _with_parameter(url, delivery.field, _text(opened))
    elif delivery.style is DeliveryStyle.HEADER:
        headers[delivery.field] = _text(opened)
    elif delivery.style is DeliveryStyle.BASIC:
        headers["Authorization"] = f"Basic {_basic(opened)}"
    else:
        headers["Authorization"] = f"Bearer {_text(opened)}"
    return httpx.Request(
        request.method,
        url,
        headers=headers,
        stream=request.stream,
        extensions={"timeout": request.extensions.get("timeout", {})},
    )


def _with_parameter(url: httpx.URL, field: str, value: str) -> httpx.URL:
    query = url.query.decode("ascii")
    kept = [item for item in query.split("&") if item and item.split("=")[0] != quote(field)]
    return url.copy_with(query="&".join([*kept, urlencode({field: value})]).encode())


def _basic(opened: Opened) -> str:
    if "user" not in opened.names:
        return base64.b64encode(_text(opened).encode()).decode()
    with opened.view("user") as user, opened.view("password") as password:
        return base64.b64encode(b"".join((user, b":", password))).decode()


def _text(opened: Opened) -> str:
    """The secret as header text; h11 would quote one that is not in its error."""
    with opened.view() as view:
        if any(byte < 0x20 or byte > 0x7E for byte in view):
            raise InvalidInputError(
                "This credential can't be sent in a header: it is not printable ASCII.",
                hint="Use reveal(), or store it in another encoding.",
            )
        return str(view, "ascii")


def _detached(
    response: httpx.Response, body: httpx.AsyncByteStream | httpx.SyncByteStream
) -> httpx.Response:
    """A response without the references that lead to the request as it was sent."""
    extensions: dict[str, Any] = {
        name: response.extensions[name]
        for name in _KEPT_RESPONSE_EXTENSIONS
        if name in response.extensions
    }
    return httpx.Response(
        response.status_code, headers=response.headers, stream=body, extensions=extensions
    )


class _AsyncBody(httpx.AsyncByteStream):
    """Passes a body on, and lets go of its connection when it is closed."""

    def __init__(
        self, inner: httpx.AsyncByteStream, request: httpx.Request, turn: Turn
    ) -> None:
        self._inner: httpx.AsyncByteStream | None = inner
        self._request = request
        self._turn = turn

    async def __aiter__(self) -> AsyncIterator[bytes]:
        failure: _Failure | None = None
        try:
            if self._inner is not None:
                async for chunk in self._inner:
                    yield chunk
        except GeneratorExit:
            raise
        except BaseException as error:
            failure = _failure(error)
        if failure is not None:
            raise failure.error(self._request)

    async def aclose(self) -> None:
        inner, self._inner = self._inner, None
        try:
            if inner is not None:
                await inner.aclose()
        finally:
            self._turn.done()


class _SyncBody(httpx.SyncByteStream):
    """As ``_AsyncBody``."""

    def __init__(self, inner: httpx.SyncByteStream, request: httpx.Request, turn: Turn) -> None:
        self._inner: httpx.SyncByteStream | None = inner
        self._request = request
        self._turn = turn

    def __iter__(self) -> Iterator[bytes]:
        failure: _Failure | None = None
        try:
            if self._inner is not None:
                yield from self._inner
        except GeneratorExit:
            raise
        except BaseException as error:
            failure = _failure(error)
        if failure is not None:
            raise failure.error(self._request)

    def close(self) -> None:
        inner, self._inner = self._inner, None
        try:
            if inner is not None:
                inner.close()
        finally:
            self._turn.done()


def _checked(options: dict[str, object]) -> dict[str, object]:
    refused = sorted(set(options) - _OPTIONS)
    if refused:
        raise InvalidInputError(
            f"handle.client() does not take {', '.join(refused)}.",
            hint=f"It takes {', '.join(sorted(_OPTIONS))}.",
        )
    return {"timeout": _TIMEOUT, **options}
