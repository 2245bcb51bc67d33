"""SMTP for smtplib, whose connections never have the password.

Guarantee: a connection is logged in under the lease of the invocation that makes it, by TLS to
any other machine, with the password sent from locked memory past the client's debug output; it
ends with that lease, and sends nothing of another invocation.
"""

from __future__ import annotations

import smtplib
from base64 import b64encode
from functools import partial
from typing import Any, Final

from apex_creds.errors import ApexCredsError, InvalidInputError
from apex_creds.leases.broker import find_open
from apex_creds.leases.logins import (
    lease_here,
    login_origin,
    redeem_login_blocking,
    shut,
    tls_context,
    user_of,
)
from apex_creds.model import Origin, check_name

_SCHEMES: Final = ("smtp", "smtps")
_REFUSED: Final = 535


def connect(
    name: str, *, origin: str = "", user: str = "", timeout: float = 30.0
) -> smtplib.SMTP:
    """A connection that is logged in; close it, or use it in a ``with``.

    Args:
        name: The credential's.
        origin: ``smtp://HOST[:PORT]`` (587, STARTTLS) or ``smtps://`` (465), where the
            credential has several.
        user: For a credential that is a password only; one of kind basic has its own.
        timeout: Seconds for each step.

    Raises:
        smtplib.SMTPAuthenticationError: The use was refused, or the login.
        smtplib.SMTPException: The server does not offer what it takes.
        InvalidInputError: An argument is not as described.
    """
    where = Origin.parse(origin) if origin else None
    if where is not None and where.scheme not in _SCHEMES:
        raise InvalidInputError(
            f"{origin[:80]!r} is not a mail server.", hint="Write smtp://HOST[:PORT]."
        )
    try:
        lease_id = lease_here(check_name(name))
        server = login_origin(lease_id, _SCHEMES, where)
    except ApexCredsError as error:
        raise _refused(error) from None
    client: _Client | _TLSClient
    if server.scheme == "smtps":
        client = _TLSClient(server.host, server.port, timeout=timeout, context=tls_context())
    else:
        client = _Client(server.host, server.port, timeout=timeout)
    try:
        client.ehlo_or_helo_if_needed()
        if server.scheme == "smtp":
            _encrypt(client, server)
        _log_in(client, lease_id, server, user)
        client.bind(name, lease_id)
    except ApexCredsError as error:
        client.close()
        raise _refused(error) from None
    except BaseException as error:
        client.close()
        error.__traceback__ = None  # a frame of it has the password as it was sent
        raise
    return client


class _Ours:
    """A connection that sends for one lease only, once it is bound to it."""

    _name = _lease_id = ""

    def bind(self: Any, name: str, lease_id: str) -> None:
        """It ends with the lease."""
        self._name, self._lease_id = name, lease_id
        find_open(lease_id)[0].close_at_end(partial(shut, self.sock))

    def send(self: Any, s: Any) -> None:
        """See ``smtplib.SMTP.send``."""
        if self._lease_id:
            try:
                mine = lease_here(self._name) == self._lease_id
            except ApexCredsError:
                mine = False
            if not mine:
                self.close()
                raise smtplib.SMTPServerDisconnected(
                    "The connection belongs to another invocation. Connect again."
                )
        super().send(s)  # type: ignore[misc]


class _Client(_Ours, smtplib.SMTP):
    """By STARTTLS, or in the clear on this machine."""


class _TLSClient(_Ours, smtplib.SMTP_SSL):
    """By TLS from the beginning."""


def _encrypt(client: smtplib.SMTP, server: Origin) -> None:
    if client.has_extn("starttls"):
        client.starttls(context=tls_context())
        client.ehlo_or_helo_if_needed()
    elif not server.here:
        raise smtplib.SMTPNotSupportedError(
            f"The server {server} offers no STARTTLS, and a password is not sent without."
        )


def _log_in(client: smtplib.SMTP, lease_id: str, server: Origin, user: str) -> None:
    offered = client.esmtp_features.get("auth", "").upper().split()
    if not {"PLAIN", "LOGIN"} & set(offered):
        raise smtplib.SMTPNotSupportedError("The server offers neither AUTH PLAIN nor LOGIN.")
    with redeem_login_blocking(lease_id, server).opened as opened:
        name = user_of(opened, user).encode()
        with opened.view() as password:
            if "PLAIN" in offered:
                steps = [b"AUTH PLAIN " + b64encode(b"".join((b"\0", name, b"\0", password)))]
            else:
                steps = [b"AUTH LOGIN", b64encode(name), b64encode(password)]
            code, words = 0, b""
            level, client.debuglevel = client.debuglevel, 0  # a server may repeat it
            try:
                for step in steps:
                    sock = client.sock
                    assert sock is not None
                    sock.sendall(step + b"\r\n")
                    code, words = client.getreply()
                    if code not in (235, 334):
                        break
            finally:
                client.debuglevel = level
            # The server may say the password again, as it is or as it was sent: of that, the
            # part that the password alone decides begins at any of three places.
            forms = [b64encode(b"\0" * lead + bytes(password))[4:-4] for lead in range(3)]
            repeated = any(len(form) > 4 and form in words for form in forms)
            shown = not repeated and words.find(password) < 0
    if code != 235:
        raise smtplib.SMTPAuthenticationError(
            code, words if shown else b"The server refused the login."
        )


def _refused(error: ApexCredsError) -> smtplib.SMTPAuthenticationError:
    return smtplib.SMTPAuthenticationError(_REFUSED, str(error).encode())
