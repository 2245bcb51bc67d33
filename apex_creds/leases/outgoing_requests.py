"""What is sent: a plain snapshot of a plugin's request, and the copy that has the secret.

Guarantee: a request is read once, into values of plain types, before anything is checked;
what was checked is what is sent, whatever the plugin does to its objects meanwhile, and
none of its code runs once the secret is open. What passes means one request, to one host, to
every server, proxy and framework on its way: there is one length, one method, one path and one
host; and a body only with methods whose bodies servers read.
"""

from __future__ import annotations

import math
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote_plus

import httpx
import msgspec

from apex_creds.crypto.sigv4 import ALGORITHM
from apex_creds.errors import RequestNotAllowedError
from apex_creds.leases.deliveries import (
    Draft,
    Snapshot,
    Use,
    canonical_name,
)
from apex_creds.leases.http_messages import RawHeaders
from apex_creds.model import PLACEHOLDER, DeliveryStyle, Origin
from apex_creds.plain import plain_bytes, plain_seconds, plain_text

_PLACEHOLDER: Final = PLACEHOLDER.encode()
_BASIC: Final = b"basic "
_SIGNED: Final = ALGORITHM.encode()
_METHOD: Final = re.compile(r"[A-Z][A-Z0-9_-]{0,31}", re.ASCII)
_HANDLE: Final = b"CredentialHandle"
_HANDLE_TEXT: Final = rb"(?:<|%(?:25)*3c|\\u003c|&lt;)CredentialHandle(?:\s|\+|%(?:25)*20)"
_ANYWHERE: Final = re.compile(_HANDLE_TEXT, re.IGNORECASE)
_AS_VALUE: Final = re.compile(
    rb"""(?:^|[="'>:,/]|(?:basic|bearer|token|key)(?:\s|\+|%20))\s*""" + _HANDLE_TEXT,
    re.IGNORECASE,
)
"""Where a value begins: a body may have words about handles."""
_SHOWING_METHODS: Final = frozenset({"TRACE", "TRACK", "CONNECT"})
"""TRACE, and TRACK, have the server send the request back; CONNECT makes a tunnel."""
_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
_ODD_BODY: Final = frozenset({"PROPFIND", "PROPPATCH", "QUERY", "REPORT", "SEARCH"})
"""They may have one as well, which fewer servers read: their connection is not used again."""
_PHASES: Final = ("connect", "read", "write", "pool")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")
_VALUE: Final = re.compile(rb"[\t\x20-\x7e]*")
_USUAL: Final = frozenset(
    {b"accept", b"accept-encoding", b"accept-language", b"content-type", b"user-agent"}
)
"""They mean the same to everybody on the way."""
_HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"http2-settings", b"expect"}
)
_KNOWN: Final = _USUAL | _HOP_BY_HOP | {b"host"}
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_OVERRIDING: Final = re.compile(
    rb"(?:x-)?(?:http-?)?method(?:-?override)?|.*method-?override.*|x-http-.*"
    rb"|(?:.*-)?(?:url|uri|destination(?:-?url)?)|(?:x-.*-)?path|x-path"
    rb"|x-(?:.*-)?(?:host|server)(?:-override)?|host-.*|(?:x-)?original-.*|x-rewrite-.*"
    rb"|(?:x-)?forwarded(?:-.*)?|(?:x-)?proxy(?:-.*)?|x-override-.*|x-wap-profile"
)
"""Servers, proxies and frameworks go by them instead of by the request line or Host."""
_SOURCE: Final = re.compile(rb"x-(?:.*-)?(?:copy-source|copy-from|rename-source)")
"""A store of objects reads there which other one it copies (S3, Azure, Google, Swift)."""
_OVERRIDING_PARAMETER: Final = re.compile(
    r"-(?:http-?)?method|(?:x-)?(?:http-?)?method-?override|x-http-method"
)
_DOTS: Final = re.compile(r"\w+://[^?#]*/\.\.?(?:[/?#]|$)")
_LONGEST_URL: Final = 32 * 1024
_LONGEST_LENGTH: Final = 20
"""Of the digits that say how long a body is."""
_FRAMED_TWICE: Final = "The request's length is given in more than one way, or not clearly."

