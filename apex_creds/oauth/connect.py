"""Connects a credential to its provider, and disconnects it.

Guarantee: what is stored is one commit of token and connection, after the server has issued it;
a connection that exists under the name is replaced only if it was made by the same provider. A
client's secret is a credential of the vault, named and never copied.
"""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import msgspec

from apex_creds.errors import (
    ApexCredsError,
    CredentialChangedError,
    CredentialExistsError,
    CredentialNotFoundError,
    InvalidInputError,
    OAuthError,
)
from apex_creds.model import Assertion, Connection, CredentialInfo, Origin, Secret
from apex_creds.oauth import flows
from apex_creds.oauth.endpoints import Client
from apex_creds.oauth.flows import Show
from apex_creds.oauth.provider_presets import Provider
from apex_creds.oauth.refresh import refresher_of
from apex_creds.policy.display import operator_command
from apex_creds.vault import Vault
from apex_creds.vault.lookup import PutItem


class Way(StrEnum):
    """How the first token is had."""

    BROWSER = "browser"
    DEVICE = "device"
    CLIENT = "client"
    JWT = "jwt"
    EXCHANGE = "exchange"


_GRANTS: Final = {
    Way.CLIENT: "client_credentials",
    Way.JWT: flows.JWT_BEARER,
    Way.EXCHANGE: flows.EXCHANGE,
}


