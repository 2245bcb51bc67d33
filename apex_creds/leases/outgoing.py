"""What is sent: a plain snapshot of a plugin's request, and the copy that has the secret.

Guarantee: a request is read once, into values of plain types, before anything is checked;
what was checked is what is sent, whatever the plugin does to its objects meanwhile, and
none of its code runs once the secret is open. Framing is one and unambiguous, and headers
that make a server act on another method, path or host than was checked are refused.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import quote, quote_plus, unquote_to_bytes, urlencode

import httpx

from apex_creds.errors import InvalidInputError, RequestNotAllowedError
from apex_creds.leases.use import Use
from apex_creds.model import Delivery, DeliveryStyle, Origin
from apex_creds.vault import Opened

_METHOD: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,31}", re.ASCII)
_SHOWING_METHODS: Final = frozenset({"TRACE", "CONNECT"})
"""TRACE has the server send the request back; CONNECT makes a tunnel of the connection."""
_PHASES: Final = ("connect", "read", "write", "pool")
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"upgrade"})
_OVERRIDING: Final = re.compile(
    rb"x-(?:http-)?method(?:-override)?|x-original-(?:url|method)|x-rewrite-url"
    rb"|x-forwarded-.*|forwarded|proxy-.*"
)
_LONGEST_URL: Final = 32 * 1024
_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A request as it was when it was handed over; every value of a plain type."""

    method: str
    url: httpx.URL
    headers: tuple[tuple[bytes, bytes], ...]
    stream: httpx.SyncByteStream | httpx.AsyncByteStream
    timeout: dict[str, float | None]

    def use(self, scope: str | None) -> Use:
        """What to ask the broker for."""
        host = self.url.raw_host.decode("ascii").strip("[]").lower()
        port = self.url.port or (443 if self.url.scheme == "https" else 80)
        path = self.url.raw_path.split(b"?", 1)[0].decode("ascii")
        return Use(self.method, Origin(self.url.scheme, host, port), path, scope)


class Outgoing(NamedTuple):
    """The request that carries the secret, and what may not come back in a header."""

    request: httpx.Request
    spellings: tuple[bytes, ...]
    mark: bytes


def snapshot(request: httpx.Request) -> Snapshot:
    """Reads a request once.

    Raises:
        RequestNotAllowedError: It is not one that a credential is sent with.
    """
    url = httpx.URL(_text(str(request.url)))
    method = _text(request.method).upper()
    if url.scheme not in ("http", "https"):
        raise RequestNotAllowedError("A credential is only sent over http or https.")
    if not _METHOD.fullmatch(method) or method in _SHOWING_METHODS:
        raise RequestNotAllowedError("A credential is not sent with this method.")
    if len(str(url)) > _LONGEST_URL:
        raise RequestNotAllowedError("The URL is longer than 32 KiB.")
    raw = tuple((_bytes(name), _bytes(value)) for name, value in request.headers.raw)
    _check_host(raw, url)
    return Snapshot(method, url, _framed(raw), request.stream, _timeout(request))


def inject(taken: Snapshot, opened: Opened, delivery: Delivery, *, name: str = "") -> Outgoing:
    """The copy that is sent.

    Of the extensions only the time-outs are kept: others, such as ``trace``, ``target``
    and ``sni_hostname``, see or redirect what is sent.

    Raises:
        InvalidInputError: The secret can't be sent in this way.
    """
    headers, url = httpx.Headers(list(taken.headers)), taken.url
    if delivery.style is DeliveryStyle.QUERY:
        value = _secret_text(opened)
        url = _with_parameter(url, delivery.field, value)
    elif delivery.style is DeliveryStyle.HEADER:
        value = headers[delivery.field] = _secret_text(opened)
    elif delivery.style is DeliveryStyle.BASIC:
        value = _basic(opened)
        headers["Authorization"] = f"Basic {value}"
    else:
        value = _secret_text(opened)
        headers["Authorization"] = f"Bearer {value}"
    request = httpx.Request(
        taken.method,
        url,
        headers=headers,
        stream=taken.stream,
        extensions={"timeout": taken.timeout},
    )
    spellings = dict.fromkeys((value, quote(value, safe=""), quote(value), quote_plus(value)))
    mark = quote(f"[redacted:{name}]", safe="[]:").encode()
    return Outgoing(request, tuple(text.encode() for text in spellings), mark)