# What an ``httpx.URL`` has of a text that is in its canonical form already.
_URL_PARTS: Final[Any] = type(getattr(httpx.URL("http://a"), "_uri_reference", ""))
_PART_TYPES: Final = frozenset({str, int, type(None)})
_PART_HOST: Final = re.compile(r"[a-z_-][a-z0-9_-]*(?:\.[a-z_-][a-z0-9_-]*)*", re.ASCII)
_PART_IPV4: Final = re.compile(r"(?:[1-9]?\d|1\d\d)(?:\.(?:[1-9]?\d|1\d\d)){3}", re.ASCII)
_PART_PATH: Final = re.compile(r"(?:/(?!\.)(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})*)*")
_PART_QUERY: Final = re.compile(r"(?:[A-Za-z0-9._~!$&()*+,;=:@/?-]|%[0-9A-F]{2})*")


class Outgoing(msgspec.Struct, frozen=True, eq=False):
    """The request that carries the secrets."""

    method: str
    url: httpx.URL
    headers: RawHeaders
    body: httpx.AsyncByteStream | httpx.SyncByteStream
    timeout: dict[str, float | None]

    def request(self) -> httpx.Request:
        """For a transport of httpx.

        Of the extensions only the time-outs are there: others, such as ``trace``, ``target``
        and ``sni_hostname``, see or redirect what is sent.
        """
        return httpx.Request(
            self.method,
            self.url,
            headers=self.headers,
            stream=self.body,
            extensions={"timeout": self.timeout},
        )


def snapshot(
    method: str,
    url: object,
    raw: Iterable[tuple[bytes, bytes]],
    body: object,
    timeout: Mapping[str, float | None],
    bodies: Collection[str] = (),
) -> Snapshot:
    """Reads a request once; with a method of ``bodies`` it may have a body as well.

    Raises:
        RequestNotAllowedError: It is not one that a credential is sent with.
        InvalidInputError: A part of it is not of the type that it should be.
    """
    own = _own_url(url)
    if type(method) is not str:
        method = plain_text(method, what="method")
    method = method.upper()
    host = own.netloc
    origin, path = _checked_url(own, host)
    if not _METHOD.fullmatch(method) or method in _SHOWING_METHODS:
        raise RequestNotAllowedError("A credential is not sent with this method.")
    odd = method in _ODD_BODY or method in bodies
    takes_body = odd or method in _BODY
    headers = _checked_headers(raw, method, host, takes_body=takes_body)
    stream = body if takes_body else None
    whole = b"".join(body) if type(body) is httpx.ByteStream else body
    if isinstance(whole, bytes) and _HANDLE in whole and _AS_VALUE.search(whole):
        raise _handle_as_text("The body")
    closes = odd and (method in _ODD_BODY or any(each[0] in _FRAMING for each in headers))
    phases: dict[str, float | None] = {}
    for phase in _PHASES:
        seconds = timeout.get(phase)
        plain = seconds is None or (type(seconds) is float and 0.0 < seconds < math.inf)
        phases[phase] = seconds if plain else plain_seconds(seconds, what="time-out")
    return Snapshot(method, own, origin, path, headers, stream, phases, closes)


def check_no_source(taken: Snapshot) -> None:
    """Checks that a request which may go to some paths only reads from no other.

    Raises:
        RequestNotAllowedError: A header names an object to be copied.
    """
    if any(_SOURCE.fullmatch(canonical) for canonical, _, _ in taken.headers):
        raise RequestNotAllowedError(
            "A header names an object to be copied, and the credential is for some paths only.",
            hint="Read the object and write it, or have manifest and grant name no paths.",
        )


