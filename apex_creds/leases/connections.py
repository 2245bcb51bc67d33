"""Transports over httpcore that forget what was sent as soon as it was sent.

Guarantee: once a response, or an error, has come back, nothing that it leads to has the
request's headers or URL: they are taken out of the pool's own request. Errors are httpx's.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from typing import Final

import httpcore
import httpx

_KEPT_ALIVE: Final = 20
_EXPIRY: Final = 5.0
_NOWHERE: Final = httpcore.URL(scheme=b"http", host=b"", port=None, target=b"/")
_ERRORS: Final = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)


class AsyncConnections(httpx.AsyncBaseTransport):
    """A pool of connections; of one event loop.

    Args:
        context: Shared by all pools: to load certificates takes milliseconds.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=_KEPT_ALIVE,
            keepalive_expiry=_EXPIRY,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See ``httpx.AsyncBaseTransport``."""
        assert isinstance(request.stream, httpx.AsyncByteStream)
        sent = _request(request, request.stream)
        try:
            answer = await self._pool.handle_async_request(sent)
        except _ERRORS as error:
            raise _as_httpx(error) from None
        finally:
            _forget(sent)
        return _response(answer, _AsyncStream(answer))

    async def aclose(self) -> None:
        """Closes the connections, those in use as well."""
        await self._pool.aclose()


class Connections(httpx.BaseTransport):
    """As ``AsyncConnections``, for threads."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=_KEPT_ALIVE,
            keepalive_expiry=_EXPIRY,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See ``httpx.BaseTransport``."""
        assert isinstance(request.stream, httpx.SyncByteStream)
        sent = _request(request, request.stream)
        try:
            answer = self._pool.handle_request(sent)
        except _ERRORS as error:
            raise _as_httpx(error) from None
        finally:
            _forget(sent)
        return _response(answer, _Stream(answer))

    def close(self) -> None:
        """Closes the connections, those in use as well."""
        self._pool.close()


class _AsyncStream(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer.aiter_stream():
                yield chunk
        except _ERRORS as error:
            raise _as_httpx(error) from None

    async def aclose(self) -> None:
        await self._answer.aclose()


class _Stream(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._answer.iter_stream()
        except _ERRORS as error:
            raise _as_httpx(error) from None

    def close(self) -> None:
        self._answer.close()


def _request(
    request: httpx.Request, stream: httpx.AsyncByteStream | httpx.SyncByteStream
) -> httpcore.Request:
    url = httpcore.URL(
        scheme=request.url.raw_scheme,
        host=request.url.raw_host,
        port=request.url.port,
        target=request.url.raw_path,
    )
    return httpcore.Request(
        request.method,
        url,
        headers=request.headers.raw,
        content=stream,
        extensions=request.extensions,
    )


def _forget(sent: httpcore.Request) -> None:
    # The pool, and the stream of a response, refer to it for as long as they are open.
    sent.headers, sent.url = [], _NOWHERE


def _response(
    answer: httpcore.Response, stream: httpx.AsyncByteStream | httpx.SyncByteStream
) -> httpx.Response:
    return httpx.Response(
        answer.status, headers=answer.headers, stream=stream, extensions=answer.extensions
    )


def _as_httpx(error: Exception) -> httpx.TransportError:
    """Its namesake in httpx."""
    kind: type[httpx.TransportError] = getattr(httpx, type(error).__name__)
    return kind(str(error))
