"""For SDKs on httpx: transports for their clients.

``openai.AsyncOpenAI(http_client=httpx.AsyncClient(transport=async_transport("openai")))``
"""

from __future__ import annotations

import httpx

from apex_creds.leases.http_client import neutral, response
from apex_creds.sdk.current import Binding, Refusal


def async_transport(
    *names: str, scope: str | None = None, refusal: Refusal = "answer"
) -> httpx.AsyncBaseTransport:
    """A transport for ``httpx.AsyncClient``, which may be made before any invocation.

    Args:
        names: Of credentials; none: all that the invocation has.
        scope: One that the leases must have.
        refusal: ``answer``: a refused request is a 403; ``raise``: it raises our error.
    """
    return _AsyncTransport(Binding(names, scope, refusal))


def transport(
    *names: str, scope: str | None = None, refusal: Refusal = "answer"
) -> httpx.BaseTransport:
    """As ``async_transport``, for ``httpx.Client``."""
    return _Transport(Binding(names, scope, refusal))


class _AsyncTransport(httpx.AsyncBaseTransport):
    def __init__(self, binding: Binding) -> None:
        self._binding = binding

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return response(await self._binding.send(neutral(request)))


class _Transport(httpx.BaseTransport):
    def __init__(self, binding: Binding) -> None:
        self._binding = binding

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return response(self._binding.send_blocking(neutral(request)))
