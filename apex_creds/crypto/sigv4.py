"""AWS Signature Version 4: what is signed, and where the signature stands. Pure.

Guarantee: the signature is the one that botocore makes of the same request with the same key.
A signature that an SDK made with a placeholder key is taken out first; its date, region,
service, list of signed headers and hash of the payload are kept, checked, and ``Host``
is always among what is signed. The secret key is read where it lies, and the first key of the
chain is made in locked memory; the others are good for one day, region and service only.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote, unquote

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import InvalidInputError, RequestNotAllowedError

ALGORITHM: Final = "AWS4-HMAC-SHA256"
UNSIGNED: Final = "UNSIGNED-PAYLOAD"
LONGEST_LIFE: Final = 7 * 24 * 3600
"""Seconds, of a URL that is signed; AWS takes no longer ones."""
_HASHES: Final = frozenset({UNSIGNED, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"})
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=[^/\s,]+/(\d{8})/([a-z0-9-]+)/([A-Za-z0-9._-]+)"
    r"/aws4_request, ?SignedHeaders=([a-z0-9;_.~!#$%&'*+^`|-]+), ?Signature=[0-9a-f]+"
)
_CREDENTIAL: Final = re.compile(r"[^/]+/([0-9]{8})/([a-z0-9-]+)/([A-Za-z0-9._-]+)/aws4_request")
_STAMP: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z")
_UNSIGNED_HEADERS: Final = frozenset(
    {"connection", "content-length", "expect", "transfer-encoding", "user-agent"}
    | {"x-amzn-trace-id", "accept", "accept-encoding"}
)
"""Not signed where we choose: what a client or a proxy changes on the way."""
_UNTOUCHED: Final = frozenset({"s3", "s3-outposts", "s3-object-lambda", "s3express"})
"""Services whose paths are names of objects."""
_TOKEN: Final = "x-amz-security-token"  # noqa: S105 - a header's name
_REPLACED: Final = frozenset({"authorization", _TOKEN})
_IN_QUERY: Final = frozenset(
    {"X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-Signature"}
    | {"X-Amz-SignedHeaders", "X-Amz-Security-Token"}
)
TIME: Final = "%Y%m%dT%H%M%SZ"


class Parts(Protocol):
    """A credential's parts in locked memory."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the parts."""

    def view(self, part: str = "") -> memoryview:
        """A part where it lies."""


class Key(NamedTuple):
    """An access key; ``secret`` is a view of locked memory."""

    id: str
    secret: memoryview
    token: str = ""


class Scope(NamedTuple):
    """What a signature is good for."""

    stamp: str
    region: str
    service: str

    @property
    def date(self) -> str:
        """The day, as ``20301231``."""
        return self.stamp[:8]

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


class SigningRequest(NamedTuple):
    """What an SDK had signed, and with which words.

    Attributes:
        headers: Names in lower case; empty: it had signed nothing.
        expires: Of a URL that is signed, as it is written; empty: a header was.
    """

    scope: Scope
    headers: tuple[str, ...] = ()
    expires: str = ""


Headers = list[tuple[str, str]]
"""Names as they are sent, and values."""


class Signed(NamedTuple):
    """A request with its signature.

    Attributes:
        target: Path and query.
    """

    target: str
    headers: Headers


def sign(
    key: Key,
    *,
    method: str,
    target: str,
    headers: Headers,
    body: bytes | None,
    only: str,
    stamp: str,
) -> Signed:
    """A request with a signature of ``key``, in the place of the one that an SDK made.

    Args:
        key: The access key.
        method: Of the request.
        target: Raw path and query.
        headers: All of them, ``Host`` too; where the SDK's signature is, if not in the query.
        body: None: it is a stream.
        only: ``REGION/SERVICE`` of the only ones that are signed for, which a request without
            a signature is signed for; empty: what the SDK says.
        stamp: Now, as ``20301231T235959Z``.

    Raises:
        RequestNotAllowedError: The request is not one that can be signed.
    """
    path, _, query = target.partition("?")
    items = query_items(query)
    asked = request_of_query(items)
    in_query = asked is not None
    if asked is None:
        asked, headers = _request_of_headers(headers, only, stamp)
    scope = asked.scope
    if only and only != f"{scope.region}/{scope.service}":
        raise _not_signed(f"It is for another region or service than {only}.")
    headers = [each for each in headers if each[0].lower() not in _REPLACED]
    if key.token and not in_query:
        headers.append(("X-Amz-Security-Token", key.token))
    payload = _payload(headers, body, scope, in_query=in_query)
    if not in_query and not asked.headers and scope.service == "s3":
        headers.append(("X-Amz-Content-SHA256", payload))
    names = {"host", *(asked.headers or chosen_headers(headers))} - _REPLACED
    signed = tuple(sorted(names | ({_TOKEN} if key.token and not in_query else set())))
    if in_query:
        items = [(name, value) for name, value in items if name not in _IN_QUERY]
        items += query_of(key, scope, asked.expires, signed)
    found = signature(
        key,
        scope,
        method=method,
        path=path,
        items=items,
        headers=headers,
        signed=signed,
        payload=payload,
    )
    if in_query:
        items.append(("X-Amz-Signature", found))
        # As they were written: a name alone stays one.
        return Signed(f"{path}?{'&'.join(f'{n}={v}' for n, v in items)}", headers)
    headers.append(("Authorization", header_value(key, scope, signed, found)))
    return Signed(target, headers)


