"""The head of a request that comes from behind the wall: strictly one request, to one place.

Guarantee: h11 parses, and what servers, proxies and libraries read in several ways is refused
before: bare CR or LF, folded lines, control characters, two lengths or two kinds of them,
several Hosts, a target that names another host than Host. What is of one hop, or for a proxy,
goes no further. Pure.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote

import h11
import msgspec

from apex_creds.errors import ApexCredsError
from apex_creds.leases.http_messages import RawHeaders
from apex_creds.model import HTTP, Origin

END: Final = b"\r\n\r\n"
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_FRAMING: Final = re.compile(rb"\n(content-length|transfer-encoding)[ \t]*:([^\r]*)")
_BODY_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_AUTHORITY: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"/(https?)/([^/?#]+)(.*)", re.DOTALL)
_ABSOLUTE: Final = re.compile(r"(https?)://([^/?#]+)(.*)", re.DOTALL | re.IGNORECASE)
_ONE_HOP: Final = frozenset(
    {b"connection", b"expect", b"host", b"keep-alive", b"te", b"trailer", b"upgrade"}
    | {b"http2-settings", b"transfer-encoding", b"content-length"}
)
_HTTP2: Final = b"PRI * HTTP/2"


class BadRequestError(Exception):
    """It is not served; its connection is closed.

    Attributes:
        status: What it is answered with.
        text: Why, for people.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class Place(NamedTuple):
    """Where a request goes.

    Attributes:
        target: Path and query, as they are sent there.
        base: What stands before the path for who asked; empty: nothing.
    """

    origin: Origin
    target: str
    base: str = ""

    @property
    def url(self) -> str:
        """Of it there."""
        return f"{self.origin}{self.target}"


class Head(msgspec.Struct, frozen=True, eq=False):
    """A request's head.

    Attributes:
        headers: Those that go on; ``Host``, what frames the body and what is of one hop do not.
        length: Of the body; None: it is chunked.
        waits: Whether it waits for ``100 Continue``.
        upgrade: The protocol that it asks for, in lower case.
        closes: Whether its connection ends after the answer.
    """

    method: str
    target: str
    host: str
    headers: RawHeaders
    length: int | None
    waits: bool
    upgrade: str
    closes: bool

    def values(self, name: bytes) -> list[bytes]:
        """What it says in headers of that name (lower case)."""
        return [value for found, value in self.headers if found.lower() == name]


def check_lines(raw: bytes, *, most: int) -> None:
    """Checks the bytes of a head, up to the empty line, before anything parses them.

    Raises:
        BadRequestError: They can be read in more than one way.
    """
    if raw.startswith(_HTTP2):
        raise BadRequestError(505, "HTTP/2 (so gRPC) does not go through the gateway.")
    lines = raw.count(b"\r\n")
    if raw.count(b"\n") != lines or raw.count(b"\r") != lines:
        raise BadRequestError(400, "A line of the head does not end with CR LF.")
    if b"\r\n " in raw or b"\r\n\t" in raw:
        raise BadRequestError(400, "A header is folded over several lines.")
    if _CONTROLS.search(raw):
        raise BadRequestError(400, "The head has a control character.")
    framing = _FRAMING.findall(raw.lower())  # h11 makes one of two that are equal
    if len(framing) > 1:
        raise BadRequestError(400, "The length of the body is given in more than one way.")
    for kind, value in framing:
        if kind == b"content-length" and not _BODY_LENGTH.fullmatch(value.strip(b" \t")):
            raise BadRequestError(400, "The length of the body is no number.")
    if lines - 2 > most:
        raise BadRequestError(431, f"The head has more than {most} headers.")


