"""For SDKs on urllib3: a pool manager whose pools send nothing themselves.

Retries, redirects, decoding and time-outs stay urllib3's own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import partial
from http.client import responses
from typing import Any, Final

import httpx
import urllib3
from urllib3.util.request import SKIP_HEADER, body_to_chunks

from apex_creds.leases.http_messages import Request, SendFailure
from apex_creds.sdk.current import Binding, Refusal

_BLOCK: Final = 16 * 1024


def pool_manager(
    *names: str, scope: str | None = None, refusal: Refusal = "answer", **options: Any
) -> urllib3.PoolManager:
    """A ``urllib3.PoolManager``, which may be made before any invocation.

    Args:
        names: Of credentials; none: all that the invocation has.
        scope: One that the leases must have.
        refusal: ``answer``: a refused request is a 403; ``raise``: it raises our error.
        options: As for ``urllib3.PoolManager``, as ``retries`` and ``headers``.
    """
    return BoundPools(Binding(names, scope, refusal), **options)


class BoundPools(urllib3.PoolManager):
    """The pools of one binding."""

    def __init__(self, binding: Binding, **options: Any) -> None:
        super().__init__(**options)
        self.pool_classes_by_scheme = {
            "http": partial(_Pool, binding),
            "https": partial(_SecurePool, binding),
        }


class _Pool(urllib3.HTTPConnectionPool):
    """Its connections are never opened."""

    def __init__(self, binding: Binding, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._binding = binding

    def _make_request(
        self,
        conn: object,
        method: str,
        url: str,
        body: Any = None,
        headers: Mapping[str, str | bytes] | None = None,
        timeout: Any = None,
        **options: Any,
    ) -> urllib3.BaseHTTPResponse:
        chunks: object = body_to_chunks(body, method, _BLOCK).chunks
        if isinstance(chunks, tuple | list):
            chunks = b"".join(chunks)
        raw = [
            (
                name.encode("latin-1"),
                value.encode("latin-1") if isinstance(value, str) else value,
            )
            for name, value in (headers or {}).items()
            if value != SKIP_HEADER
        ]
        host = f"[{self.host}]" if ":" in self.host else self.host
        path = url if url.startswith("/") else httpx.URL(url).raw_path.decode("ascii")
        answered = self._binding.send_blocking(
            Request(
                method,
                f"{self.scheme}://{host}{f':{self.port}' if self.port else ''}{path}",
                raw,
                chunks,
                _seconds(timeout),
                partial(self._error, conn, url),
            )
        )
        assert isinstance(answered.body, httpx.SyncByteStream)
        return _Response(
            _Stream(answered.body),
            headers=urllib3.HTTPHeaderDict(
                (name.decode("latin-1"), value.decode("latin-1"))
                for name, value in answered.headers
            ),
            status=answered.status,
            reason=responses.get(answered.status, ""),
            version=11,
            preload_content=options.get("preload_content", True),
            decode_content=options.get("decode_content", True),
            connection=options.get("response_conn"),
            retries=options.get("retries"),
            enforce_content_length=options.get("enforce_content_length", True),
            pool=self,
            request_method=method,
            request_url=url,
        )

    def _error(self, conn: Any, url: str, failure: SendFailure) -> Exception:
        kind, text = failure.kind, failure.text
        if kind == "connect":
            return urllib3.exceptions.NewConnectionError(conn, text)
        if kind in ("connect_timeout", "pool_timeout"):
            return urllib3.exceptions.ConnectTimeoutError(conn, text)
        if kind == "read_timeout":
            return urllib3.exceptions.ReadTimeoutError(self, url, text)
        return urllib3.exceptions.ProtocolError(text)


class _SecurePool(_Pool, urllib3.HTTPSConnectionPool):
    """As ``_Pool``; certificates are checked where the request is sent."""


class _Response(urllib3.HTTPResponse):
    def stream(
        self, amt: int | None = 2**16, decode_content: bool | None = None
    ) -> Iterator[bytes]:
        """Yields what has come, as it comes: an event of a stream is not waited with."""
        while data := self.read1(amt, decode_content):
            yield data


class _Stream(io.RawIOBase):
    """A body as a file, of which a read may be short."""

    def __init__(self, body: httpx.SyncByteStream) -> None:
        self._body = body
        self._chunks = iter(body)
        self._left = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            whole, self._left = self._left + b"".join(self._chunks), b""
            return whole
        return self.read1(size)

    def read1(self, size: int | None = -1, /) -> bytes:
        """What there is, once there is anything."""
        while size != 0 and not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._left = chunk
        end = len(self._left) if size is None or size < 0 else size
        data, self._left = self._left[:end], self._left[end:]
        return data

    def close(self) -> None:
        self._body.close()
        super().close()


def _seconds(timeout: Any) -> dict[str, float | None]:
    if not isinstance(timeout, urllib3.Timeout):
        timeout = urllib3.Timeout.from_float(timeout)
    connect, read = timeout.connect_timeout, timeout.clone().read_timeout
    found: dict[str, float | None] = {}
    for phase, seconds in (("connect", connect), ("pool", connect), ("read", read)):
        found[phase] = float(seconds) if isinstance(seconds, int | float) else None
    return found
