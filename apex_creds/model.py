"""Plain values that every layer shares: credentials, their kinds, names.

Guarantee: immutable, validated on construction, and no value here holds a secret
except the ``Secret`` inputs, which mask themselves wherever they are shown.
"""

from __future__ import annotations

import math
import os
import re
import threading
import unicodedata
from collections.abc import Collection
from contextlib import suppress
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from os.path import normpath
from typing import Final, NoReturn, Self
from urllib.parse import quote, unquote

import msgspec

from apex_creds.clocks import Clock as Clock  # noqa: PLC0414 - known under this name, too
from apex_creds.clocks import SystemClock as SystemClock  # noqa: PLC0414
from apex_creds.errors import (
    InvalidInputError,
    InvalidNameError,
    SecretMisuseError,
    ValueTooLargeError,
)
from apex_creds.plain import plain_text

MAX_NAME_BYTES: Final = 256
MAX_HOST: Final = 253
MAX_LABEL: Final = 63
MAX_SECRET_BYTES: Final = 64 * 1024

HTTP: Final = frozenset({"http", "https"})
_DEFAULT_PORTS: Final = {
    "http": 80,
    "https": 443,
    "postgresql": 5432,
    "redis": 6379,
    "rediss": 6379,
    "smtp": 587,
    "smtps": 465,
    "ssh": 22,
}
_SAME_SCHEME: Final = {"ws": "http", "wss": "https", "postgres": "postgresql"}
_HEADER_TOKEN: Final = frozenset(
    "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)


class _Ids:
    """Random identifiers, from the system's generator, a page at a time."""

    __slots__ = ("_at", "_pool")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._pool, self._at = "", 0

    def take(self) -> str:
        at = self._at
        found = self._pool[at : at + 32]
        if len(found) < 32:
            self._pool, at = os.urandom(4096).hex(), 0
            found = self._pool[:32]
        self._at = at + 32
        return found


_ids = threading.local()


def new_id() -> str:
    """A fresh random identifier: 16 bytes as 32 hexadecimal digits. It is no key."""
    try:
        ids: _Ids = _ids.pool
    except AttributeError:
        ids = _ids.pool = _Ids()
    return ids.take()


class Closes:
    """What is closed by ``with``."""

    __slots__ = ()

    def close(self) -> None:
        """Gives back what it holds; again, it does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _forget_ids() -> None:
    # A forked child must not hand out its parent's identifiers again.
    _ids.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_ids)


class CredentialKind(StrEnum):
    """What a credential is made of."""

    API_KEY = "api_key"
    OAUTH_TOKEN = "oauth_token"  # noqa: S105 - a kind, not a password
    BASIC = "basic"
    GENERIC = "generic"


SECTIONS: Final[dict[CredentialKind, str]] = {
    CredentialKind.API_KEY: "api_keys",
    CredentialKind.OAUTH_TOKEN: "oauth_tokens",
    CredentialKind.BASIC: "basic_auth",
    CredentialKind.GENERIC: "generic",
}
"""The section (storage document) of each kind."""
SECTION_NAMES: Final = tuple(SECTIONS.values())
"""In the order in which a name is searched for."""


class Sensitivity(StrEnum):
    """How much is lost with a credential; what each level takes is said by policy."""

    NORMAL = "normal"
    SENSITIVE = "sensitive"
    CRITICAL = "critical"


_SHORTEST: Final = 4


def completed(beginning: str, ids: Collection[str]) -> str | None:
    """The id that is meant by its beginning (4 characters or more), or by all of it.

    Raises:
        InvalidInputError: Several begin so.
    """
    if beginning in ids:
        return beginning
    found = [one for one in ids if one.startswith(beginning)]
    if len(beginning) < _SHORTEST or not found:
        return None
    if len(found) > 1:
        raise InvalidInputError("Several ids begin so.", hint="Give more of it.")
    return found[0]


def check_name(name: str, *, what: str = "name") -> str:
    """Returns ``name`` if it can name something; NFC, 1 to 256 bytes of UTF-8.

    Raises:
        InvalidNameError: Empty, too long, not NFC, surrounded by white space, or with
            control, format (bidi), surrogate or line-separator characters.
    """
    hint = f"Use 1 to {MAX_NAME_BYTES} bytes of printable text without line breaks."
    if not name or len(name) > MAX_NAME_BYTES:
        raise InvalidNameError(f"The {what} is empty or too long.", hint=hint)
    if any(unicodedata.category(c) in _BAD_CATEGORIES for c in name):
        raise InvalidNameError(f"The {what} has control characters.", hint=hint)
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidNameError(f"The {what} is too long.", hint=hint)
    if name != name.strip() or not unicodedata.is_normalized("NFC", name):
        raise InvalidNameError(f"The {what} is padded or not in NFC.", hint=hint)
    return name


def check_time(moment: float | None, *, what: str) -> float | None:
    """Returns ``moment`` if it can be compared with a clock.

    Raises:
        InvalidInputError: It is infinite, or not a number.
    """
    if moment is not None and not math.isfinite(moment):
        raise InvalidInputError(
            f"The {what} is not a time.", hint="Give Unix seconds, or nothing for no end."
        )
    return moment


_OF: Final = "\x1f"


def key_of(name: str, principal: str = "") -> str:
    """What identifies the credential of that name: a principal's, or the shared one.

    Raises:
        InvalidNameError: The principal is no name, or the name is none that could be given.
        InvalidInputError: The principal is no text.
    """
    if _OF in name:
        raise InvalidNameError("The name has control characters.", hint="See: apex-creds list")
    if principal == "":  # and not for what is false in another way: that is nobody's name
        return name
    principal = check_name(plain_text(principal, what="principal"), what="principal")
    return f"{name}{_OF}{principal}"


def split_key(key: str) -> tuple[str, str]:
    """The name of a credential, and the principal that it belongs to; empty: it is shared."""
    name, _, principal = key.partition(_OF)
    return name, principal


def shown_key(key: str) -> str:
    """A credential in words."""
    name, principal = split_key(key)
    return f"{name} (of {principal})" if principal else name


_BAD_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})


class Origin(msgspec.Struct, frozen=True, order=True, gc=False):
    """Scheme, host and port of a URL (RFC 6454), in one canonical form.

    Of HTTP, or of a server that is logged in to: PostgreSQL, Redis, SMTP, SSH. The folder of a
    PostgreSQL server's Unix socket is its host, percent-encoded as in libpq's URLs:
    ``postgresql://%2Frun%2Fpostgresql``. ``ws`` and ``wss`` are ``http`` and ``https``.

    Two spellings of one host are equal, however an origin is made or read: case, a final
    dot, every form of an IPv6 address, an IPv4 address in parts, octal, hexadecimal, as one
    number or within IPv6. Names are not looked up: ``localhost`` is not ``127.0.0.1``.
    """

    scheme: str
    host: str
    port: int

    def __post_init__(self) -> None:
        host = canonical_host(self.host)
        if host != self.host:
            msgspec.structs.force_setattr(self, "host", host)

    @classmethod
    def parse(cls, text: str) -> Origin:
        """Reads ``https://host[:port]``, and the like with another scheme.

        Raises:
            InvalidInputError: Of no scheme that is known, or with a path, user or query; or a
                name that IDNA 2003 and 2008 read as two hosts (``straße.de``).
        """
        parts = _ORIGIN.fullmatch(text)
        if parts is None:
            raise _bad_origin(text)
        scheme, (address, folder, name, digits) = parts[1].lower(), parts.groups()[1:]
        scheme = _SAME_SCHEME.get(scheme, scheme)
        port = int(digits) if digits else _DEFAULT_PORTS[scheme]
        if folder:  # of a socket, in libpq's way to write it, which has one form
            host = unquote(folder) if folder.isascii() and scheme == "postgresql" else ""
            plain = host.isascii() and host.isprintable() and "%" not in host
            if not plain or normpath(host) != host or host[1:2] == "/":
                raise _bad_origin(text)
        else:
            host = _host_name(name) if name else _ipv6(address)
        if not host or not 1 <= port <= 65535:
            raise _bad_origin(text)
        return cls(scheme, host, port)

    @property
    def here(self) -> bool:
        """Whether it is this machine, so that nobody is on the way to it."""
        if self.host.startswith("/"):
            return True
        with suppress(ValueError):
            return ip_address(self.host).is_loopback
        return self.host == "localhost" or self.host.endswith(".localhost")

    def __str__(self) -> str:
        host = self.host
        if ":" in host or host.startswith("/"):
            host = quote(host, safe="") if host.startswith("/") else f"[{host}]"
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return f"{self.scheme}://{host}"
        return f"{self.scheme}://{host}:{self.port}"


_ORIGIN: Final = re.compile(
    rf"({'|'.join([*_DEFAULT_PORTS, *_SAME_SCHEME])})"
    r"://(?:\[([0-9A-F:.]+)\]|(%2F[\w.%~+-]*)|([^\s/?#@\\:\[\]%]+))(?::([0-9]{1,5}))?/?",
    re.IGNORECASE,
)
_HOST: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", re.ASCII)
_NUMBER: Final = re.compile(r"0x[0-9a-f]*|[0-9]+", re.ASCII)


@lru_cache(maxsize=1024)
def canonical_host(host: str) -> str:
    """The one spelling of a host in ASCII; what is no host stays as it is."""
    if host.startswith("/"):
        return host
    host = host.lower()
    if ":" in host:
        return _ipv6(host) or host
    host = host.removesuffix(".")
    return (_ipv4(host) if _is_numeric(host) else "") or host


def _host_name(name: str) -> str:
    """In ASCII, canonical; empty if it is none (RFC 1123, with underscores)."""
    host = name.lower() if name.isascii() else _idna(name.lower())
    fits = len(host) <= MAX_HOST and all(len(label) <= MAX_LABEL for label in host.split("."))
    if not fits or not _HOST.fullmatch(host):
        return ""
    host = host.removesuffix(".")
    return _ipv4(host) if _is_numeric(host) else host


def _is_numeric(host: str) -> bool:
    """Whether it is an IPv4 address or nothing (WHATWG URL, "ends in a number")."""
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _ipv4(host: str) -> str:
    """An address as ``inet_aton`` reads it, in its usual form; empty if it is none."""
    parts = host.split(".")
    if len(parts) > 4 or not all(map(_NUMBER.fullmatch, parts)):
        return ""
    try:
        *high, rest = (_number(part) for part in parts)
    except ValueError:
        return ""
    if any(byte > 255 for byte in high) or rest >= 256 ** (5 - len(parts)):
        return ""
    packed = bytes(high) + rest.to_bytes(5 - len(parts), "big")
    return str(IPv4Address(packed))


def _number(text: str) -> int:
    if len(text) > MAX_LABEL:
        raise ValueError
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if text.startswith("0") else 10)


def _idna(name: str) -> str:
    """As httpx will write it (IDNA 2008); empty where IDNA 2003 means another host."""
    import idna

    try:
        host = idna.encode(name).decode()
    except UnicodeError:  # IDNAError is one
        return ""
    try:
        before = name.encode("idna").decode().lower()
    except UnicodeError:  # characters that are younger than IDNA 2003: one meaning only
        return host
    return host if host == before else ""


def _ipv6(address: str) -> str:
    """In the form of RFC 5952; an IPv4 address in IPv6 is that address. Empty if none."""
    try:
        parsed = IPv6Address(address)
    except ValueError:
        return ""
    return str(parsed.ipv4_mapped or parsed)


def _bad_origin(text: str) -> InvalidInputError:
    hint = "Write it like https://api.example.com[:port], or postgresql://, redis://, smtp://."
    if not text.isascii():
        hint += " Some names mean two hosts: write those in ASCII (xn--…)."
    return InvalidInputError(f"{text[:80]!r} is not an origin.", hint=hint)


class DeliveryStyle(StrEnum):
    """How the secret travels in a request."""

    BEARER = "bearer"
    HEADER = "header"
    QUERY = "query"
    BASIC = "basic"
    SCHEME = "scheme"
    COOKIE = "cookie"
    PATH = "path"
    JSON = "json"
    FORM = "form"
    AWS4 = "aws4"


PLACEHOLDER: Final = "apexCredsPlaceholderNotASecret"
"""Stands in an SDK's request where its own key would: never sent."""
_PLACE: Final = "{}"
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._~!$'()*,=:@-]*\{\}[A-Za-z0-9._~!$'()*,=:@-]*")
_NAMED_BY_TOKEN: Final = frozenset({"header", "query", "scheme", "cookie", "json", "form"})
_LONGEST_FIELD: Final = 128
_SCOPE: Final = re.compile(r"[a-z0-9-]{1,32}/[a-z0-9-]{1,64}", re.ASCII)


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """How a credential is sent: a closed set of forms, each of which names one place.

    ``bearer``, ``basic``, ``scheme:Bot``, ``header:X-Api-Key``, ``cookie:session``,
    ``query:key``, ``path:bot{}`` (a segment of the path, the secret where the braces are),
    ``json:FIELD`` and ``form:FIELD`` (of the body); or ``aws4``, ``aws4:REGION/SERVICE``: it
    signs the request.
    """

    style: DeliveryStyle
    field: str = ""

    @classmethod
    def parse(cls, text: str) -> Delivery:
        """Reads the textual form.

        Raises:
            InvalidInputError: Unknown style, or a field that is none of its style.
        """
        style, colon, field = text.partition(":")
        if style not in set(DeliveryStyle) or not _fits(style, bool(colon), field):
            raise InvalidInputError(
                f"{text[:80]!r} is not a way to send a credential.",
                hint="Use bearer, basic, scheme:NAME, header:NAME, cookie:NAME, query:NAME, "
                "path:TEXT{}, json:FIELD, form:FIELD, aws4 or aws4:REGION/SERVICE.",
            )
        return cls(DeliveryStyle(style), field)

    def shown_path(self, path: str) -> str:
        """A request's raw path as it is checked and logged: ``{}`` is where the secret goes.

        A client may have escaped the braces, and an SDK has a placeholder there.
        """
        if self.style is not DeliveryStyle.PATH:
            return path
        before, _, after = self.field.partition(_PLACE)
        segments = path.split("/")
        for at, segment in enumerate(segments):
            inner = segment[len(before) : len(segment) - len(after)]
            if segment == f"{before}{inner}{after}" and (
                inner.upper() == "%7B%7D" or PLACEHOLDER in inner
            ):
                segments[at] = self.field
        return "/".join(segments)

    def __str__(self) -> str:
        return f"{self.style}:{self.field}" if self.field else self.style.value


