"""What a plugin holds: a handle that names a lease, and the mapping of its handles.

Guarantee: a handle has identifiers and times, no secret, and no reference through which
one could be reached without a redeem; it shows itself masked and refuses to be pickled,
copied or compared with anything but itself. What it reveals is in locked memory, and wiped when
the block ends, when the lease ends, or at its deadline, whichever is first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, final

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    AccessDeniedError,
    LeaseEndedError,
    RequestNotAllowedError,
    SecretMisuseError,
)
from apex_creds.leases.broker import LONGEST_NAME, find_open, keep_open
from apex_creds.leases.lease import (
    REVEAL,
    AccessRequest,
    Lease,
    current_invocation,
    ended_error,
)
from apex_creds.model import CredentialInfo, is_of_another_value
from apex_creds.plain import plain_count, plain_seconds, plain_text, plain_texts, text_or_none
from apex_creds.vault import Opened

if TYPE_CHECKING:
    import httpx


@final
class CredentialHandle:
    """Opaque, short-lived, scoped and revocable; worthless outside its invocation."""

    __slots__ = ("_expires", "_id", "_name", "_scopes")

    def __init__(self, lease: Lease) -> None:
        self._id = lease.id
        self._name = lease.need.name
        self._scopes = lease.scopes
        self._expires = lease.until

    @property
    def id(self) -> str:
        """The lease's id, 32 hexadecimal digits."""
        return self._id

    @property
    def name(self) -> str:
        """The credential's name."""
        return self._name

    @property
    def scopes(self) -> tuple[str, ...]:
        """What the lease is limited to; empty: the grant named no scopes."""
        return self._scopes

    @property
    def expires(self) -> float:
        """When the lease ends at the latest, in Unix seconds by the clock at its start."""
        return self._expires

    @property
    def active(self) -> bool:
        """Whether a redeem could succeed now."""
        try:
            lease, broker = find_open(self._id)
        except LeaseEndedError:
            return False
        return broker.is_alive(lease)

    def reveal(self, *, part: str = "", scope: str | None = None) -> Reveal:
        """The secret itself, in locked memory, wiped on exit.

        Use it as ``async with``, or as ``with`` in a worker thread. Manifest and grant
        must both say ``reveal``.

        Args:
            part: ``value``, ``access``, ``refresh``, ``user`` or ``password``; the main
                one by default.
            scope: A scope that the lease must have for this use.

        Raises:
            AccessDeniedError: On entering: not allowed, or the lease has ended.
            AuditUnavailableError: On entering: it could not be logged first.
        """
        if type(part) is not str:
            part = plain_text(part, what="part")
        if scope is not None:
            scope = plain_text(scope, what="scope")
        return Reveal(self._id, part, scope)

    def client(self, *, scope: str | None = None, **options: object) -> httpx.AsyncClient:
        """An HTTP client whose transport adds the secret to what it sends.

        Only requests to the allowed origins, methods and paths are sent; any other is a
        ``RequestNotAllowedError`` before a byte leaves. Each request is a redeem.

        Args:
            scope: A scope that the lease must have for these requests.
            options: As for ``httpx.AsyncClient``; those that would put something between
                the secret and its origin (transport, proxy, verify, …) are refused.
        """
        from apex_creds.leases.http_client import open_async_client

        return open_async_client(
            self._id, None if scope is None else plain_text(scope, what="scope"), options
        )

    def sync_client(self, *, scope: str | None = None, **options: object) -> httpx.Client:
        """As ``client``, for plugins that run in a worker thread."""
        from apex_creds.leases.http_client import open_client

        return open_client(
            self._id, None if scope is None else plain_text(scope, what="scope"), options
        )

    async def sign(
        self, data: bytes, *, algorithm: str = "sha256", scope: str | None = None
    ) -> bytes:
        """An HMAC of ``data`` under the secret, as webhooks have it.

        Manifest and grant must both say ``sign``.

        Args:
            data: What is signed.
            algorithm: ``sha256`` or ``sha512``.
            scope: A scope that the lease must have for this use.

        Raises:
            AccessDeniedError: Not allowed, or the lease has ended.
            AuditUnavailableError: It could not be logged first.
            InvalidInputError: The credential, or an argument, is none for this.
        """
        from apex_creds.leases import signatures

        asked = signatures.bytes_of(data, algorithm, scope)
        return await signatures.make(self._id, asked)

    def sync_sign(
        self, data: bytes, *, algorithm: str = "sha256", scope: str | None = None
    ) -> bytes:
        """As ``sign``, for plugins that run in a worker thread."""
        from apex_creds.leases import signatures

        asked = signatures.bytes_of(data, algorithm, scope)
        return signatures.make_blocking(self._id, asked)

    async def jwt(
        self,
        claims: Mapping[str, object],
        *,
        algorithm: str = "RS256",
        key_id: str = "",
        expires_in: int = 300,
        scope: str | None = None,
    ) -> str:
        """A JSON Web Token, signed with the private key that the credential is.

        Manifest and grant must both say ``sign``.

        Args:
            claims: Its claims; without ``iat`` and ``exp`` those are now, and in
                ``expires_in`` seconds. It is good for an hour at most.
            algorithm: ``RS256``, ``ES256`` or ``EdDSA``.
            key_id: Its header ``kid``; none by default.
            expires_in: Seconds.
            scope: A scope that the lease must have for this use.

        Raises:
            AccessDeniedError: Not allowed, or the lease has ended.
            AuditUnavailableError: It could not be logged first.
            InvalidInputError: The credential, or an argument, is none for this.
        """
        from apex_creds.leases import signatures

        asked = signatures.token_of(claims, algorithm, key_id, expires_in, scope)
        return await signatures.make(self._id, asked)

    def sync_jwt(
        self,
        claims: Mapping[str, object],
        *,
        algorithm: str = "RS256",
        key_id: str = "",
        expires_in: int = 300,
        scope: str | None = None,
    ) -> str:
        """As ``jwt``, for plugins that run in a worker thread."""
        from apex_creds.leases import signatures

        asked = signatures.token_of(claims, algorithm, key_id, expires_in, scope)
        return signatures.make_blocking(self._id, asked)

    async def presign(
        self,
        method: str,
        url: str,
        *,
        region: str = "",
        service: str = "",
        expires_in: int = 300,
        scope: str | None = None,
    ) -> str:
        """A URL of AWS that anybody may use, for a while (Signature Version 4).

        Manifest and grant must both say ``sign``, and allow the request.

        Args:
            method: Of the request that it is for.
            url: Without a signature.
            region: Where the credential's delivery does not say it; so is ``service``.
            service: As AWS calls it in signatures: ``s3``, ``execute-api``.
            expires_in: Seconds, an hour at most.
            scope: A scope that the lease must have for this use.

        Raises:
            AccessDeniedError: Not allowed, or the lease has ended.
            AuditUnavailableError: It could not be logged first.
            InvalidInputError: The credential, or an argument, is none for this.
        """
        from apex_creds.leases import signatures

        asked = signatures.url_of(method, url, region, service, expires_in, scope)
        return await signatures.make(self._id, asked)

    def sync_presign(
        self,
        method: str,
        url: str,
        *,
        region: str = "",
        service: str = "",
        expires_in: int = 300,
        scope: str | None = None,
    ) -> str:
        """As ``presign``, for plugins that run in a worker thread."""
        from apex_creds.leases import signatures

        asked = signatures.url_of(method, url, region, service, expires_in, scope)
        return signatures.make_blocking(self._id, asked)

    def attenuate(
        self,
        *,
        scopes: tuple[str, ...] | None = None,
        ttl: float | None = None,
        max_uses: int | None = None,
    ) -> CredentialHandle:
        """A narrower handle, which a plugin called from this one may use too.

        Args:
            scopes: Some of this handle's scopes; all by default.
            ttl: Seconds; never longer than this handle lives.
            max_uses: How many redeems; they count for this handle as well.

        Raises:
            AccessDeniedError: It would be wider, or this lease has ended.
            InvalidInputError: An argument is of another type, or not greater than zero.
        """
        lease, broker = find_open(self._id)
        child = broker.attenuate(
            lease,
            scopes=None if scopes is None else plain_texts(scopes, what="scopes"),
            ttl=None if ttl is None else plain_seconds(ttl, what="ttl"),
            max_uses=None if max_uses is None else plain_count(max_uses, what="max_uses"),
        )
        return CredentialHandle(child)

    def __repr__(self) -> str:
        return f"<CredentialHandle {self._name!r}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce__(self) -> NoReturn:
        raise _misuse("pickled or copied")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise _misuse("pickled or copied")

    def __copy__(self) -> NoReturn:
        raise _misuse("copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise _misuse("copied")


@final
class CredentialMap(Mapping[str, CredentialHandle]):
    """An invocation's handles by credential name.

    Asking for any other name is the same ``AccessDeniedError``, whether the credential
    does not exist, is not declared, or is not granted.
    """

    __slots__ = ("_handles",)

    def __init__(self, handles: dict[str, CredentialHandle]) -> None:
        self._handles = handles

    def __getitem__(self, name: object) -> CredentialHandle:
        text = name if type(name) is str else text_or_none(name)
        handle = self._handles.get(text or "")
        if handle is None:
            _refuse_unknown(name)
        return handle

    def get(self, name: object, default: object = None) -> CredentialHandle | None:  # type: ignore[override]
        """The handle, or ``default`` (for optional credentials); asking is no offence."""
        found = self._handles.get(text_or_none(name) or "")
        return default if found is None else found  # type: ignore[return-value]

    def __contains__(self, name: object) -> bool:
        return text_or_none(name) in self._handles

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)

    def __repr__(self) -> str:
        return f"<CredentialMap {sorted(self._handles)}>"


