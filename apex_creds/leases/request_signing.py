"""What is sent: a plain snapshot of a plugin's request, and the copy that has the secret.

Guarantee: a request is read once, into values of plain types, before anything is checked;
what was checked is what is sent, whatever the plugin does to its objects meanwhile, and
none of its code runs once the secret is open. Framing is one and unambiguous, and headers
that make a server act on another method, path or host than was checked are refused.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import quote, quote_plus, unquote_plus, unquote_to_bytes, urlencode

import httpx

from apex_creds.errors import InvalidInputError, RequestNotAllowedError
from apex_creds.leases.lease import AccessRequest
from apex_creds.model import Delivery, DeliveryStyle, Origin
from apex_creds.plain import plain_bytes, plain_seconds, plain_text
from apex_creds.vault import Opened

_METHOD: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,31}", re.ASCII)
_SHOWING_METHODS: Final = frozenset({"TRACE", "CONNECT"})
"""TRACE has the server send the request back; CONNECT makes a tunnel of the connection."""
_PHASES: Final = ("connect", "read", "write", "pool")
_DEPTH: Final = 8
_TELLING: Final = 8
"""Shorter texts stand in headers by chance."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A request as it was when it was handed over; every value of a plain type.

    Attributes:
        stream: The body, still the plugin's own object; not to be stepped where the secret
            is.
        closes: Whether its connection is not to be used again.
    """

    method: str
    url: httpx.URL
    headers: tuple[tuple[bytes, bytes], ...]
    stream: object
    timeout: dict[str, float | None]
    closes: bool

    def access(self, scope: str | None) -> AccessRequest:
        """What to ask the broker for."""
        path = self.url.raw_path.split(b"?", 1)[0].decode("ascii")
        return AccessRequest(self.method, origin_of(self.url), path, scope)


class Outgoing(NamedTuple):
    """The request that carries the secret, and what may not come back in a header.

    Attributes:
        spellings: The secret as it was sent, then under the usual escapes.
        forms: In lower case: those, and what it is in hexadecimal and within Base64.
        mark: What stands there instead.
    """

    request: httpx.Request
    spellings: tuple[bytes, ...]
    forms: tuple[bytes, ...]
    mark: bytes


def snapshot(request: httpx.Request) -> Snapshot:
    """Reads a request once.

    Raises:
        RequestNotAllowedError: It is not one that a credential is sent with.
        InvalidInputError: A part of it is not of the type that it should be.
    """
    url = httpx.URL(plain_text(str(request.url), what="URL"))
    method = plain_text(request.method, what="method").upper()
    check_url(url)
    if not _METHOD.fullmatch(method) or method in _SHOWING_METHODS:
        raise RequestNotAllowedError("A credential is not sent with this method.")
    raw = tuple(
        (plain_bytes(name, what="header"), plain_bytes(value, what="header"))
        for name, value in request.headers.raw
    )
    check_host(raw, url)
    headers = framed(raw, method=method)
    stream = request.stream if has_body(method) else httpx.ByteStream(b"")
    return Snapshot(method, url, headers, stream, _timeout(request), has_odd_body(method))


def inject(
    taken: Snapshot,
    opened: Opened,
    delivery: Delivery,
    *,
    body: httpx.AsyncByteStream | httpx.SyncByteStream,
    name: str = "",
) -> Outgoing:
    """The copy that is sent, with ``body``.

    Of the extensions only the time-outs are kept: others, such as ``trace``, ``target``
    and ``sni_hostname``, see or redirect what is sent.

    Raises:
        InvalidInputError: The secret can't be sent in this way.
    """
    field = canonical_name(delivery.field.encode()) if delivery.field else b"authorization"
    kept = [(name, value) for name, value in taken.headers if canonical_name(name) != field]
    headers, url = httpx.Headers(kept), taken.url
    if taken.closes:
        headers["Connection"] = "close"
    if delivery.style is DeliveryStyle.QUERY:
        value = _secret_text(opened, name)
        url = _with_parameter(url, delivery.field, value)
    elif delivery.style is DeliveryStyle.HEADER:
        value = headers[delivery.field] = _secret_text(opened, name)
    elif delivery.style is DeliveryStyle.BASIC:
        value = _basic(opened, name)
        headers["Authorization"] = f"Basic {value}"
    else:
        value = _secret_text(opened, name)
        headers["Authorization"] = f"Bearer {value}"
    request = httpx.Request(
        taken.method,
        url,
        headers=headers,
        stream=body,
        extensions={"timeout": taken.timeout},
    )
    escaped = dict.fromkeys((value, quote(value, safe=""), quote(value), quote_plus(value)))
    spellings = tuple(text.encode() for text in escaped)
    inner = (
        b64decode(value).partition(b":")[2] if delivery.style is DeliveryStyle.BASIC else b""
    )
    mark = quote(f"[redacted:{name}]", safe="[]:").encode()
    return Outgoing(request, spellings, _forms(spellings, inner), mark)


def without_secret(headers: httpx.Headers, outgoing: Outgoing) -> httpx.Headers:
    """A response's headers without the secret: a redirect may repeat it in ``Location``.

    Errors of httpx show it from there. A value that has it under other escapes, in another
    case or encoded is withheld whole, and so is a header that is named by it.
    """
    raw = headers.raw
    whole = b"\n".join([b"\n".join(pair) for pair in raw])
    if b"%" not in whole and b"+" not in whole and not _shows(whole, outgoing):
        return headers
    named = [(name, value) for name, value in raw if not _shows(name, outgoing)]
    clean = [(name, _cut(value, outgoing)) for name, value in named]
    return headers if clean == raw else httpx.Headers(clean)


def _cut(value: bytes, outgoing: Outgoing) -> bytes:
    for spelling in outgoing.spellings:
        value = value.replace(spelling, outgoing.mark)
    if _shows(value, outgoing):
        return outgoing.mark
    if b"%" not in value and b"+" not in value:
        return value
    secret = outgoing.spellings[0]
    hidden = any(_hides(value, secret, plus=plus) for plus in (b"+", b" "))
    return outgoing.mark if hidden else value


def _shows(text: bytes, outgoing: Outgoing) -> bool:
    text = text.lower()
    return any(form in text for form in outgoing.forms)


def _forms(spellings: tuple[bytes, ...], inner: bytes) -> tuple[bytes, ...]:
    """What gives the secret away; the short ones, as they were sent only."""
    found = dict.fromkeys(spellings)
    for plain in filter(None, (spellings[0], inner)):
        found |= dict.fromkeys([plain, plain.hex().encode()])
        found |= dict.fromkeys(_within_base64(plain, offset) for offset in range(3))
    return tuple(f.lower() for f in found if len(f) >= _TELLING or f in spellings)


def _within_base64(plain: bytes, offset: int) -> bytes:
    """The characters that ``plain`` alone decides where it begins at that offset of three."""
    first, end = -(-offset * 8 // 6), (offset + len(plain)) * 8 // 6
    return b64encode(b"\0" * offset + plain)[first:end]


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


def _timeout(request: httpx.Request) -> dict[str, float | None]:
    given = request.extensions.get("timeout") or {}
    chosen = {phase: given.get(phase) for phase in _PHASES}
    return {
        phase: None if s is None else plain_seconds(s, what="time-out")
        for phase, s in chosen.items()
    }


def _with_parameter(url: httpx.URL, field: str, value: str) -> httpx.URL:
    query = url.query.decode("ascii")
    items = [item for item in query.split("&") if item]
    kept = [item for item in items if unquote_plus(item.partition("=")[0]) != field]
    return url.copy_with(query="&".join([*kept, urlencode({field: value})]).encode())


def _basic(opened: Opened, name: str) -> str:
    if "user" not in opened.names:
        return b64encode(_secret_text(opened, name).encode()).decode()
    with opened.view("user") as user, opened.view("password") as password:
        return b64encode(b"".join((user, b":", password))).decode()


def _secret_text(opened: Opened, name: str) -> str:
    """The secret as text of a request; h11 would quote one that is not in its error."""
    with opened.view() as view:
        around = 0x20 in (view[0], view[-1]) if view else True
        if around or any(byte < 0x20 or byte > 0x7E for byte in view):
            wrong = "white space around it" if around else "more than printable ASCII in it"
            raise InvalidInputError(
                f"The credential {name!r} can't be sent in a request: it has {wrong}.",
                hint=f"Store it again without: apex-creds set {name}. Or use reveal().",
            )
        return str(view, "ascii")


Headers = tuple[tuple[bytes, bytes], ...]

_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_ODD_BODY: Final = frozenset({"PROPFIND", "PROPPATCH", "QUERY", "REPORT", "SEARCH"})
"""They may have one as well, which fewer servers read: their connection is not used again."""
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_PUNCTUATION: Final = re.compile(rb"[^a-z0-9]")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e]*")
_HOP_BY_HOP: Final = re.compile(
    rb"connection|keep-alive|te|trailer|upgrade|http2-settings|expect|proxy-connection"
)
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_OVERRIDING: Final = re.compile(
    rb"(?:x-)?(?:http-?)?method(?:-?override)?|.*method-?override.*|x-http-.*"
    rb"|(?:.*-)?(?:url|uri|destination(?:-?url)?)|(?:x-.*-)?path|x-path"
    rb"|x-(?:.*-)?(?:host|server)(?:-override)?|host-.*|(?:x-)?original-.*|x-rewrite-.*"
    rb"|(?:x-)?forwarded(?:-.*)?|(?:x-)?proxy(?:-.*)?|x-override-.*|x-wap-profile"
)
"""Servers, proxies and frameworks go by them instead of by the request line or Host."""
_OVERRIDING_PARAMETER: Final = re.compile(
    r"-(?:http-?)?method|(?:x-)?(?:http-?)?method-?override|x-http-method"
)
_LONGEST_URL: Final = 32 * 1024

_FRAMED_TWICE: Final = "The request's length is given in more than one way, or not clearly."


def has_body(method: str) -> bool:
    """Whether a request with this method may have a body."""
    return method in _BODY or method in _ODD_BODY


def has_odd_body(method: str) -> bool:
    """Whether its body is one that not every server reads."""
    return method in _ODD_BODY


def origin_of(url: httpx.URL) -> Origin:
    """Where a request goes."""
    host = url.raw_host.decode("ascii").strip("[]")
    return Origin(url.scheme, host, url.port or (443 if url.scheme == "https" else 80))


def check_url(url: httpx.URL) -> None:
    """Checks that it names one host in one way, and no other method.

    Raises:
        RequestNotAllowedError: It does not.
    """
    if url.scheme not in ("http", "https"):
        raise RequestNotAllowedError("A credential is only sent over http or https.")
    if len(str(url)) > _LONGEST_URL:
        raise RequestNotAllowedError("The URL is longer than 32 KiB.")
    if url.userinfo:
        raise RequestNotAllowedError(
            "The URL has a user in it, and the credential is sent instead.",
            hint="Leave out what stands before the @.",
        )
    written, canonical = url.raw_host.decode("ascii").strip("[]"), origin_of(url).host
    if written != canonical:
        raise RequestNotAllowedError(
            "The URL's host is not written in its canonical form.",
            hint=f"Write it as {canonical[:80]!r}.",
        )
    for parameter in url.query.decode("ascii").replace(";", "&").split("&"):
        name = unquote_plus(parameter.partition("=")[0]).lower().replace("_", "-")
        if _OVERRIDING_PARAMETER.fullmatch(name):
            raise RequestNotAllowedError(
                "A parameter names another method for the server to act on.",
                hint="Leave it out, and send the request with that method.",
            )


def check_host(raw: Headers, url: httpx.URL) -> None:
    """Checks that the Host header is there once, and as the URL says.

    Raises:
        RequestNotAllowedError: It is not.
    """
    hosts = [value for name, value in raw if name.lower() == b"host"]
    if hosts != [url.netloc]:
        raise RequestNotAllowedError(
            "The Host header names another host than the URL.", hint="Leave it out."
        )


def canonical_name(name: bytes) -> bytes:
    """A header's name as CGI, PHP and their like see it: all but letters and digits is one."""
    return _PUNCTUATION.sub(b"-", name.lower())


