"""For SDKs on requests: a session, or an adapter to mount on theirs.

``stripe.RequestsClient(session=session("stripe"))`` for ``stripe.StripeClient(http_client=…)``
"""

from __future__ import annotations

from typing import Any, TypeVar

import requests
from requests.adapters import DEFAULT_POOLBLOCK, HTTPAdapter

from apex_creds.sdk.current import Binding, Refusal
from apex_creds.sdk.urllib3 import BoundPools

S = TypeVar("S", bound=requests.Session)


def session(
    *names: str, scope: str | None = None, refusal: Refusal = "answer"
) -> requests.Session:
    """A ``requests.Session``, which may be made before any invocation.

    Args:
        names: Of credentials; none: all that the invocation has.
        scope: One that the leases must have.
        refusal: ``answer``: a refused request is a 403; ``raise``: it raises our error.
    """
    return bound(requests.Session(), adapter(*names, scope=scope, refusal=refusal))


def bound(made: S, adapter: HTTPAdapter) -> S:
    """A session that sends through an adapter only."""
    made.trust_env = False  # no proxy, and no password of ~/.netrc
    made.mount("https://", adapter)
    made.mount("http://", adapter)
    return made


def adapter(
    *names: str, scope: str | None = None, refusal: Refusal = "answer", **options: Any
) -> HTTPAdapter:
    """An adapter for ``requests.Session.mount``; arguments as for ``session``.

    Args:
        names: Of credentials.
        scope: One that the leases must have.
        refusal: ``answer`` or ``raise``.
        options: As for ``requests.adapters.HTTPAdapter``, as ``max_retries``.
    """
    return _Adapter(Binding(names, scope, refusal), **options)


class _Adapter(HTTPAdapter):
    __attrs__ = (*HTTPAdapter.__attrs__, "_binding")  # of a copy: names, and no secret

    def __init__(self, binding: Binding, **options: Any) -> None:
        self._binding = binding
        super().__init__(**options)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = DEFAULT_POOLBLOCK, **options: Any
    ) -> None:
        self.poolmanager = BoundPools(
            self._binding, num_pools=connections, maxsize=maxsize, block=block, **options
        )

    def send(
        self, request: requests.PreparedRequest, *args: Any, **options: Any
    ) -> requests.Response:
        return super().send(request, *args, **{**options, "proxies": None})