def way_of(connection: Connection | None) -> Way:
    """How a connection is made again: as it was, or in a browser."""
    grant = "" if connection is None else connection.grant
    return next((way for way, each in _GRANTS.items() if each == grant), Way.BROWSER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """What became of it.

    Attributes:
        renewable: Whether the token is renewed when it expires.
    """

    info: CredentialInfo
    renewable: bool


async def connect(
    vault: Vault,
    name: str,
    provider: Provider,
    *,
    client_id: str,
    client_secret: str = "",
    way: Way = Way.BROWSER,
    scope: str = "",
    origins: Iterable[Origin] | None = None,
    show: Show,
    port: int = 0,
    principal: str = "",
    assertion: Assertion | None = None,
) -> Connected:
    """Gets a token and stores it, with how it is renewed.

    Args:
        vault: Unsealed.
        name: Of the credential that is made, or connected again.
        provider: Who issues it.
        client_id: Of the client that is registered there.
        client_secret: The name of the credential that holds its secret; empty: it has none.
        way: How.
        scope: What is asked for; the provider's by default.
        origins: Where it may be sent; as before, or the provider's, by default.
        show: Is given what a person has to open.
        port: Of the redirect; see ``flows.authorize_in_browser``.
        principal: Who it is for, as a user's id; empty: it is shared.
        assertion: For ``Way.JWT`` and ``Way.EXCHANGE``: what the token is issued for.

    Raises:
        OAuthError: No token was had; nothing was stored.
        CredentialExistsError: The name is another credential's.
        CredentialNotFoundError: There is no credential ``client_secret``.
    """
    before = await _connected_before(vault, name, provider, principal=principal)
    secret = await _client_secret(vault, client_secret, action="connect")
    client = Client(
        id=client_id, auth=provider.auth if client_secret else "none", secret=secret
    )
    now = vault.clock.time()
    connection = Connection(
        provider=provider.name,
        token_endpoint=provider.token_endpoint,
        revocation_endpoint=provider.revocation_endpoint,
        client_id=client_id,
        client_secret=client_secret,
        client_auth=client.auth,
        grant=_GRANTS.get(way, "refresh_token"),
        scope=scope or provider.scope,
        by=_user(),
        assertion=assertion if way in (Way.JWT, Way.EXCHANGE) else None,
    )
    if connection.assertion is not None:
        _check(connection.assertion, way, name=name, principal=principal)
        form = await refresher_of(vault).asserted(
            connection.grant, connection, action="connect"
        )
        tokens = await flows.with_form(provider, client, form)
    elif way in (Way.JWT, Way.EXCHANGE):
        raise InvalidInputError("Nothing says what the token is to be issued for.")
    elif way is Way.BROWSER:
        tokens = await flows.authorize_in_browser(
            provider, client, scope=scope, show=show, port=port
        )
    elif way is Way.DEVICE:
        tokens = await flows.authorize_device(provider, client, scope=scope, show=show)
    else:
        tokens = await flows.for_client(provider, client, scope=scope)
    now = vault.clock.time()
    connection = msgspec.structs.replace(connection, refreshed=now, attempted=now, outcome="ok")
    token = tokens.secret(at=now, scope=connection.scope)
    item = PutItem(
        name=name,
        secret=token,
        origins=None if origins is None else tuple(origins),
        connection=connection,
        principal=principal,
    )
    try:
        info = await _stored(vault, item, provider)
    except ApexCredsError:
        if before is None and provider.revocation_endpoint:  # else that might end it, too
            with contextlib.suppress(OAuthError):
                await _revoke(provider.revocation_endpoint, client, token)
        raise
    return Connected(info=info, renewable=way in _GRANTS or bool(tokens.refresh))


async def disconnect(vault: Vault, name: str, *, principal: str = "") -> bool:
    """Revokes a connection's tokens at the provider, then deletes the credential.

    Returns:
        Whether the provider revoked them; False: it has no way to.

    Raises:
        CredentialNotFoundError: There is no credential of that name.
        InvalidInputError: It is not connected.
        TokenError: Another process has been renewing the token for a minute.
        OAuthError: The provider did not revoke them; nothing was deleted.
    """
    info = await vault.get(name, principal=principal)
    if info.connection is None:
        raise InvalidInputError(
            f"{name!r} is not connected to a provider.",
            hint=f"To delete it: {operator_command('rm', name, principal=principal)}",
        )
    # A refresh that is under way would store tokens that nobody had revoked.
    async with refresher_of(vault).alone(info) as info:
        connection = info.connection
        if connection is not None and connection.revocation_endpoint:
            secret = await _client_secret(vault, connection.client_secret, action="disconnect")
            client = Client(id=connection.client_id, auth=connection.client_auth, secret=secret)
            opening = vault.open(name, action="disconnect", principal=principal)
            async with opening as opened:
                values = {part: bytes(opened.view(part)) for part in opened.names}
            await _revoke(connection.revocation_endpoint, client, Secret(info.kind, values))
        await vault.delete(name, principal=principal)
    return connection is not None and bool(connection.revocation_endpoint)


async def _revoke(endpoint: str, client: Client, token: Secret) -> None:
    for part in ("refresh", "access"):  # that of the first ends, as a rule, the others, too
        if value := token.parts.get(part):
            await flows.revoke(endpoint, value.decode(), client, hint=f"{part}_token")


async def _stored(vault: Vault, item: PutItem, provider: Provider) -> CredentialInfo:
    """Stores a token, under a name that may be another credential's by now."""
    while True:
        before = await _connected_before(vault, item.name, provider, principal=item.principal)
        origins = item.origins
        if origins is None and (before is None or not before.origins):
            origins = tuple(map(Origin.parse, provider.origins))
        replaces = 0 if before is None else before.version
        with contextlib.suppress(CredentialChangedError):
            made = replace(item, origins=origins, replaces=replaces)
            return (await vault.put_many([made]))[0]
        await vault.refresh()


async def _connected_before(
    vault: Vault, name: str, provider: Provider, *, principal: str
) -> CredentialInfo | None:
    """The credential that is connected again, if the name is one's."""
    try:
        found = await vault.get(name, principal=principal)
    except CredentialNotFoundError:
        return None
    if found.connection is None or found.connection.token_endpoint != provider.token_endpoint:
        raise CredentialExistsError(
            f"{name!r} is another credential's name.",
            hint="Choose another with --name, or delete that one first.",
        )
    return found


async def _client_secret(vault: Vault, name: str, *, action: str) -> str:
    """The secret that a credential holds; empty without a name."""
    if not name:
        return ""
    async with vault.open(name, action=action) as opened:
        return bytes(opened.view()).decode()


def _check(assertion: Assertion, way: Way, *, name: str, principal: str) -> None:
    if assertion.principal not in ("", principal):
        raise InvalidInputError(
            "The credential that it is issued for belongs to somebody else.",
            hint="Use a shared one, or the principal's own.",
        )
    if (assertion.credential, assertion.principal) == (name, principal):
        raise InvalidInputError("A token is not issued for itself.", hint="Name another.")
    if way is Way.JWT and not (assertion.issuer and assertion.subject):
        raise InvalidInputError(
            "A signature says who signs and for whom (RFC 7523).",
            hint="Say --issuer and --subject.",
        )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user id without a name
        return ""