def _misuse(done: str) -> SecretMisuseError:
    return SecretMisuseError(
        f"A credential handle can't be {done}.", hint="Pass handle.attenuate(…) instead."
    )


def _refuse_unknown(name: object) -> NoReturn:
    """Refuses a name that the current invocation has no handle for; audited.

    Args:
        name: Whatever was asked for; what is no text is shown by its type.

    Raises:
        AccessDeniedError: Always.
    """
    plain = text_or_none(name)
    text = f"<{type(name).__name__[:80]}>" if plain is None else plain[:LONGEST_NAME]
    text = text.encode("utf-8", "backslashreplace").decode()
    invocation = current_invocation()
    if invocation is None:
        raise AccessDeniedError(
            f"There is no credential {text!r} here: each call of a plugin has its own handles.",
            hint="Ask for it in an action. For a client that is made before, as in __init__, "
            "see apex_creds.sdk and docs/SDKS.md.",
        )
    text = invocation.shown(text)
    invocation.refuse(invocation, text)


def current_credentials() -> CredentialMap:
    """The handles of the current invocation, by credential name.

    Returns:
        A mapping; empty outside of any invocation.
    """
    invocation = current_invocation()
    found = None if invocation is None else invocation.credentials
    return found if isinstance(found, CredentialMap) else CredentialMap({})


