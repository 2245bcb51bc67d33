"""Which requests a credential is never sent with, whoever may send it where.

Guarantee: what passes means one request, to one host, to every server, proxy and framework
on its way: there is one length, one method, one path and one host; and a body only with
methods whose bodies servers read.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_plus

import httpx

from apex_creds.errors import RequestNotAllowedError
from apex_creds.model import Origin

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
