"""What every request meets first: the right Host, the right Origin, headers on every answer.

Guarantee: a request whose ``Host`` is not one that the dashboard was told is refused before
anything else is looked at, so that a name that is rebound to this machine leads nowhere; a
POST is only taken from the dashboard's own page; every answer, also of an error, forbids
the page all resources but its own, inline code, frames and caches. (What is no HTTP at all
is refused before it comes here, with a line of plain text.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apex_creds.dashboard.replies import MAX_BODY, refused

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
        origins: Where the page is opened, ``http://127.0.0.1:8765``; the first is told.
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