_READ: Final = AccessRequest(REVEAL)


@final
class Reveal:
    """What ``handle.reveal()`` returns; enter it once."""

    __slots__ = ("_lease_id", "_part", "_request", "_secret")

    def __init__(
        self, lease_id: str, part: str, scope: str | None, *, logged: str = ""
    ) -> None:
        self._lease_id = lease_id
        self._part = part
        self._request = _READ
        if scope is not None or logged:
            self._request = AccessRequest(REVEAL, scope=scope, logged=logged)
        self._secret: SecretBytes | None = None

    async def __aenter__(self) -> SecretBytes:
        lease, broker = find_open(self._lease_id)
        record, opened = await broker.redeem(lease, self._request)
        return self._revealed(lease, record.info, opened)

    async def __aexit__(self, *_: object) -> None:
        secret, self._secret = self._secret, None
        if secret is not None:
            keep_open(self._lease_id, secret.close)
            secret.close()

    def __enter__(self) -> SecretBytes:
        lease, broker = find_open(self._lease_id)
        record, opened = broker.redeem_blocking(lease, self._request)
        return self._revealed(lease, record.info, opened)

    def __exit__(self, *_: object) -> None:
        secret, self._secret = self._secret, None
        if secret is not None:
            keep_open(self._lease_id, secret.close)
            secret.close()

    def _revealed(self, lease: Lease, info: CredentialInfo, opened: Opened) -> SecretBytes:
        if self._part == "refresh" and info.connection is not None:
            opened.close()  # who has it renews the token, and so takes it from all others
            raise RequestNotAllowedError(
                "A refresh token is for apex-creds alone, which renews the token with it.",
                hint="Use the access token: reveal() without a part.",
            )
        if self._part and is_of_another_value(self._part):
            opened.close()
            raise RequestNotAllowedError(
                "That value of the credential is for its rotation alone.",
                hint="Use the current one: reveal() without a part.",
            )
        secret = opened.take(self._part)
        secret.on_expose(partial(_log_exposure, self._lease_id))
        lease.close_at_end(secret.close)
        if lease.ended is not None:  # in another thread
            raise ended_error(lease.ended)
        self._secret = secret
        return secret


def _log_exposure(lease_id: str) -> None:
    """Called before a revealed secret leaves locked memory; holds no reference to it."""
    lease, broker = find_open(lease_id)
    broker.log_exposure(lease)
