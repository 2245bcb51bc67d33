"""What stands in a command's environment where its keys would: shaped like them, worth nothing.

Guarantee: a placeholder says which credential is meant, and gives no right to it. In a request
it may stand where that credential is sent, in a request to where it may be sent, and nowhere
else: one that is found anywhere else (another header, a query, a body, another host) shows that
the plugin hands its keys on, so that each is a canary, too. Found are its own spelling,
percent-encoding in a target or form, and Base64 in ``Authorization: Basic``, and in a body
that is compressed by gzip or deflate.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from base64 import b64decode
from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple
from urllib.parse import unquote, unquote_plus

import msgspec

from apex_creds.leases.deliveries import canonical_name
from apex_creds.leases.http_messages import RawHeaders
from apex_creds.model import PLACEHOLDER, Delivery, DeliveryStyle
from apex_creds.redaction.content_coding import (
    UndecodableError,
    codings,
    decoded,
    decoders,
)

_TAG: Final = 16
"""Hexadecimal digits that say which one it is."""
_MARK: Final = PLACEHOLDER.encode()
_FOUND: Final = re.compile(rb"%b([0-9a-f]{%d})?" % (_MARK, _TAG))
LONGEST: Final = len(_MARK) + _TAG
_MOST_DECODED: Final = 1024**3
"""Bytes that a body may decompress to: it is read for nothing but this."""
_BASIC: Final = b"basic "
_IN_HEADERS: Final = frozenset(
    {DeliveryStyle.BEARER, DeliveryStyle.BASIC, DeliveryStyle.SCHEME, DeliveryStyle.HEADER}
    | {DeliveryStyle.AWS4}
)
_USUAL: Final = frozenset(
    {"authorization", "api-key", "x-api-key", "x-goog-api-key", "x-auth-token", "private-token"}
)
"""Headers for keys, which versions of one SDK choose differently; the owner's is sent."""
_JSON: Final = b"application/json"
_FORM: Final = b"application/x-www-form-urlencoded"


class MisplacedError(Exception):
    """A placeholder stands where it must not.

    Attributes:
        name: Of its credential; empty: of none that is known here.
        where: For people.
    """

    def __init__(self, name: str, where: str) -> None:
        super().__init__(where)
        self.name, self.where = name, where


class Spot(NamedTuple):
    """Where in a request something stands.

    Attributes:
        part: ``path``, ``query``, ``header``, ``cookie`` or ``body``; empty: where no
            credential is ever sent.
        field: The parameter, header, cookie or field, in its canonical form.
    """

    part: str
    field: str = ""

    def __str__(self) -> str:
        return f"the {self.part or 'name of a header or field'} {self.field[:80]}".strip()

    def is_of(self, delivery: Delivery) -> bool:
        """Whether a credential that is delivered so is sent there."""
        style, field = delivery.style, delivery.field
        if style in _IN_HEADERS and self.part == "header" and self.field in _USUAL:
            return True
        if style is DeliveryStyle.AWS4:
            return self == ("query", "X-Amz-Credential")
        if style in (DeliveryStyle.HEADER, DeliveryStyle.COOKIE):
            return self == (style.value, canonical_name(field.encode()).decode())
        if style in (DeliveryStyle.JSON, DeliveryStyle.FORM):
            return self == ("body", field)
        return self == (style.value, field if style is DeliveryStyle.QUERY else "")


class Sent(NamedTuple):
    """A credential of an invocation, as far as a request is concerned.

    Attributes:
        there: Whether it may be sent to where the request goes.
    """

    delivery: Delivery
    there: bool


