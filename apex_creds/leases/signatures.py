"""Signs with a credential instead of showing it: ``handle.sign``, ``.jwt`` and ``.presign``.

Guarantee: each is a redeem, checked and audited under its method (``SIGN``, ``JWT``,
``PRESIGN``) before the secret is open, and needs ``sign`` in manifest and grant. The secret is
read where it lies in locked memory; what comes back is worth what was signed, and not more. An
access key of AWS signs requests only, never bytes: a signature of bytes that the plugin
chooses would be one of any request.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol, TypeVar

import msgspec

from apex_creds.crypto import jwt, sigv4
from apex_creds.documents.records import Record
from apex_creds.errors import InvalidInputError
from apex_creds.leases.broker import LeaseBroker, find_open
from apex_creds.leases.lease import AccessRequest
from apex_creds.leases.outgoing_requests import snapshot
from apex_creds.model import DeliveryStyle
from apex_creds.plain import plain_bytes, plain_count, plain_text
from apex_creds.vault import Opened

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

DIGESTS: Final = ("sha256", "sha512")
LONGEST_TOKEN: Final = 3600
"""Seconds from now that a token may be good for."""
LONGEST_URL: Final = 3600
"""The same, of a URL."""


class Bytes(NamedTuple):
    """An HMAC of bytes.

    Attributes:
        digest: One of ``DIGESTS``.
    """

    data: bytes
    digest: str
    scope: str | None

    def asked(self) -> AccessRequest:
        """What is asked for."""
        return AccessRequest("SIGN", scope=self.scope)

    def make(self, opened: Opened, record: Record, now: float) -> bytes:  # noqa: ARG002
        """The signature."""
        _check_key(record)
        with opened.view() as key:
            return hmac.digest(key, self.data, self.digest)


class Token(NamedTuple):
    """A JSON Web Token.

    Attributes:
        life: Seconds, where the claims don't say when it ends.
    """

    claims: Mapping[str, object]
    algorithm: str
    key_id: str
    life: int
    scope: str | None

    def asked(self) -> AccessRequest:
        """What is asked for."""
        return AccessRequest("JWT", scope=self.scope)

    def make(self, opened: Opened, record: Record, now: float) -> str:
        """The token."""
        _check_key(record)
        whole = int(now)
        claims = {"iat": whole, "exp": whole + self.life, **self.claims}
        end = claims["exp"]
        if type(end) not in (int, float) or not end <= now + LONGEST_TOKEN:  # type: ignore[operator]
            raise InvalidInputError(
                "A token is good for an hour at most.",
                hint="Ask for a new one when it is over.",
            )
        with opened.view() as key:
            return jwt.mint(key, claims, algorithm=self.algorithm, key_id=self.key_id)


class Url(NamedTuple):
    """A URL of AWS that is signed.

    Attributes:
        only: ``REGION/SERVICE``; empty: as the delivery says.
    """

    method: str
    url: str
    only: str
    life: int
    scope: str | None

    def asked(self) -> AccessRequest:
        """What is asked for."""
        taken = snapshot(self.method, self.url, [], None, {})
        return AccessRequest(taken.method, taken.origin, taken.path, self.scope, "PRESIGN")

    def make(self, opened: Opened, record: Record, now: float) -> str:
        """The URL."""
        delivery = record.info.delivery
        only = self.only or delivery.field
        region, _, service = only.partition("/")
        if delivery.style is not DeliveryStyle.AWS4 or not service:
            raise InvalidInputError(
                "The URL can't be signed: it is not known for which region and service.",
                hint="Say region= and service=, for a credential with the delivery aws4.",
            )
        if delivery.field not in ("", only):
            raise InvalidInputError(f"The credential signs for {delivery.field} only.")
        taken = snapshot(self.method, self.url, [], None, {})
        with sigv4.key_of(opened) as key:
            target = sigv4.presigned(
                key,
                sigv4.Scope(sigv4.stamp(now), region, service),
                method=taken.method,
                target=taken.url.raw_path.decode("ascii"),
                host=taken.url.netloc.decode("ascii"),
                life=self.life,
            )
        return str(taken.url.copy_with(raw_path=target.encode()))


def bytes_of(data: object, algorithm: object, scope: object) -> Bytes:
    """The arguments of ``handle.sign``, plain.

    Raises:
        InvalidInputError: One is not of its type.
    """
    digest = plain_text(algorithm, what="algorithm")
    if digest not in DIGESTS:
        raise InvalidInputError(
            "Bytes are not signed with this algorithm.", hint=f"Use {' or '.join(DIGESTS)}."
        )
    return Bytes(plain_bytes(data, what="data"), digest, _scope(scope))


def token_of(
    claims: Mapping[str, object], algorithm: object, key_id: object, life: object, scope: object
) -> Token:
    """The arguments of ``handle.jwt``, plain.

    Raises:
        InvalidInputError: One is not of its type; or the claims are no JSON.
    """
    try:
        plain = msgspec.json.decode(msgspec.json.encode(claims), type=dict[str, object])
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError):
        raise InvalidInputError("The claims of the token are no JSON object.") from None
    return Token(
        plain,
        plain_text(algorithm, what="algorithm"),
        plain_text(key_id, what="key_id"),
        plain_count(life, what="expires_in"),
        _scope(scope),
    )


def url_of(
    method: object, url: object, region: object, service: object, life: object, scope: object
) -> Url:
    """The arguments of ``handle.presign``, plain."""
    seconds = plain_count(life, what="expires_in")
    if seconds > LONGEST_URL:
        raise InvalidInputError("A signed URL is good for an hour at most.")
    where = [plain_text(part, what="region or service") for part in (region, service)]
    return Url(
        plain_text(method, what="method").upper(),
        plain_text(url, what="URL"),
        "/".join(where) if all(where) else "",
        seconds,
        _scope(scope),
    )


class Wanted(Protocol[T_co]):
    """A signature to be made."""

    def asked(self) -> AccessRequest:
        """What is asked for."""

    def make(self, opened: Opened, record: Record, now: float) -> T_co:
        """The signature."""


async def make(lease_id: str, what: Wanted[T]) -> T:
    """Redeems the lease for ``what``.

    Raises:
        AccessDeniedError: Not allowed, or the lease has ended.
        AuditUnavailableError: It could not be logged; nothing was decrypted.
        InvalidInputError: The credential is none that makes such a signature.
    """
    lease, broker = find_open(lease_id)
    record, opened = await broker.redeem(lease, what.asked())
    return _made(what, opened, record, broker)


def make_blocking(lease_id: str, what: Wanted[T]) -> T:
    """As ``make``, from code that can't wait."""
    lease, broker = find_open(lease_id)
    record, opened = broker.redeem_blocking(lease, what.asked())
    return _made(what, opened, record, broker)


def _made(what: Wanted[T], opened: Opened, record: Record, broker: LeaseBroker) -> T:
    with opened:
        return what.make(opened, record, broker.clock.time())


def _check_key(record: Record) -> None:
    if record.info.delivery.style is DeliveryStyle.AWS4:
        raise InvalidInputError(
            "An access key of AWS signs requests, and no bytes.",
            hint="Send the request with handle.client(), or use handle.presign(…).",
        )


def _scope(scope: object) -> str | None:
    return None if scope is None else plain_text(scope, what="scope")
