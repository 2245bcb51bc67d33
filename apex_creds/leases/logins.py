"""Redeems a lease to log in to a server by another protocol than HTTP.

Guarantee: as for a request, the secret is released for one origin, after the check and the
event. What a server says is not passed on where it has the secret in it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import Collection
from functools import lru_cache
from typing import Final, NamedTuple

from apex_creds.documents.records import Record
from apex_creds.errors import AccessDeniedError, InvalidInputError, RequestNotAllowedError
from apex_creds.leases.broker import find_open, origin_command
from apex_creds.leases.handle import current_credentials
from apex_creds.leases.http_messages import MessageFilter
from apex_creds.leases.lease import AccessRequest, current_invocation
from apex_creds.model import Origin
from apex_creds.policy.manifest import LOGIN
from apex_creds.vault import Opened

_PEER: Final = struct.Struct("3i")

__all__ = ["LOGIN", "lease_here", "login_origin", "redeem_login", "redeem_login_blocking"]


def lease_here(name: str) -> str:
    """The id of the current invocation's lease on a credential.

    Raises:
        AccessDeniedError: There is no invocation, or it has none; audited in an invocation.
    """
    if current_invocation() is None:
        raise AccessDeniedError(
            f"The credential {name[:80]!r} was used outside of any invocation.",
            hint="Connect while the plugin is called; in threads of an SDK, use sdk.Executor.",
        )
    return current_credentials()[name].id


def login_origin(lease_id: str, schemes: Collection[str], given: Origin | None) -> Origin:
    """Where to log in: ``given``, or the one place that the lease allows.

    Raises:
        AccessDeniedError: There is none, or not one; audited.
    """
    lease, broker = find_open(lease_id)
    allowed = lease.permission.origins
    found = [
        origin for origin in allowed if origin.scheme in schemes and given in (None, origin)
    ]
    if len(found) == 1:
        return found[0]
    broker.log_refused_request(lease)
    if found:
        raise RequestNotAllowedError(
            "The credential may log in to several servers.", hint="Say to which: origin=…."
        )
    place = given or f"{min(schemes)}://HOST"
    raise RequestNotAllowedError(
        f"The credential may not be sent to {place}.",
        hint=f"If it should, its owner runs: {origin_command(lease, place)}",
    )


class Login(NamedTuple):
    """What to log in with; the caller closes ``opened``.

    Attributes:
        record: What it was opened from.
    """

    opened: Opened
    record: Record


async def redeem_login(lease_id: str, origin: Origin, *, path: str = "") -> Login:
    """Checks, audits, decrypts, in the caller's invocation.

    ``path`` is ``/NAME`` of the database.

    Raises:
        AccessDeniedError: Not allowed, or the lease has ended.
        AuditUnavailableError: It could not be logged; nothing was decrypted.
    """
    lease, broker = find_open(lease_id)
    record, opened = await broker.redeem(lease, AccessRequest(LOGIN, origin, path))
    return Login(opened, record)


def redeem_login_blocking(lease_id: str, origin: Origin, *, path: str = "") -> Login:
    """As ``redeem_login``, from code that can't wait."""
    lease, broker = find_open(lease_id)
    record, opened = broker.redeem_blocking(lease, AccessRequest(LOGIN, origin, path))
    return Login(opened, record)


def search_of(lease_id: str, record: Record) -> MessageFilter | None:
    """What the server's replies are searched with; the caller closes it, or the lease's end."""
    lease, broker = find_open(lease_id)
    if broker.search is None:
        return None
    return broker.search.messages([lease], [record])


def user_of(opened: Opened, given: str) -> str:
    """The user to log in as: the credential's, which nobody else chooses; else ``given``.

    Raises:
        InvalidInputError: There is none.
    """
    if "user" in opened.names:
        with opened.view("user") as view:
            return str(view, "utf-8")
    if not given:
        raise InvalidInputError(
            "The credential has no user name.", hint="Say user=…, or store it as kind basic."
        )
    return given


def checked_tls(origin: Origin, wanted: bool | None) -> bool:
    """Whether to log in by TLS: always, but on this machine where it is not wanted.

    Raises:
        RequestNotAllowedError: It was not wanted on another machine.
    """
    if wanted is False and not origin.here:
        raise RequestNotAllowedError(
            "A password is not sent to another machine without TLS.",
            hint="Leave out tls=False.",
        )
    return (not origin.here) if wanted is None else wanted


def shut(sock: socket.socket) -> None:
    """Ends a connection, also for a thread that is reading from it; idempotent."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def peer_of(sock: socket.socket) -> tuple[int, int] | None:
    """Process and user at the other end of a Unix socket; None: this system does not say."""
    credentials = getattr(socket, "SO_PEERCRED", None)
    if credentials is None:
        return None
    found = sock.getsockopt(socket.SOL_SOCKET, credentials, _PEER.size)
    process, user, _ = _PEER.unpack(found)
    return process, user


def tls_context() -> ssl.SSLContext:
    """Verifies as HTTP clients here do: by SSL_CERT_FILE, SSL_CERT_DIR, certifi."""
    return _tls_context(os.environ.get("SSL_CERT_FILE", ""), os.environ.get("SSL_CERT_DIR", ""))


def trusted_certificates() -> str:
    """The file that ``tls_context`` trusts, for a library that reads it itself."""
    import certifi

    return os.environ.get("SSL_CERT_FILE", "") or certifi.where()


@lru_cache(maxsize=4)
def _tls_context(file: str, folder: str) -> ssl.SSLContext:
    import certifi

    if file or folder:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    return ssl.create_default_context(cafile=certifi.where())
