"""Authorization servers: presets, files, and what a server says of itself.

Guarantee: every address is https, or this machine's; metadata is of the issuer that was asked
for and no other (RFC 8414, section 3.3). Parsing is pure; ``discover`` asks the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from anyio import to_thread

from apex_creds.errors import InvalidInputError
from apex_creds.fs.private_files import read_small
from apex_creds.model import Origin
from apex_creds.oauth import endpoints
from apex_creds.oauth.messages import is_secure, not_understood, parse_json

_LARGEST_FILE: Final = 1 << 16
_AUTHS: Final = {
    "client_secret_basic": "basic",
    "client_secret_post": "post",
    "none": "none",
}


class Provider(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An authorization server, and the API that its tokens are for; nothing in it is secret.

    Attributes:
        name: For people, and ``connect NAME``.
        token_endpoint: Where tokens come from.
        authorization_endpoint: Where a person's browser goes; empty: it has none.
        device_endpoint: For machines without a browser (RFC 8628); empty: it has none.
        revocation_endpoint: RFC 7009; empty: it has none.
        issuer: Who answers (RFC 9207); empty: it does not say.
        auth: How a client with a secret says who it is: ``basic`` or ``post``.
        scope: What is asked for where nothing else is said.
        extra: More fields of the authorization request.
        origins: Where its tokens may be sent.
    """

    name: str
    token_endpoint: str
    authorization_endpoint: str = ""
    device_endpoint: str = ""
    revocation_endpoint: str = ""
    issuer: str = ""
    auth: str = "post"
    scope: str = ""
    extra: dict[str, str] = {}
    origins: tuple[str, ...] = ()


PRESETS: Final[Mapping[str, Provider]] = {
    each.name: each
    for each in msgspec.json.decode(
        files(__package__).joinpath("presets.json").read_bytes(), type=list[Provider]
    )
}
"""What is known of the usual ones: ``presets.json``, after their own documentation."""


async def find(which: str) -> Provider:
    """The provider that a preset, a file or an issuer's address names.

    Raises:
        InvalidInputError: It is none of them, or a part of it is not acceptable.
        OAuthError: The issuer's metadata can't be used.
    """
    if which in PRESETS:
        return PRESETS[which]
    if "://" in which:
        return await discover(which)
    try:
        data = await to_thread.run_sync(partial(read_small, Path(which), limit=_LARGEST_FILE))
    except FileNotFoundError:
        raise InvalidInputError(
            f"{which[:80]!r} is no provider.",
            hint=f"Use {', '.join(PRESETS)}, an issuer's https address, or a JSON file.",
        ) from None
    except OSError as error:
        raise InvalidInputError(f"{which[:80]!r} can't be read: {error.strerror}.") from None
    return parse_file(data)


def parse_file(data: bytes) -> Provider:
    """A provider file: JSON with the fields of ``Provider``.

    Raises:
        InvalidInputError: It is none.
    """
    try:
        found = msgspec.json.decode(data, type=Provider)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"The provider file can't be read: {error}.",
            hint="Its fields are in docs/OAUTH.md.",
        ) from None
    for origin in found.origins:
        Origin.parse(origin)  # now, not when a person has allowed it
    return checked(found)


async def discover(issuer: str) -> Provider:
    """What an issuer says of itself: RFC 8414, else OpenID Connect Discovery.

    Raises:
        OAuthError: It says nothing that can be used.
        OAuthUnreachableError: It did not answer.
    """
    parts = urlsplit(endpoints.check_address(issuer))
    path = parts.path.rstrip("/")
    base = f"{parts.scheme}://{parts.netloc}"
    places = (
        f"{base}/.well-known/oauth-authorization-server{path}",
        f"{base}{path}/.well-known/openid-configuration",
    )
    for place in places:
        answer = await endpoints.get(place)
        if answer.status == 200:
            return parse_metadata(parse_json(answer.body), issuer=issuer)
    raise not_understood("the issuer has no metadata (RFC 8414)")


def parse_metadata(found: Mapping[str, object], *, issuer: str) -> Provider:
    """What an issuer says of itself (RFC 8414, section 2).

    Raises:
        OAuthError: It is another issuer's, or lacks what is needed.
    """
    if found.get("issuer") != issuer:
        raise not_understood("the metadata is another issuer's (RFC 8414, section 3.3)")
    methods = found.get("code_challenge_methods_supported", ["S256"])
    if not isinstance(methods, list) or "S256" not in methods:
        raise not_understood("it has no PKCE with S256")

    def text(name: str) -> str:
        value = found.get(name, "")
        if not isinstance(value, str):
            raise not_understood(f"its {name} is no text")
        return value

    offered = found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
    ways = offered if isinstance(offered, list) else []
    says_who = found.get("authorization_response_iss_parameter_supported") is True
    made = Provider(
        name=urlsplit(issuer).netloc,
        token_endpoint=text("token_endpoint"),
        authorization_endpoint=text("authorization_endpoint"),
        device_endpoint=text("device_authorization_endpoint"),
        revocation_endpoint=text("revocation_endpoint"),
        issuer=issuer if says_who else "",
        auth=next((auth for way, auth in _AUTHS.items() if way in ways), "basic"),
    )
    return checked(made, refuse=not_understood)


def checked(
    provider: Provider, *, refuse: Callable[[str], Exception] | None = None
) -> Provider:
    """Returns it if every address is one that a secret may be sent to.

    Raises:
        InvalidInputError: One is not; or what ``refuse`` makes.
    """
    addresses = (
        provider.token_endpoint,
        provider.authorization_endpoint,
        provider.device_endpoint,
        provider.revocation_endpoint,
    )
    wrong = next((each for each in addresses if each and not is_secure(each)), None)
    if not provider.token_endpoint or wrong is not None or provider.auth not in _AUTHS.values():
        why = "an address is not https" if wrong else "its token endpoint or auth is not there"
        if refuse is not None:
            raise refuse(why)
        raise InvalidInputError(
            f"The provider can't be used: {why}.", hint="Its fields are in docs/OAUTH.md."
        )
    return provider
