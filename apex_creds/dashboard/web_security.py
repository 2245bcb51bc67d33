"""What every request meets first, and every answer: the right Host and Origin, headers, JSON.

Guarantee: a request whose ``Host`` is not one of the dashboard's is refused before anything
else is read, so that a name that is rebound to this machine leads nowhere; a POST is only
taken from the dashboard's own page; every answer, also of an error, forbids the page all
resources but its own, inline code, frames and caches. (What is no HTTP at all is refused
before it comes here, with a line of plain text.) A body is read up to a limit and must be
exactly what is expected; an error has nothing in it but what this package's own errors say,
escaped.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final, TypeVar
from urllib.parse import urlsplit

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apex_creds.dashboard.lease_view import text
from apex_creds.errors import (
    AccessDeniedError,
    ApexCredsError,
    InvalidInputError,
    LockedOutError,
    NotFoundError,
    SecondFactorError,
)

# -- requests and answers -------------------------------------------------------------------


T = TypeVar("T", bound=msgspec.Struct)

MAX_BODY: Final = 8192
BODY_SECONDS: Final = 10.0
encode = msgspec.json.Encoder().encode


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An empty body: ``{}``."""


async def body(request: Request, kind: type[T]) -> T:
    """The request's JSON.

    Raises:
        InvalidInputError: It is not what is expected.
    """
    data = b""
    with anyio.move_on_after(BODY_SECONDS), suppress(ClientDisconnect):
        async for chunk in request.stream():
            data += chunk
            if len(data) > MAX_BODY:
                break
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InvalidInputError("That is not what the page sends.") from None


def reply(value: object) -> Response:
    """An answer."""
    return Response(encode(value), media_type="application/json")


def refused(status: int, error: str, hint: str = "", **more: object) -> JSONResponse:
    """An answer that says no, and why."""
    return JSONResponse({"error": error, "hint": hint, **more}, status_code=status)


async def not_found(_: Request, __: Exception) -> Response:
    """There is no such place, or it is not asked so."""
    return refused(404, "There is nothing here.")


async def failed(_: Request, error: Exception) -> Response:
    """An error of this package."""
    assert isinstance(error, ApexCredsError)
    message, hint = text(error.message), text(error.hint)
    if isinstance(error, LockedOutError):
        wait = round(error.retry_after)
        return refused(429, message, hint, factor=True, retry_after=wait)
    if isinstance(error, SecondFactorError):
        return refused(403, message, hint, factor=True)
    if isinstance(error, NotFoundError):
        return refused(404, message, hint)
    if isinstance(error, InvalidInputError):
        return refused(400, message, hint)
    return refused(403 if isinstance(error, AccessDeniedError) else 503, message, hint)


async def broken(_: Request, __: Exception) -> Response:
    """Anything else; the terminal says what."""
    return refused(500, "Something went wrong; the terminal says what.")


# -- the guard ------------------------------------------------------------------------------


CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "permissions-policy": (
        "camera=(), clipboard-read=(), display-capture=(), geolocation=(), microphone=(), "
        "payment=(), usb=()"
    ),
    "cache-control": "no-store",
    "x-robots-tag": "noindex",
}
_RAW: Final = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """An ASGI application around another.

    Args:
        app: What is guarded.
        origins: Where the page is opened, ``http://127.0.0.1:8765``; answers
            name the first.
    """

    def __init__(self, app: ASGIApp, *, origins: Iterable[str]) -> None:
        self._app = app
        self._origins = tuple(origins)
        self._hosts = frozenset(urlsplit(origin).netloc for origin in self._origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return

        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [h for h in message["headers"] if h[0].lower().decode() not in HEADERS]
                message = {**message, "headers": [*kept, *_RAW]}
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, hardened)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if _values(headers, b"host") not in [[host] for host in self._hosts]:
            return refused(421, f"This dashboard answers to {self._origins[0]} only.")
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return refused(405, "Only GET and POST are understood here.")
        page = not scope["path"].startswith("/api/") and scope["method"] != "POST"
        sites = ([], ["same-origin"], ["none"]) if page else ([], ["same-origin"])
        # A top-level visit from elsewhere gets the empty page, and no cookie with it.
        visit = page and _values(headers, b"sec-fetch-mode") == ["navigate"]
        if not visit and _values(headers, b"sec-fetch-site") not in sites:
            return refused(403, "This request is another site's.")
        return self._bad_post(headers) if scope["method"] == "POST" else None

    def _bad_post(self, headers: list[tuple[bytes, bytes]]) -> JSONResponse | None:
        if _values(headers, b"origin") not in [[origin] for origin in self._origins]:
            return refused(403, "This request is not from the dashboard's own page.")
        if _values(headers, b"content-type") != ["application/json"]:
            return refused(415, "Only JSON is understood here.")
        length = _values(headers, b"content-length")
        if len(length) != 1 or not length[0].isdecimal() or len(length[0]) > len(str(MAX_BODY)):
            return refused(411, "The length of the request is not said.")
        return None if int(length[0]) <= MAX_BODY else refused(413, "The request is too long.")


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]