def _fits(style: str, named: bool, field: str) -> bool:
    if len(field) > _LONGEST_FIELD:
        return False
    if style == DeliveryStyle.PATH:
        return _SEGMENT.fullmatch(field) is not None
    if style == DeliveryStyle.AWS4:
        return not named or _SCOPE.fullmatch(field) is not None
    if style == DeliveryStyle.SCHEME and field.lower() in ("bearer", "basic"):
        return False  # they have their own styles
    if style in _NAMED_BY_TOKEN:
        return bool(field) and set(field) <= _HEADER_TOKEN
    return not named


class ConnectionState(StrEnum):
    """Whether a token can be renewed."""

    CONNECTED = "connected"
    REFRESHING = "refreshing"
    NEEDS_RECONNECT = "needs_reconnect"


class Assertion(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a token is issued for, other than a refresh token; no secret.

    Attributes:
        credential: The name of the key that signs, or of the token that is exchanged.
        principal: Whose that is; empty: it is shared.
        issuer: Who signs, as the authorization server knows it; so is ``subject`` for whom.
        audience: Who the signature is for (the token endpoint by default), or the new token.
        key_id: Of the key; empty: it is not said.
        algorithm: ``RS256``, ``ES256`` or ``EdDSA``.
    """

    credential: str
    principal: str = ""
    issuer: str = ""
    subject: str = ""
    audience: str = ""
    key_id: str = ""
    algorithm: str = "RS256"


class Connection(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How an OAuth token is renewed, and what became of the last attempt; no secret.

    Attributes:
        provider: Its name, for people.
        token_endpoint: Where tokens come from (RFC 6749, section 3.2).
        revocation_endpoint: Where they are revoked (RFC 7009); empty: nowhere.
        client_id: Of the client that the token was issued to.
        client_secret: The name of the credential that holds its secret; empty: it has none.
        client_auth: How the client says who it is: ``basic``, ``post`` or ``none``.
        grant: What is asked for anew: ``refresh_token``, ``client_credentials``, or one of the
            two that take an ``assertion``.
        scope: What is asked for; empty: as before.
        state: ``refreshing`` from before the request is sent until its answer is stored.
        attempts: Requests whose answer is not known, in a row.
        refreshed: Unix seconds of the last new token; of the first one, before.
        attempted: Unix seconds at which the last request was recorded.
        outcome: Of that request: ``ok``, an error of RFC 6749, or ``unreachable``.
        by: Who connected it.
        assertion: What the token is issued for.
    """

    provider: str
    token_endpoint: str
    client_id: str
    revocation_endpoint: str = ""
    client_secret: str = ""
    client_auth: str = "none"
    grant: str = "refresh_token"
    scope: str = ""
    state: ConnectionState = ConnectionState.CONNECTED
    attempts: int = 0
    refreshed: float = 0.0
    attempted: float = 0.0
    outcome: str = ""
    by: str = ""
    assertion: Assertion | None = None


class RotationStage(StrEnum):
    """The next step of a rotation at the provider; it may have been taken already."""

    IDLE = "idle"
    CREATE = "create"
    SET = "set"
    TEST = "test"
    FINISH = "finish"
    UNDO = "undo"
    NEEDS_PERSON = "needs_person"


class RotationHealth(StrEnum):
    """Whether a secret can be replaced at its provider, as far as the last step says."""

    WORKS = "works"
    FAILED = "failed"
    NEEDS_PERSON = "needs_person"


DYNAMIC: Final = "openbao-database"
"""The rotator that makes a value for each lease."""


class Rotation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a secret is replaced at its provider, and how far that is; no secret.

    A value is known by the version of the credential with which it was stored.

    Attributes:
        rotator: Its URI: which rotator, where the provider is, and what else it needs.
        interval: Seconds from one rotation to the next; None: no interval.
        cron: Five fields, UTC; empty: none.
        grace: Seconds that the replaced value stays valid, where the provider can have two.
        stage: Recorded before the step is taken.
        attempt: Names the rotation that is under way: 32 hexadecimal digits.
        begun: Unix seconds of its beginning.
        since: The current value.
        pending: The next one; 0: there is none.
        previous: The replaced one; 0: there is none, or it is not valid any more.
        retires: Unix seconds at which it is made invalid.
        asked: Values up to this one are to be replaced.
        lost: Values up to this one may be in wrong hands: they get no grace.
        refusals: In a row; the provider is not asked again after some of them.
        changed: Unix seconds from which on the current value was the current one.
        expires: Unix seconds at which the next one ends; None: not by itself.
        attempted: Unix seconds of the last step.
        outcome: Of the last step: empty, ``ok``, ``refused``, ``unreachable`` or ``failed``;
            ``restored``: it may have been taken in a later time, which was given up.
    """

    rotator: str
    interval: float | None = None
    cron: str = ""
    grace: float = 3600.0
    stage: RotationStage = RotationStage.IDLE
    attempt: str = ""
    begun: float = 0.0
    since: int = 1
    pending: int = 0
    previous: int = 0
    retires: float = 0.0
    asked: int = 0
    lost: int = 0
    refusals: int = 0
    changed: float = 0.0
    expires: float | None = None
    attempted: float = 0.0
    outcome: str = ""

    @property
    def dynamic(self) -> bool:
        """Whether a value is made for each lease, so that there is none to replace."""
        return self.rotator.startswith(f"{DYNAMIC}:")

    @property
    def health(self) -> RotationHealth:
        """Whether its last step failed, and whether a person is needed."""
        if self.stage is RotationStage.NEEDS_PERSON:
            return RotationHealth.NEEDS_PERSON
        works = self.outcome in ("", "ok")
        return RotationHealth.WORKS if works else RotationHealth.FAILED

    def with_new_value(self, version: int, now: float) -> Rotation:
        """As it is after somebody stored another value by hand: nothing is under way."""
        return Rotation(
            rotator=self.rotator,
            interval=self.interval,
            cron=self.cron,
            grace=self.grace,
            since=version,
            changed=now,
        )


_SKEW: Final = 10.0
"""Seconds before its end from which on a value is not used any more: it travels, too."""
_SKEW_PART: Final = 0.1
"""Of its life: what is issued for seconds is not over from the start."""
PENDING: Final = "pending_"
PREVIOUS: Final = "previous_"
"""What parts of the next and of the replaced value begin with, while there are such."""


def is_of_another_value(part: str) -> bool:
    """Whether a part is not of a credential's current value."""
    return part.startswith((PENDING, PREVIOUS))


class CredentialInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What may be known of a credential without opening it.

    Attributes:
        id: 32 hexadecimal digits, the same through all versions.
        version: Grows by one with each put, from 1.
        created: Unix seconds; so are ``updated`` and ``expires``.
        token_type: Of an OAuth token, as is ``scope``.
        sensitivity: Decides, with policy, whether a person is asked.
        challenge: Whether each use takes a nonce that a registered client has signed.
        connection: How it is renewed, of an OAuth token that is.
        rotation: How it is replaced at its provider, where it is.
        principal: Who it belongs to; empty: it is shared.
    """

    id: str
    name: str
    service: str
    kind: CredentialKind
    version: int
    delivery: Delivery
    origins: tuple[Origin, ...]
    created: float
    updated: float
    expires: float | None = None
    token_type: str = ""
    scope: str = ""
    sensitivity: Sensitivity = Sensitivity.SENSITIVE
    challenge: bool = False
    connection: Connection | None = None
    rotation: Rotation | None = None
    principal: str = ""

    @property
    def key(self) -> str:
        """What identifies it in the vault: its name, with whose it is."""
        return f"{self.name}{_OF}{self.principal}" if self.principal else self.name

    @property
    def dynamic(self) -> bool:
        """Whether its value is made for each lease."""
        return self.rotation is not None and self.rotation.dynamic

    @property
    def issued(self) -> float | None:
        """When its value came, in Unix seconds; None: no other comes when that ends."""
        if self.connection is not None:
            return self.connection.refreshed
        if self.rotation is not None and not self.rotation.dynamic:
            return self.rotation.changed
        return None

    @property
    def life(self) -> float:
        """Seconds that its value was issued for; infinite where that does not say."""
        if self.expires is None or self.issued is None:
            return math.inf
        return max(0.0, self.expires - self.issued)

    @property
    def ends(self) -> float | None:
        """When nothing can be done with it any more, in Unix seconds; None: never.

        What is renewed does not end with its value.
        """
        return self.expires if self.issued is None else None

    def has_expired(self, now: float) -> bool:
        """Whether its value can't be used any more, and another is waited for."""
        if self.expires is None or self.issued is None:
            return False
        early = min(_SKEW, self.life * _SKEW_PART)
        return self.expires - early <= now or self.is_of_another_time(now)

    def is_of_another_time(self, now: float) -> bool:
        """Whether a clock was far ahead when its value came, so that its end says nothing."""
        return self.issued is not None and now + self.life < self.issued


class Secret:
    """A secret on its way into the vault: named parts of bytes, shown as ``***``.

    Use one of the subclasses. ``parts`` maps a field's name to its bytes; at most
    64 KiB together.
    """

    __slots__ = ("kind", "parts")

    def __init__(self, kind: CredentialKind, parts: dict[str, bytes]) -> None:
        if not any(parts.values()):
            raise InvalidInputError("The secret is empty.", hint="Give a value.")
        if sum(map(len, parts.values())) > MAX_SECRET_BYTES:
            raise ValueTooLargeError(
                "The secret is larger than 64 KiB.",
                hint="Store it elsewhere, and here the key that protects it.",
            )
        self.kind = kind
        self.parts = parts

    def __repr__(self) -> str:
        return f"{type(self).__name__}(***)"

    def __reduce__(self) -> NoReturn:
        raise SecretMisuseError(
            "A secret can't be pickled or copied.",
            hint="Put it into the vault and pass its name.",
        )


class ApiKey(Secret):
    """A single string, sent as it is."""

    __slots__ = ()

    def __init__(self, value: str) -> None:
        super().__init__(CredentialKind.API_KEY, {"value": _utf8(value)})


class OAuthToken(Secret):
    """An access token, perhaps with a refresh token (RFC 6749, section 5.1)."""

    __slots__ = ("expires_at", "scope", "token_type")

    def __init__(
        self,
        access_token: str,
        *,
        refresh_token: str = "",
        expires_at: float | None = None,
        token_type: str = "Bearer",  # noqa: S107 - a type, not a password
        scope: str = "",
    ) -> None:
        parts = {"access": _utf8(access_token), "refresh": _utf8(refresh_token)}
        super().__init__(CredentialKind.OAUTH_TOKEN, parts)
        self.expires_at = expires_at
        self.token_type = token_type
        self.scope = scope


class BasicAuth(Secret):
    """A user and a password (RFC 7617)."""

    __slots__ = ()

    def __init__(self, user: str, password: str) -> None:
        if ":" in user:
            raise InvalidInputError(
                "A user name can't contain a colon (RFC 7617).",
                hint="Check for a typing error.",
            )
        parts = {"user": _utf8(user), "password": _utf8(password)}
        super().__init__(CredentialKind.BASIC, parts)


class AwsKey(Secret):
    """An access key of AWS, which signs requests; a user (its id) and a password otherwise.

    A session token, of temporary keys, is sent along with the signature.
    """

    __slots__ = ()

    def __init__(
        self, access_key_id: str, secret_access_key: str, session_token: str = ""
    ) -> None:
        parts = {"user": _utf8(access_key_id), "password": _utf8(secret_access_key)}
        if session_token:
            parts["session"] = _utf8(session_token)
        super().__init__(CredentialKind.BASIC, parts)


class GenericSecret(Secret):
    """Any bytes: a private key, a certificate, a token of any other kind."""

    __slots__ = ()

    def __init__(self, data: bytes) -> None:
        super().__init__(CredentialKind.GENERIC, {"value": bytes(data)})


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            "The secret is not valid Unicode text.", hint="Store it as generic bytes."
        ) from None