def framed(raw: Headers, *, method: str) -> Headers:
    """The headers, without those of a hop, with one way at most to tell the body's end.

    Raises:
        RequestNotAllowedError: They mean another request, or are not clear.
    """
    for name, value in raw:
        _check_header(name, value)
    framing = [(name.lower(), value.strip().lower()) for name, value in raw]
    framing = [header for header in framing if header[0] in _FRAMING]
    if len(framing) > 1 or not all(map(_is_framing, framing)):
        raise RequestNotAllowedError(_FRAMED_TWICE)
    if framing and framing[0] != (b"content-length", b"0") and not has_body(method):
        raise RequestNotAllowedError(
            f"A {method} request has no body: some servers take one for the next request.",
            hint="Use parameters, or POST, PUT or PATCH.",
        )
    return tuple(
        header for header in raw if not _HOP_BY_HOP.fullmatch(canonical_name(header[0]))
    )


def _check_header(name: bytes, value: bytes) -> None:
    if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise RequestNotAllowedError(
            "A header has a character that headers don't have.",
            hint="Names are tokens and values printable ASCII (RFC 9110).",
        )
    canonical = canonical_name(name)
    if _OVERRIDING.fullmatch(canonical):
        raise RequestNotAllowedError(
            "A header names another method, URL or host for the server to act on.",
            hint="Leave out X-HTTP-Method-Override, X-Original-URL, X-Forwarded-… etc.",
        )
    if canonical != name.lower() and canonical in (*_FRAMING, b"host"):
        raise RequestNotAllowedError(_FRAMED_TWICE)


def _is_framing(header: tuple[bytes, bytes]) -> bool:
    name, value = header
    if name == b"transfer-encoding":
        return value == b"chunked"
    return value.isdigit() and len(value) < 20
