"""Where a credential goes in a request: one form of ``Delivery`` each, and nothing else.

Guarantee: a secret ends up in exactly one place, which its delivery names: what the plugin
had put there is gone, and two credentials that want the same place are refused. A place that
is not clear (a cookie that ends elsewhere for some servers, a body that is a stream or of
another type, a path with two such segments) is refused before anything is sent. A request
whose body was changed says its new length, in one way.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, unquote_plus, urlencode

import httpx
import msgspec

from apex_creds.clocks import SystemClock
from apex_creds.crypto import sigv4
from apex_creds.documents.records import Record
from apex_creds.errors import InvalidInputError, RequestNotAllowedError
from apex_creds.leases.http_messages import RawHeaders
from apex_creds.model import PLACEHOLDER, Delivery, DeliveryStyle, Origin
from apex_creds.policy.display import operator_command
from apex_creds.vault import Opened

MAX_BODY: Final = 1024 * 1024
"""Of a body that a credential is put into."""
_PUNCTUATION: Final = re.compile(rb"[^a-z0-9]")
_SENDABLE: Final = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_COOKIE: Final = re.compile(r"[!#-+\--:<-\[\]-~]+")
"""What every server reads as one value (RFC 6265, cookie-octet)."""
_PAIR: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=(?:\"[^\";\\]*\"|[^\";\\]*)")
_IN_SEGMENT: Final = "~!$&'()*+,;=:@"
_PLACEHOLDER: Final = PLACEHOLDER.encode()
_JSON: Final = b"application/json"
_FORM: Final = b"application/x-www-form-urlencoded"


def canonical_name(name: bytes) -> bytes:
    """A header's name as CGI, PHP and their like see it: all but letters and digits is one."""
    return _PUNCTUATION.sub(b"-", name.lower())


class Snapshot(msgspec.Struct, frozen=True, eq=False):
    """A request as it was when it was handed over; every value of a plain type.

    Attributes:
        url: No other object has it.
        path: The URL's, raw, without its query.
        headers: Their names in one form, names and values.
        stream: The body, still the plugin's own object; not to be stepped where the secret
            is. None: there is none.
        closes: Whether its connection is not to be used again.
    """

    method: str
    url: httpx.URL
    origin: Origin
    path: str
    headers: list[tuple[bytes, bytes, bytes]]
    stream: object
    timeout: dict[str, float | None]
    closes: bool


class Use(msgspec.Struct, frozen=True, eq=False):
    """One credential to be put in.

    Attributes:
        opened: The secret, open.
        record: What it was opened from; it says how it is delivered.
    """

    opened: Opened
    record: Record


