"""A request, its answer, and what went wrong, in the neutral values that adapters deal in.

Nothing here knows a library, a lease or a secret: a process that has none uses the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import httpx
import msgspec

RawHeaders = list[tuple[bytes, bytes]]


class SendFailure(NamedTuple):
    """What went wrong while sending; neither its words nor its frames hold a secret.

    Attributes:
        kind: ``connect``, ``read``, ``write``, each with ``_timeout`` or without it,
            ``pool_timeout``, ``protocol``, ``closed`` or ``other``.
        name: What httpx, and what continues it, call the error.
        text: For people.
    """

    kind: str
    name: str
    text: str


Say = Callable[[SendFailure], BaseException]
"""Says it with an exception of the library that the request came from."""


class Request(msgspec.Struct, frozen=True, eq=False):
    """What an adapter hands in.

    Attributes:
        url: Text, or an ``httpx.URL``.
        headers: Names and values; without ``Host`` the URL's is sent.
        body: Bytes, an iterable of them (asynchronous where the request is), or None.
        timeout: Seconds, of ``connect``, ``read``, ``write``, ``pool``; none: without end.
        say: Makes the library's exception of what went wrong.
        scope: One that the leases must have.
    """

    method: str
    url: object
    headers: Iterable[tuple[bytes, bytes]]
    body: object
    timeout: Mapping[str, float | None]
    say: Say
    scope: str | None = None


class Answered(msgspec.Struct, frozen=True, eq=False):
    """What an adapter gets; nothing in it leads to the request as it was sent.

    Attributes:
        body: Streams, and closes.
        http_version: As ``HTTP/1.1``.
        given: The headers as httpx has them already; None: it has not.
    """

    status: int
    headers: RawHeaders
    body: httpx.AsyncByteStream | httpx.SyncByteStream
    http_version: bytes | None
    given: httpx.Headers | None
