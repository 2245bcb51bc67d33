"""Requests to an authorization server.

Guarantee: https only, but to this machine; no redirect is followed, no proxy of the environment
or cookie used; an answer is read up to 256 KiB, and has come as a whole within a minute. An
error says where it happened and whether the request may have been received, never what was
sent.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote_plus, urlencode, urlsplit

from apex_creds import outbound
from apex_creds.errors import InvalidInputError, OAuthError, OAuthUnreachableError
from apex_creds.oauth.messages import Form, is_secure, not_understood
from apex_creds.outbound import Answer as Answer  # noqa: PLC0414 - known under this name, too
from apex_creds.outbound import NoAnswerError


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who asks (RFC 6749, section 2.3).

    Attributes:
        auth: ``basic``, ``post`` or ``none``.
    """

    id: str
    auth: str = "none"
    secret: str = field(default="", repr=False)

    def authenticate(self, form: Form) -> dict[str, str]:
        """Puts what is needed into ``form``; returns the headers."""
        if self.auth == "basic":
            pair = f"{quote_plus(self.id)}:{quote_plus(self.secret)}".encode()
            return {"authorization": f"Basic {base64.b64encode(pair).decode()}"}
        if self.id:
            form["client_id"] = self.id
        if self.auth == "post":
            form["client_secret"] = self.secret
        return {}


async def post(url: str, form: Mapping[str, str], client: Client) -> Answer:
    """Posts a form, as ``client``.

    Raises:
        InvalidInputError: The address is not one that a secret is sent to.
        OAuthUnreachableError: No answer came.
        OAuthError: It is larger than 256 KiB.
    """
    fields = dict(form)
    headers = client.authenticate(fields)
    headers["content-type"] = "application/x-www-form-urlencoded"
    return await _ask("POST", url, headers, urlencode(fields).encode("ascii"))


async def get(url: str) -> Answer:
    """Gets a document.

    Raises:
        As ``post``.
    """
    return await _ask("GET", url, {}, b"")


async def _ask(method: str, url: str, headers: dict[str, str], body: bytes) -> Answer:
    check_address(url)
    host = urlsplit(url).netloc
    failed: OAuthError | None = None
    try:
        return await outbound.ask(method, url, headers=headers, body=body)
    except NoAnswerError as error:
        failed = (
            OAuthUnreachableError(
                f"{host} did not answer ({error.why}).",
                hint="Check the network, and that address.",
                sent=error.sent,
            )
            if error.understood
            else not_understood(error.why)
        )
    raise failed


def check_address(url: str) -> str:
    """Returns ``url`` if a secret may be sent there.

    Raises:
        InvalidInputError: It is neither https nor this machine.
    """
    if not is_secure(url):
        raise InvalidInputError(
            "An authorization server's address is https, or http to this machine.",
            hint="Check the addresses of the provider.",
        )
    return url