class Draft:
    """A request in the making: credentials are put into it one after another."""

    __slots__ = ("_method", "_taken", "_takes_body", "body", "headers", "url")

    def __init__(
        self, taken: Snapshot, body: httpx.AsyncByteStream | httpx.SyncByteStream
    ) -> None:
        self._method = taken.method
        self._takes_body = taken.stream is not None
        self._taken: list[tuple[str, ...]] = []
        self.url = taken.url
        self.body = body
        self.headers = taken.headers.copy()
        if taken.closes:
            self.headers.append((b"connection", b"Connection", b"close"))

    def put(self, use: Use) -> None:
        """Puts a credential where it is delivered.

        Raises:
            InvalidInputError: The secret can't be sent in this way, or the place is taken.
            RequestNotAllowedError: The request has no such place.
        """
        opened, delivery, name = use.opened, use.record.info.delivery, use.record.info.name
        place = _place(delivery)
        for other in self._taken:
            if all(a == b for a, b in zip(place, other, strict=False)):
                raise InvalidInputError(
                    "Two credentials are sent in the same place of a request.",
                    hint="Use one of them, or have its owner change how it is sent: "
                    "apex-creds edit NAME --delivery HOW",
                )
        self._taken.append(place)
        if delivery.style is DeliveryStyle.BASIC:
            value = _basic(opened, name)
            self.replace(b"authorization", b"Authorization", b"Basic " + value.encode())
        elif delivery.style is DeliveryStyle.AWS4:
            self._sign(opened, delivery.field)
        else:
            _PUT[delivery.style](self, delivery.field, _secret_text(opened, name))

    def raw_headers(self) -> RawHeaders:
        """The headers as they are sent."""
        sent = RawHeaders()
        for _, name, value in self.headers:  # a comprehension costs a call
            if _PLACEHOLDER not in value:
                sent.append((name, value))
        return sent

    def replace(self, canonical: bytes, name: bytes, value: bytes) -> None:
        """Sets a header, in the place of any that servers may take for it."""
        for at in range(len(self.headers) - 1, -1, -1):
            if self.headers[at][0] == canonical:
                del self.headers[at]
        self.headers.append((canonical, name, value))

    def values(self, canonical: bytes) -> list[bytes]:
        """What the request says in headers of that name."""
        return [value for found, _, value in self.headers if found == canonical]

    def whole_body(self, kind: bytes) -> bytes:
        """The body, which is of that media type, and all there.

        Raises:
            RequestNotAllowedError: It is not.
        """
        wrong = ""
        type_, *parameters = (b";".join(self.values(b"content-type"))).lower().split(b";")
        body = self.body
        if not self._takes_body:
            wrong = "its method has no body"
        elif type_.strip() != kind or any(
            each.strip() not in (b"charset=utf-8", b'charset="utf-8"') for each in parameters
        ):
            wrong = f"its Content-Type is not {kind.decode()}"
        elif self.values(b"content-encoding"):
            wrong = "it is compressed"
        elif not isinstance(body, httpx.ByteStream):
            wrong = "it is a stream"
        else:
            whole = b"".join(body)
            if len(whole) <= MAX_BODY:
                return whole
            wrong = f"it is larger than {MAX_BODY} bytes"
        raise RequestNotAllowedError(
            f"The credential is sent in a field of the body, and {wrong}.",
            hint=f"Send a POST with a whole body of type {kind.decode()}.",
        )

    def replace_body(self, body: bytes) -> None:
        """Sends another body, and its length."""
        self.body = httpx.ByteStream(body)
        self.headers = [each for each in self.headers if each[0] != b"transfer-encoding"]
        self.replace(b"content-length", b"Content-Length", str(len(body)).encode())

    def check_placeholders(self) -> None:
        """An SDK's placeholder, where no credential took its place, is an error.

        Raises:
            RequestNotAllowedError: There is one; nothing must be sent.
        """
        body = self.body
        if _PLACEHOLDER in self.url.raw_path or (
            self._takes_body
            and isinstance(body, httpx.ByteStream)
            and _PLACEHOLDER in b"".join(body)
        ):
            raise RequestNotAllowedError(
                "The request has a placeholder for a key where no credential is sent.",
                hint="A placeholder in a header is taken out. For one in the query, path or "
                "body, its owner sets that: apex-creds edit NAME --delivery query:key",
            )

    def _sign(self, opened: Opened, only: str) -> None:
        """Signs it for AWS, as it is now: other credentials are in it already."""
        body = self.body
        with sigv4.key_of(opened) as key:
            signed = sigv4.sign(
                key,
                method=self._method,
                target=self.url.raw_path.decode("ascii"),
                headers=[(n.decode("ascii"), v.decode("ascii")) for _, n, v in self.headers],
                body=b"".join(body) if isinstance(body, httpx.ByteStream) else None,
                only=only,
                stamp=sigv4.stamp(SystemClock().time()),
            )
        self.url = self.url.copy_with(raw_path=signed.target.encode())
        self.headers = [
            (canonical_name(name.encode()), name.encode(), value.encode())
            for name, value in signed.headers
        ]


def _place(delivery: Delivery) -> tuple[str, ...]:
    """Where it goes; of two that begin alike, one is within the other, or it is the same."""
    style, field = delivery.style, delivery.field
    if style in _IN_AUTHORIZATION:
        return ("header", "authorization")
    name = canonical_name(field.encode()).decode()
    if style is DeliveryStyle.COOKIE:
        return ("header", "cookie", name)
    if style is DeliveryStyle.HEADER:
        return ("header", name)
    if style in (DeliveryStyle.JSON, DeliveryStyle.FORM):
        return ("body", field)
    return (style.value, field)


_IN_AUTHORIZATION: Final = frozenset(
    {
        DeliveryStyle.AWS4,
        DeliveryStyle.BASIC,
        DeliveryStyle.BEARER,
        DeliveryStyle.SCHEME,
    }
)


def _put_bearer(draft: Draft, _: str, value: str) -> None:
    draft.replace(b"authorization", b"Authorization", b"Bearer " + value.encode())


def _put_scheme(draft: Draft, field: str, value: str) -> None:
    draft.replace(b"authorization", b"Authorization", f"{field} {value}".encode())


def _put_header(draft: Draft, field: str, value: str) -> None:
    name = field.encode()
    draft.replace(canonical_name(name), name, value.encode())