def read_head(request: h11.Request) -> Head:
    """What h11 has parsed of lines that were checked.

    Raises:
        BadRequestError: It is not clear what is meant.
    """
    pairs = [(name.lower(), value) for name, value in request.headers.raw_items()]
    found: dict[bytes, list[bytes]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    hosts = found.get(b"host", [])
    if not hosts and (request.method, request.http_version) == (b"CONNECT", b"1.0"):
        hosts = [request.target]  # as Python before 3.12 writes it
    if len(hosts) != 1 or not _AUTHORITY.fullmatch(host := hosts[0].decode("latin-1")):
        raise BadRequestError(400, "The request has not exactly one Host.")
    codings = found.get(b"transfer-encoding", [])
    length = None if codings else int(found.get(b"content-length", [b"0"])[0])
    if codings and (codings[0].lower() != b"chunked" or request.http_version != b"1.1"):
        raise BadRequestError(501, "Of Transfer-Encoding, chunked is understood.")
    tokens = b",".join(found.get(b"connection", [])).split(b",")
    options = {token.strip().lower() for token in tokens}
    expected = b",".join(found.get(b"expect", [])).lower()
    if expected not in (b"", b"100-continue"):
        raise BadRequestError(417, "Of Expect, 100-continue is understood.")
    upgrade = b",".join(found.get(b"upgrade", [])).decode("latin-1").lower().strip()
    kept = [
        (name, value)
        for name, value in request.headers.raw_items()
        if name.lower() not in _ONE_HOP
        and name.lower() not in options
        and not name.lower().startswith(b"proxy-")
    ]
    return Head(
        method=request.method.decode("ascii"),
        target=request.target.decode("latin-1"),
        host=host,
        headers=kept,
        length=length,
        waits=bool(expected) and request.http_version == b"1.1",
        upgrade=upgrade if b"upgrade" in options else "",
        closes=b"close" in options or request.http_version != b"1.1",
    )


def place_of(head: Head, authority: str, within: Origin | None) -> Place:
    """Where a request goes.

    Args:
        head: Of the request.
        authority: What the gateway is called: ``127.0.0.1:PORT``.
        within: Where its tunnel leads; None: it came by none.

    Raises:
        BadRequestError: Target and Host name two places, or none.
    """
    target = head.target
    if within is not None:
        if not target.startswith("/") or _origin(within.scheme, head.host) != within:
            raise BadRequestError(421, f"This tunnel leads to {within} only.")
        return Place(within, target)
    if target.startswith("/"):
        found = _PREFIX.fullmatch(target)
        port = authority.rpartition(":")[2]
        if head.host.lower() not in (authority, f"localhost:{port}") or found is None:
            raise BadRequestError(
                404, f"Write http://{authority}/https/HOST/PATH, or use it as a proxy."
            )
        scheme, written, rest = found.groups()
        origin = _origin(scheme, unquote(written))
        base = f"/{scheme}/{written}"
    else:
        found = _ABSOLUTE.fullmatch(target)
        if found is None:
            raise BadRequestError(400, "The request's target is not understood.")
        scheme, written, rest = found.groups()
        origin, base = _origin(scheme.lower(), written), ""
        if origin != _origin(scheme.lower(), head.host):
            raise BadRequestError(400, "Target and Host name two places.")
    return Place(origin, rest if rest.startswith("/") else f"/{rest}", base)


def tunnel_of(head: Head) -> tuple[str, int]:
    """Host and port that a ``CONNECT`` is for.

    Raises:
        BadRequestError: It names none, or another than Host.
    """
    origin, named = _origin("https", head.target), _origin("https", head.host)
    at_port = head.target.endswith(f":{origin.port}")
    if not at_port or named.host != origin.host or named.port not in (origin.port, 443):
        raise BadRequestError(400, "CONNECT takes HOST:PORT, and Host names the same.")
    if head.length != 0:
        raise BadRequestError(400, "CONNECT has no body.")
    return origin.host, origin.port


def _origin(scheme: str, authority: str) -> Origin:
    if scheme in HTTP and _AUTHORITY.fullmatch(authority):
        try:
            return Origin.parse(f"{scheme}://{authority}")
        except ApexCredsError:
            pass
    raise BadRequestError(400, "The request names no host.")