def _request_of_headers(
    headers: Headers, only: str, stamp: str
) -> tuple[SigningRequest, Headers]:
    """What an SDK says, or what is said where there is none; and the headers with a date."""
    said = {name.lower(): value for name, value in headers}
    value = said.get("authorization", "")
    if value.startswith(ALGORITHM):
        date = said.get("x-amz-date", "")
        if not date:
            with suppress(ValueError):
                date = parsedate_to_datetime(said.get("date", "")).strftime(TIME)
        return request_of_header(value, date), headers
    if not only:
        raise _not_signed("It has no signature that says for which region and service it is.")
    region, _, service = only.partition("/")
    dated = [each for each in headers if each[0].lower() != "x-amz-date"]
    return SigningRequest(Scope(stamp, region, service)), [*dated, ("X-Amz-Date", stamp)]


def _payload(headers: Headers, body: bytes | None, scope: Scope, *, in_query: bool) -> str:
    said = [value for name, value in headers if name.lower() == "x-amz-content-sha256"]
    if said:
        return checked_hash(said[0] if len(said) == 1 else "")
    if in_query and scope.service in _UNTOUCHED:
        return UNSIGNED
    if body is None:
        raise _not_signed("Its body is a stream, and no X-Amz-Content-SHA256 says its hash.")
    return sha256(body).hexdigest()


def request_of_header(value: str, stamp: str) -> SigningRequest:
    """Reads the ``Authorization`` of an SDK.

    Raises:
        RequestNotAllowedError: It is no signature of this kind.
    """
    found = _AUTHORIZATION.fullmatch(value)
    if found is None or not _STAMP.fullmatch(stamp) or stamp[:8] != found[1]:
        raise _not_signed("Its Authorization is no AWS4-HMAC-SHA256 signature with its date.")
    return SigningRequest(Scope(stamp, found[2], found[3]), tuple(found[4].split(";")))


def request_of_query(items: list[tuple[str, str]]) -> SigningRequest | None:
    """Reads the parameters ``X-Amz-…`` of a URL that an SDK signed; None: there are none."""
    given = {name: unquote(value) for name, value in items if name.startswith("X-Amz-")}
    if "X-Amz-Signature" not in given:
        return None
    found = _CREDENTIAL.fullmatch(given.get("X-Amz-Credential", ""))
    stamp, expires = given.get("X-Amz-Date", ""), given.get("X-Amz-Expires", "")
    usable = expires.isascii() and expires.isdigit() and 0 < int(expires) <= LONGEST_LIFE
    dated = _STAMP.fullmatch(stamp) and found is not None and stamp[:8] == found[1]
    if found is None or not dated or not usable or given.get("X-Amz-Algorithm") != ALGORITHM:
        raise _not_signed("Its query is no AWS4-HMAC-SHA256 signature with its date.")
    headers = tuple(given.get("X-Amz-SignedHeaders", "").split(";"))
    return SigningRequest(Scope(stamp, found[2], found[3]), headers, expires)


def query_items(query: str) -> list[tuple[str, str]]:
    """The parameters, as they are written."""
    pairs = [item.partition("=") for item in query.split("&")] if query else []
    return [(name, value) for name, _, value in pairs]


def chosen_headers(headers: Headers) -> tuple[str, ...]:
    """What is signed where no SDK says it."""
    return tuple(sorted({name.lower() for name, _ in headers} - _UNSIGNED_HEADERS))


def checked_hash(said: str) -> str:
    """What stands for the payload in what is signed.

    Raises:
        RequestNotAllowedError: Its chunks have signatures, which would have to be made anew.
    """
    if said not in _HASHES and not _HASH.fullmatch(said):
        raise _not_signed(
            "Its chunks are signed one by one, which is not done here: have the payload hashed "
            "whole, or not signed (payload_signing_enabled=False)."
        )
    return said


