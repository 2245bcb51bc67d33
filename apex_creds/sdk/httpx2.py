"""For SDKs on httpx2, which continues httpx under other classes: transports for their clients.

``anthropic.AsyncAnthropic(http_client=httpx2.AsyncClient(transport=async_transport("claude")))``
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial

import httpx
import httpx2

from apex_creds.leases.http_messages import Answered, Request, SendFailure
from apex_creds.sdk.current import Binding, Refusal


def async_transport(
    *names: str, scope: str | None = None, refusal: Refusal = "answer"
) -> httpx2.AsyncBaseTransport:
    """A transport for ``httpx2.AsyncClient``, which may be made before any invocation.

    Args:
        names: Of credentials; none: all that the invocation has.
        scope: One that the leases must have.
        refusal: ``answer``: a refused request is a 403; ``raise``: it raises our error.
    """
    return _AsyncTransport(Binding(names, scope, refusal))


def transport(
    *names: str, scope: str | None = None, refusal: Refusal = "answer"
) -> httpx2.BaseTransport:
    """As ``async_transport``, for ``httpx2.Client``."""
    return _Transport(Binding(names, scope, refusal))


class _AsyncTransport(httpx2.AsyncBaseTransport):
    def __init__(self, binding: Binding) -> None:
        self._binding = binding

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        answered = await self._binding.send(_neutral(request))
        assert isinstance(answered.body, httpx.AsyncByteStream)
        return _response(answered, _AsyncBody(answered.body))


class _Transport(httpx2.BaseTransport):
    def __init__(self, binding: Binding) -> None:
        self._binding = binding

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answered = self._binding.send_blocking(_neutral(request))
        assert isinstance(answered.body, httpx.SyncByteStream)
        return _response(answered, _Body(answered.body))


class _AsyncBody(httpx2.AsyncByteStream):
    def __init__(self, body: httpx.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


class _Body(httpx2.SyncByteStream):
    def __init__(self, body: httpx.SyncByteStream) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        yield from self._body

    def close(self) -> None:
        self._body.close()


def _neutral(request: httpx2.Request) -> Request:
    whole = type(request.stream) is httpx2.ByteStream
    return Request(
        request.method,
        str(request.url),
        request.headers.raw,
        b"".join(request.stream) if whole else request.stream,
        request.extensions.get("timeout") or {},
        partial(_error, request=request),
    )


def _response(answered: Answered, body: _AsyncBody | _Body) -> httpx2.Response:
    version = answered.http_version
    return httpx2.Response(
        answered.status,
        headers=answered.headers,
        stream=body,
        extensions={} if version is None else {"http_version": version},
    )


def _error(failure: SendFailure, *, request: httpx2.Request) -> Exception:
    if failure.kind == "closed":
        return httpx2.StreamClosed()
    kind: type[httpx2.RequestError] = getattr(httpx2, failure.name, httpx2.RequestError)
    return kind(failure.text, request=request)