def _own_url(url: object) -> httpx.URL:
    """The URL as it is now, in plain values that nothing else refers to."""
    if type(url) is httpx.URL:
        own = httpx.URL(url)  # shares the immutable parts
        if _is_canonical(getattr(own, "_uri_reference", None)):
            return own
    text = plain_text(str(url), what="URL")
    if _DOTS.match(text):
        raise RequestNotAllowedError(
            "The URL's path has a segment of dots, which servers read in more than one way.",
            hint="Write the path without . and .. in it; a name can't be one of them.",
        )
    return httpx.URL(text)


def _is_canonical(parts: Any) -> bool:
    """Whether they are of plain types, and what would be read of their text."""
    if type(parts) is not _URL_PARTS or not set(map(type, parts)) <= _PART_TYPES:
        return False
    host, port, query = parts.host, parts.port, parts.query
    return bool(
        parts.scheme in ("http", "https")
        and not parts.userinfo
        and (_PART_HOST.fullmatch(host) or _PART_IPV4.fullmatch(host))
        and (port is None or (type(port) is int and port not in (80, 443)))
        and _PART_PATH.fullmatch(parts.path)
        and (query is None or _PART_QUERY.fullmatch(query))
    )


def _checked_url(url: httpx.URL, host: bytes) -> tuple[Origin, str]:
    """Where a request goes: one host, named in one way; and its path.

    Raises:
        RequestNotAllowedError: It names another method, or is not clear.
    """
    scheme, target = url.scheme, url.raw_path
    if scheme not in ("http", "https"):
        raise RequestNotAllowedError("A credential is only sent over http or https.")
    if len(scheme) + 3 + len(host) + len(target) > _LONGEST_URL:
        raise RequestNotAllowedError("The URL is longer than 32 KiB.")
    if url.userinfo:
        raise RequestNotAllowedError(
            "The URL has a user in it, and the credential is sent instead.",
            hint="Leave out what stands before the @.",
        )
    written = url.raw_host.decode("ascii").strip("[]")
    origin = Origin(scheme, written, url.port or (443 if scheme == "https" else 80))
    if written != origin.host:
        raise RequestNotAllowedError(
            "The URL's host is not written in its canonical form.",
            hint=f"Write it as {origin.host[:80]!r}.",
        )
    if _HANDLE in target and _ANYWHERE.search(target):
        raise _handle_as_text("The URL")
    path, _, query = target.decode("ascii").partition("?")
    for parameter in query.replace(";", "&").split("&") if query else ():
        name = unquote_plus(parameter.partition("=")[0]).lower().replace("_", "-")
        if _OVERRIDING_PARAMETER.fullmatch(name):
            raise RequestNotAllowedError(
                "A parameter names another method for the server to act on.",
                hint="Leave it out, and send the request with that method.",
            )
    return origin, path


def _checked_headers(
    raw: Iterable[tuple[bytes, bytes]], method: str, host: bytes, *, takes_body: bool
) -> list[tuple[bytes, bytes, bytes]]:
    """The headers, without those of a hop, with one way at most to see the body's end.

    Raises:
        RequestNotAllowedError: They mean another request, or are not clear.
    """
    kept: list[tuple[bytes, bytes, bytes]] = []
    hosts: list[bytes] = []
    framing: RawHeaders = []
    for name, value in raw:
        if type(name) is not bytes or type(value) is not bytes:
            name = plain_bytes(name, what="header")  # noqa: PLW2901 - the same, plain
            value = plain_bytes(value, what="header")  # noqa: PLW2901
        lower = name.lower()
        if lower == b"host":
            hosts.append(value)
        canonical = lower if lower in _KNOWN else _checked_name(name, lower)
        if _HANDLE in value or not _VALUE.fullmatch(value):
            _check_value(value)
        if lower in _FRAMING:
            framing.append((lower, value.strip().lower()))
        if canonical not in _HOP_BY_HOP and not (
            # Seldom, so that most headers cost no call.
            (_PLACEHOLDER in value or value[:6].lower() == _BASIC) and _has_placeholder(value)
        ):
            kept.append((canonical, name, value))
    if hosts != [host]:
        _check_no_host(hosts)
        kept.insert(0, (b"host", b"Host", host))
    if framing:
        _check_framing(framing, method, takes_body=takes_body)
    return kept