def signature(
    key: Key,
    scope: Scope,
    *,
    method: str,
    path: str,
    items: Iterable[tuple[str, str]],
    headers: Headers,
    signed: tuple[str, ...],
    payload: str,
) -> str:
    """The signature of a request.

    Args:
        key: The access key.
        scope: Date, region and service.
        method: Of the request.
        path: Raw, as it is sent.
        items: The query's parameters, as they are sent.
        headers: All of them.
        signed: The names of those that are signed, sorted.
        payload: The hash of the body, or what stands for it.
    """
    canonical = "\n".join(
        (
            method,
            _canonical_path(path, scope.service),
            "&".join(f"{name}={value}" for name, value in sorted(items)),
            _canonical_headers(headers, signed),
            "",
            ";".join(signed),
            payload,
        )
    )
    digest = sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join((ALGORITHM, scope.stamp, str(scope), digest))
    return hmac.digest(_signing_key(key.secret, scope), to_sign.encode(), sha256).hex()


def header_value(key: Key, scope: Scope, signed: tuple[str, ...], signature_: str) -> str:
    """The ``Authorization`` header."""
    names = ";".join(signed)
    return (
        f"{ALGORITHM} Credential={key.id}/{scope}, SignedHeaders={names}, "
        f"Signature={signature_}"
    )


def query_of(key: Key, scope: Scope, expires: str, signed: tuple[str, ...]) -> Headers:
    """The parameters that a signed URL has besides its signature, escaped."""
    found = [
        ("X-Amz-Algorithm", ALGORITHM),
        ("X-Amz-Credential", f"{key.id}/{scope}"),
        ("X-Amz-Date", scope.stamp),
        ("X-Amz-Expires", expires),
        ("X-Amz-SignedHeaders", ";".join(signed)),
    ]
    if key.token:
        found.append(("X-Amz-Security-Token", key.token))
    return [(name, quote(value, safe="-_.~")) for name, value in found]


def presigned(key: Key, scope: Scope, *, method: str, target: str, host: str, life: int) -> str:
    """Path and query of a URL that does without a key for ``life`` seconds."""
    path, _, query = target.partition("?")
    items = [item for item in query_items(query) if item[0] not in _IN_QUERY]
    items += query_of(key, scope, str(life), ("host",))
    payload = UNSIGNED if scope.service in _UNTOUCHED else sha256().hexdigest()
    found = signature(
        key,
        scope,
        method=method,
        path=path,
        items=items,
        headers=[("Host", host)],
        signed=("host",),
        payload=payload,
    )
    items.append(("X-Amz-Signature", found))
    return f"{path}?{'&'.join(f'{name}={value}' for name, value in items)}"


@contextmanager
def key_of(opened: Parts) -> Iterator[Key]:
    """The access key that a credential is: a user, a password, and a session perhaps.

    Raises:
        InvalidInputError: It is none.
    """
    if "user" not in opened.names:
        raise InvalidInputError(
            "The credential is no access key of AWS.",
            hint="Store it as AwsKey(access_key_id, secret_access_key).",
        )
    token = ""
    with opened.view("user") as user:
        name = str(user, "ascii")
    if "session" in opened.names:
        with opened.view("session") as session:
            token = str(session, "ascii")
    with opened.view("password") as secret:
        yield Key(name, secret, token)


def stamp(now: float) -> str:
    """A time in Unix seconds, as requests have it."""
    return datetime.fromtimestamp(now, UTC).strftime(TIME)


def _signing_key(secret: memoryview, scope: Scope) -> bytes:
    with SecretBytes.allocate(4 + len(secret)) as first:
        with first._mutable() as slot:
            slot[:4], slot[4:] = b"AWS4", secret
        with first.view() as view:
            key = hmac.digest(view, scope.date.encode(), sha256)
    for part in (scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), sha256)
    return key


def _canonical_path(path: str, service: str) -> str:
    if service in _UNTOUCHED:
        return path or "/"  # keys are what they are, and escaped once
    # Without segments that move (RFC 3986, section 5.2.4), and without empty ones.
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            kept[-1:] = []
        elif segment not in ("", "."):
            kept.append(segment)
    end = "/" if path.endswith("/") and kept else ""
    return quote("/" + "/".join(kept) + end, safe="/~")


def _canonical_headers(headers: Headers, signed: tuple[str, ...]) -> str:
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(" ".join(value.split()))
    missing = [name for name in signed if name not in values]
    if missing:
        raise _not_signed(f"A header to be signed is not in it: {missing[0][:80]!r}.")
    return "\n".join(f"{name}:{','.join(values[name])}" for name in signed)


def _not_signed(why: str) -> RequestNotAllowedError:
    return RequestNotAllowedError(
        f"The request can't be signed anew. {why}",
        hint="Let the SDK sign with its placeholder keys, with Signature Version 4.",
    )
