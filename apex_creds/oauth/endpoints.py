"""Requests to an authorization server.

Guarantee: https only, but to this machine; no redirect is followed, no proxy of the environment
or cookie used; an answer is read up to 256 KiB, and has come as a whole within a minute. An
error says where it happened and whether the request may have been received, never what was
sent.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote_plus, urlencode, urlsplit

from apex_creds.errors import InvalidInputError, OAuthUnreachableError
from apex_creds.oauth.messages import Form, is_secure, not_understood

_SECONDS: Final = 20.0
_WHOLE: Final = 60.0
_LARGEST: Final = 1 << 18


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
        form["client_id"] = self.id
        if self.auth == "post":
            form["client_secret"] = self.secret
        return {}


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, and at most 256 KiB."""

    status: int
    body: bytes = field(repr=False)


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
    import httpx  # long to import

    check_address(url)
    host = urlsplit(url).netloc
    headers |= {"accept": "application/json", "accept-encoding": "identity"}
    failed: OAuthUnreachableError | None = None
    try:
        async with (
            asyncio.timeout(_WHOLE),  # httpx's begin anew with each byte
            httpx.AsyncClient(
                trust_env=False, follow_redirects=False, timeout=_SECONDS
            ) as client,
            client.stream(method, url, content=body, headers=headers) as response,
        ):
            packed = response.headers.get("content-encoding", "identity") != "identity"
            if packed and response.status_code < 500:
                raise not_understood("it is compressed, which was not asked for")
            found = bytearray()
            async for chunk in response.aiter_raw():
                found += chunk
                if len(found) > _LARGEST:
                    raise not_understood("it is larger than 256 KiB")
            return Answer(response.status_code, bytes(found))
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        failed = OAuthUnreachableError(
            f"{host} did not answer ({type(error).__name__}).",
            hint="Check the network, and that address.",
            sent=not isinstance(
                error, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL
            ),
        )
    raise failed  # out of the handler: the frames of httpx hold what was sent


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