def _check_no_host(hosts: list[bytes]) -> None:
    if hosts:
        raise RequestNotAllowedError(
            "The Host header names another host than the URL.", hint="Leave it out."
        )


def _has_placeholder(value: bytes) -> bool:
    """Whether a header is an SDK's own, with what was given to it as its key."""
    if _PLACEHOLDER in value:
        return not value.startswith(_SIGNED)  # what a signature is for is read there
    if value[:6].lower() != _BASIC:
        return False
    try:
        pair = a2b_base64(value[6:])
    except Base64Error:
        return False
    if _HANDLE in pair:
        raise _handle_as_text("A header")
    return _PLACEHOLDER in pair


def _check_framing(framing: RawHeaders, method: str, *, takes_body: bool) -> None:
    name, value = framing[0]
    clear = value == b"chunked" if name == b"transfer-encoding" else value.isdigit()
    if len(framing) > 1 or not clear or len(value) >= _LONGEST_LENGTH:
        raise RequestNotAllowedError(_FRAMED_TWICE)
    if (name, value) != (b"content-length", b"0") and not takes_body:
        raise RequestNotAllowedError(
            f"A {method} request has no body: some servers take one for the next request.",
            hint='Use parameters, or POST, PUT or PATCH. A manifest may say "bodies": '
            f'["{method}"] of the credential.',
        )


def _checked_name(name: bytes, lower: bytes) -> bytes:
    """A header's name in its one form."""
    if not _NAME.fullmatch(name):
        raise _bad_header()
    canonical = canonical_name(name)
    if _OVERRIDING.fullmatch(canonical):
        raise RequestNotAllowedError(
            "A header names another method, URL or host for the server to act on.",
            hint="Leave out X-HTTP-Method-Override, X-Original-URL, X-Forwarded-… etc.",
        )
    if canonical != lower and canonical in (*_FRAMING, b"host"):
        raise RequestNotAllowedError(_FRAMED_TWICE)
    return canonical


def _check_value(value: bytes) -> None:
    if not _VALUE.fullmatch(value):
        raise _bad_header()
    if _ANYWHERE.search(value):
        raise _handle_as_text("A header")


def _bad_header() -> RequestNotAllowedError:
    return RequestNotAllowedError(
        "A header has a character that headers don't have.",
        hint="Names are tokens and values printable ASCII (RFC 9110).",
    )


def _handle_as_text(where: str) -> RequestNotAllowedError:
    return RequestNotAllowedError(
        f"{where} has the text of a handle in it, where a key should be: a handle is no key.",
        hint='Give the SDK api_key=sdk.placeholder("sk-") and a client of apex_creds.sdk, as '
        'http_client=httpx.AsyncClient(transport=sdk.httpx.async_transport("NAME")). By hand: '
        "handle.client(), which adds the credential itself.",
    )


def inject(
    taken: Snapshot,
    uses: Sequence[Use],
    *,
    body: httpx.AsyncByteStream | httpx.SyncByteStream,
) -> Outgoing:
    """The copy that is sent, with ``body``: each secret in its place.

    Raises:
        InvalidInputError: A secret can't be sent in its way, or two would be in one place.
        RequestNotAllowedError: The request has no such place.
    """
    draft = Draft(taken, body)
    if len(uses) > 1:  # a signature is of all else
        uses = sorted(
            uses, key=lambda use: use.record.info.delivery.style is DeliveryStyle.AWS4
        )
    for use in uses:
        draft.put(use)
    draft.check_placeholders()
    return Outgoing(taken.method, draft.url, draft.raw_headers(), draft.body, taken.timeout)