class Placeholders:
    """One for each credential, made anew for each run.

    Args:
        prefixes: By credential's name, what its keys begin with, as ``sk-``.
    """

    def __init__(self, prefixes: Mapping[str, str]) -> None:
        self._tags = {name: secrets.token_hex(_TAG // 2) for name in prefixes}
        self._names = {tag.encode(): name for name, tag in self._tags.items()}
        self._prefixes = dict(prefixes)

    def of(self, name: str) -> str:
        """The placeholder of a credential."""
        return f"{self._prefixes[name]}{PLACEHOLDER}{self._tags[name]}"

    def names_in(self, data: bytes) -> set[str]:
        """The credentials whose placeholders are in it; ``""`` is none that is known."""
        if _MARK not in data:
            return set()
        return {self._names.get(found[1] or b"", "") for found in _FOUND.finditer(data)}

    def used(
        self,
        target: str,
        headers: Collection[tuple[bytes, bytes]],
        sent: Mapping[str, Sent],
    ) -> set[str]:
        """The credentials that the head of a request is for; none: it has no placeholder.

        Raises:
            MisplacedError: A placeholder is where it may not be.
        """
        return self._checked(_of_head(target, headers), sent)

    def used_in(
        self,
        body: bytes,
        headers: Collection[tuple[bytes, bytes]],
        sent: Mapping[str, Sent],
    ) -> set[str]:
        """As ``used``, of a whole body."""
        kind = b";".join(value for name, value in headers if name.lower() == b"content-type")
        return self._checked(_of_body(body, kind.partition(b";")[0].strip().lower()), sent)

    def without_cookies(self, headers: RawHeaders) -> RawHeaders:
        """The headers without cookies that are placeholders; the others of one header stay."""
        return [
            (name, b"; ".join(pair.strip() for pair in value.split(b";") if _MARK not in pair))
            if _MARK in value and canonical_name(name) == b"cookie"
            else (name, value)
            for name, value in headers
        ]

    async def search(
        self, body: AsyncIterable[bytes], headers: Collection[tuple[bytes, bytes]] = ()
    ) -> AsyncIterator[bytes]:
        """A body that streams, as it comes, up to what could begin a placeholder.

        Args:
            body: It.
            headers: Of the request: what they say is compressed is searched decompressed, too.

        Raises:
            MisplacedError: There is one; the chunk that it ends in did not go on.
            UndecodableError: It is compressed in a way that can't be read, or to much more.
        """
        encodings = [value for name, value in headers if name.lower() == b"content-encoding"]
        layers = decoders(codings(encodings))
        held, plain, size = b"", b"", 0
        async for chunk in body:
            for piece in decoded(layers, chunk) if layers else ():
                _, plain = self._without_any(plain + piece)
                size += len(piece)
                if size > _MOST_DECODED:
                    raise UndecodableError
                await asyncio.sleep(0)  # a few bytes may be many pieces
            goes_on, held = self._without_any(held + chunk)
            if goes_on:
                yield goes_on
        for end in (plain, held):
            for name in self.names_in(end):
                raise MisplacedError(name, str(Spot("body")))
        if held:
            yield held

    def _without_any(self, window: bytes) -> tuple[bytes, bytes]:
        """What has no placeholder in it, and the end that could begin one."""
        at = _begins(window)  # it may be in the middle of one that is there as a whole
        for name in (self.names_in(window) - {""}) or self.names_in(window[:at]):
            raise MisplacedError(name, str(Spot("body")))
        return window[:at], window[at:]

    def _checked(
        self, texts: Iterator[tuple[bytes, Spot]], sent: Mapping[str, Sent]
    ) -> set[str]:
        used: set[str] = set()
        for text, spot in texts:
            for name in self.names_in(text):
                known = sent.get(name)
                if not name:
                    raise MisplacedError(name, f"{spot}, and is of another run")
                if known is None or not known.there:
                    raise MisplacedError(name, f"{spot} of a request to another host")
                if not spot.is_of(known.delivery):
                    raise MisplacedError(name, str(spot))
                used.add(name)
        return used


def _of_head(
    target: str, headers: Collection[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, Spot]]:
    path, _, query = target.partition("?")
    yield unquote(path).encode(), Spot("path")
    yield from _of_items(query, "query")
    for name, value in headers:
        yield name, Spot("")
        canonical = canonical_name(name).decode("latin-1")
        if canonical == "cookie":
            for pair in value.split(b";"):
                key, _, text = pair.strip().partition(b"=")
                yield text, Spot("cookie", canonical_name(key).decode("latin-1"))
                yield key, Spot("")
        else:
            yield value, Spot("header", canonical)
            if value[:6].lower() == _BASIC:
                with suppress(ValueError):
                    yield b64decode(value[6:]), Spot("header", canonical)


def _of_items(text: str, part: str) -> Iterator[tuple[bytes, Spot]]:
    for item in text.split("&"):
        key, _, value = item.partition("=")
        field = unquote_plus(key)
        yield field.encode(), Spot("")
        yield unquote_plus(value).encode(), Spot(part, field)


def _of_body(body: bytes, kind: bytes) -> Iterator[tuple[bytes, Spot]]:
    if kind == _FORM:
        yield from _of_items(body.decode("latin-1"), "body")
    elif kind == _JSON and _MARK in body:
        try:
            fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            yield body, Spot("body")
        else:  # of a field that is there twice, readers take the last
            yield b"".join(map(str.encode, fields)), Spot("")
            rest = body
            for field, value in fields.items():
                yield bytes(value), Spot("body", field)
                rest = rest.replace(bytes(value), b"", 1)
            yield rest, Spot("body")
    else:
        yield body, Spot("body")


def _begins(window: bytes) -> int:
    """Where its end begins that could be the beginning of a placeholder."""
    at = window.find(_MARK[:1], max(0, len(window) - LONGEST + 1))
    while at >= 0:
        end = window[at:]
        if _MARK.startswith(end) or end.startswith(_MARK):
            return at
        at = window.find(_MARK[:1], at + 1)
    return len(window)