def without_secret(headers: httpx.Headers, outgoing: Outgoing) -> httpx.Headers:
    """A response's headers without the secret: a redirect may repeat it in ``Location``.

    Errors of httpx show it from there. A value that has it under other escapes than those
    it was sent with is withheld whole.
    """
    clean = [(name, _cut(value, outgoing)) for name, value in headers.raw]
    return headers if clean == headers.raw else httpx.Headers(clean)


def _cut(value: bytes, outgoing: Outgoing) -> bytes:
    for spelling in outgoing.spellings:
        value = value.replace(spelling, outgoing.mark)
    if b"%" not in value and b"+" not in value:
        return value
    secret = outgoing.spellings[0]
    hidden = any(_hides(value, secret, plus=plus) for plus in (b"+", b" "))
    return outgoing.mark if hidden else value


def _hides(value: bytes, secret: bytes, *, plus: bytes) -> bool:
    """Whether escapes hide the secret, at any depth; too deep is taken for yes."""
    for _ in range(_DEPTH):
        plain = unquote_to_bytes(value.replace(b"+", plus))
        if secret in plain:
            return True
        if plain == value:
            return False
        value = plain
    return True


def _check_host(raw: tuple[tuple[bytes, bytes], ...], url: httpx.URL) -> None:
    hosts = [value for name, value in raw if name.lower() == b"host"]
    if hosts != [url.netloc]:
        raise RequestNotAllowedError(
            "The Host header names another host than the URL.", hint="Leave it out."
        )


def _framed(raw: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    """The headers, without those of a hop, with one way at most to tell the body's end."""
    if any(_OVERRIDING.fullmatch(name.lower()) for name, _ in raw):
        raise RequestNotAllowedError(
            "A header names another method, URL or host for the server to act on.",
            hint="Leave out X-HTTP-Method-Override, X-Original-URL, X-Forwarded-… and so on.",
        )
    framing = [(name.lower(), value.lower()) for name, value in raw if name.lower() in _FRAMING]
    chunked = (b"transfer-encoding", b"chunked")
    if len(framing) > 1 or (framing and framing[0][0] == chunked[0] and framing[0] != chunked):
        raise RequestNotAllowedError("The request's length is given in more than one way.")
    return tuple((name, value) for name, value in raw if name.lower() not in _HOP_BY_HOP)


def _timeout(request: httpx.Request) -> dict[str, float | None]:
    given = request.extensions.get("timeout") or {}
    chosen = {phase: given.get(phase) for phase in _PHASES}
    return {phase: None if s is None else float(s) for phase, s in chosen.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise RequestNotAllowedError("The request's method or URL is not text.")
    return str.__str__(value)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise RequestNotAllowedError("A header of the request is not bytes.")
    return b"".join((value, b""))


def _with_parameter(url: httpx.URL, field: str, value: str) -> httpx.URL:
    query = url.query.decode("ascii")
    kept = [item for item in query.split("&") if item and item.split("=")[0] != quote(field)]
    return url.copy_with(query="&".join([*kept, urlencode({field: value})]).encode())


def _basic(opened: Opened) -> str:
    if "user" not in opened.names:
        return base64.b64encode(_secret_text(opened).encode()).decode()
    with opened.view("user") as user, opened.view("password") as password:
        return base64.b64encode(b"".join((user, b":", password))).decode()


def _secret_text(opened: Opened) -> str:
    """The secret as header text; h11 would quote one that is not in its error."""
    with opened.view() as view:
        if any(byte < 0x20 or byte > 0x7E for byte in view):
            raise InvalidInputError(
                "This credential can't be sent in a header: it is not printable ASCII.",
                hint="Use reveal(), or store it in another encoding.",
            )
        return str(view, "ascii")