def _put_cookie(draft: Draft, field: str, value: str) -> None:
    if not _COOKIE.fullmatch(value):
        raise _unsendable("a cookie")
    kept: list[bytes] = []
    for pair in b";".join(draft.values(b"cookie")).split(b";"):
        found = _PAIR.fullmatch(pair.strip())
        if found is not None:
            if canonical_name(found[1]) != canonical_name(field.encode()):
                kept.append(found[0])
        elif pair.strip():
            raise RequestNotAllowedError(
                "A cookie of the request is not clear.", hint="Write NAME=VALUE (RFC 6265)."
            )
    kept.append(f"{field}={value}".encode())
    draft.replace(b"cookie", b"Cookie", b"; ".join(kept))


def _put_query(draft: Draft, field: str, value: str) -> None:
    query = draft.url.query.decode("ascii")
    draft.url = draft.url.copy_with(query=_with_field(query, field, value).encode())


def _put_segment(draft: Draft, field: str, value: str) -> None:
    path, mark, query = draft.url.raw_path.decode("ascii").partition("?")
    delivery = Delivery(DeliveryStyle.PATH, field)
    segments = delivery.shown_path(path).split("/")
    if segments.count(field) != 1:
        raise RequestNotAllowedError(
            "The credential is sent in the path, and the path has no place for it.",
            hint=f"Write {field!r} as one segment of it, once.",
        )
    sent = field.replace("{}", quote(value, safe=_IN_SEGMENT))
    if sent.startswith("."):
        raise _unsendable("a path")
    segments[segments.index(field)] = sent
    draft.url = draft.url.copy_with(raw_path=("/".join(segments) + mark + query).encode())


def _put_json(draft: Draft, field: str, value: str) -> None:
    body = draft.whole_body(_JSON)
    try:
        body.decode()
        # Others keep their bytes; of what is there twice, readers take the last.
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _not_clear("no JSON object") from None
    fields.pop(field, None)
    if any(name.casefold() == field.casefold() for name in fields):
        raise _not_clear(f"a field like {field!r} in other letters")
    fields[field] = msgspec.Raw(msgspec.json.encode(value))
    draft.replace_body(msgspec.json.encode(fields))


def _put_form(draft: Draft, field: str, value: str) -> None:
    body = draft.whole_body(_FORM)
    if not body.isascii() or b";" in body:
        raise _not_clear("no form in its usual encoding")
    draft.replace_body(_with_field(body.decode("ascii"), field, value).encode())


_PUT: Final[dict[DeliveryStyle, Callable[[Draft, str, str], None]]] = {
    DeliveryStyle.BEARER: _put_bearer,
    DeliveryStyle.SCHEME: _put_scheme,
    DeliveryStyle.HEADER: _put_header,
    DeliveryStyle.COOKIE: _put_cookie,
    DeliveryStyle.QUERY: _put_query,
    DeliveryStyle.PATH: _put_segment,
    DeliveryStyle.JSON: _put_json,
    DeliveryStyle.FORM: _put_form,
}


def _with_field(items: str, field: str, value: str) -> str:
    """A query or a form with a field in the place of any that has its name."""
    kept = [
        item
        for item in items.split("&")
        if item and unquote_plus(item.partition("=")[0]) != field
    ]
    return "&".join([*kept, urlencode({field: value})])


def _not_clear(what: str) -> RequestNotAllowedError:
    return RequestNotAllowedError(
        f"The credential is sent in a field of the body, and the body has {what}.",
        hint="Send one object, or one form, and leave the field out.",
    )


def _unsendable(where: str) -> InvalidInputError:
    return InvalidInputError(
        f"The credential has characters that can't be sent in {where}.",
        hint="Have its owner change how it is sent: apex-creds edit NAME --delivery HOW",
    )


def _basic(opened: Opened, name: str) -> str:
    if "user" not in opened.names:
        return b64encode(_secret_text(opened, name).encode()).decode()
    with opened.view("user") as user, opened.view("password") as password:
        return b64encode(b"".join((user, b":", password))).decode()


def _secret_text(opened: Opened, name: str) -> str:
    """The secret as text of a request; h11 would quote one that is not in its error."""
    with opened.view() as view:
        if not _SENDABLE.fullmatch(view):
            around = 0x20 in (view[0], view[-1]) if view else True
            wrong = "white space around it" if around else "more than printable ASCII in it"
            again = operator_command("set", name)
            raise InvalidInputError(
                f"The credential {name!r} can't be sent in a request: it has {wrong}.",
                hint=f"Store it again without: {again} or use reveal().",
            )
        return str(view, "ascii")
