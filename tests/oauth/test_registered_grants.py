"""JWT bearer and token exchange at oidc-provider: its client authentication, jose's checks."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from apex_creds.errors import NeedsReconnectError, OAuthError
from apex_creds.model import ApiKey, Assertion, GenericSecret, SystemClock
from apex_creds.oauth import Provider, Way, connect
from apex_creds.oauth.flows import EXCHANGE, JWT_BEARER
from apex_creds.oauth.refresh import refresher_of
from tests.oauth.test_connect import SCOPE, somebody
from tests.support.oidc import SIGNER, Server
from tests.support.worlds import World, world_in

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
SIGNED = Assertion(
    credential="signing", issuer="desk", subject="alice", key_id="k1", algorithm="EdDSA"
)
EXCHANGED = Assertion(credential="calendar", audience="https://api.example.com")


def pem(key: ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture
async def world(tmp_path: Path, anyio_backend: str) -> AsyncIterator[World]:
    """At the time of the server, which reads what is signed."""
    async with world_in(tmp_path, clock=SystemClock()) as made:
        await made.vault.put("signing", GenericSecret(pem(SIGNER)))
        for client in ("signer", "exchanger"):
            await made.vault.put(f"{client}-secret", ApiKey(f"{client}-secret-of-the-tests"))
        yield made


async def got(world: World, provider: Provider, assertion: Assertion, **options: str) -> None:
    way = Way.JWT if assertion.issuer else Way.EXCHANGE
    client = "signer" if way is Way.JWT else "exchanger"
    given = {"client_id": client, "client_secret": f"{client}-secret", **options}
    await connect(
        world.vault, "made", provider, way=way, show=print, assertion=assertion, **given
    )


async def anew(world: World) -> tuple[str, str]:
    """The token, and the one that comes after it has expired."""
    before = await token_of(world, "made")
    await world.vault.edit("made", expires=time.time() - 1)
    await refresher_of(world.vault).ensure("made")
    return before, await token_of(world, "made")


async def token_of(world: World, name: str) -> str:
    async with world.vault.open(name) as opened:
        return bytes(opened.view()).decode()


def whose(server: Server, token: str) -> tuple[bool, str]:
    """What the server says of a token: whether it is valid, and whose it is."""
    form = {"token": token, "client_id": "desk"}
    answer = httpx.post(f"{server.issuer}/token/introspection", data=form, trust_env=False)
    found = answer.json()
    return found["active"], found.get("sub", "")


async def test_a_token_for_what_was_signed(
    world: World, provider: Provider, server: Server
) -> None:
    await got(world, provider, SIGNED)
    before, after = await anew(world)
    assert before != after
    assert whose(server, before) == whose(server, after) == (True, "alice")
    server.has_answered(JWT_BEARER, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "somebody"},
        {"subject": "bob"},
        {"audience": "https://elsewhere.example.com"},
        {"key_id": "k2"},
        {"credential": "of-somebody"},
    ],
)
async def test_what_is_signed_otherwise_is_refused_and_nothing_is_stored(
    world: World, provider: Provider, wrong: dict[str, str]
) -> None:
    other = ed25519.Ed25519PrivateKey.generate()
    await world.vault.put("of-somebody", GenericSecret(pem(other)))
    fields = {name: getattr(SIGNED, name) for name in SIGNED.__struct_fields__}
    names = {info.name for info in await world.vault.list()}
    with pytest.raises(OAuthError) as caught:
        await got(world, provider, Assertion(**(fields | wrong)))
    assert caught.value.code == "invalid_grant"
    assert {info.name for info in await world.vault.list()} == names


async def test_a_client_that_is_not_who_it_says_is_refused(
    world: World, provider: Provider
) -> None:
    await world.vault.put("signer-secret", ApiKey("another-secret"))
    with pytest.raises(OAuthError) as caught:
        await got(world, provider, SIGNED)
    assert caught.value.code == "invalid_client"


async def test_a_token_for_another_token(
    world: World, provider: Provider, server: Server
) -> None:
    vault = world.vault
    await connect(vault, "calendar", provider, client_id="desk", scope=SCOPE, show=somebody())
    await got(world, provider, EXCHANGED)
    before, after = await anew(world)
    assert before != after
    assert whose(server, after) == whose(server, await token_of(world, "calendar"))
    # The token that is exchanged is renewed first, where it has to be.
    server.has_answered(EXCHANGE, 2)
    refreshed = server.count("refresh_token")
    await vault.edit("calendar", expires=time.time() - 1)
    await anew(world)
    server.has_answered(EXCHANGE, 3)
    assert server.count("refresh_token") == refreshed + 1


async def test_a_token_that_was_revoked_is_not_exchanged(
    world: World, provider: Provider, server: Server
) -> None:
    vault = world.vault
    await connect(vault, "calendar", provider, client_id="desk", scope=SCOPE, show=somebody())
    other = Assertion(credential="calendar", audience="https://elsewhere.example.com")
    with pytest.raises(OAuthError) as caught:
        await got(world, provider, other)
    assert caught.value.code == "invalid_target"
    await got(world, provider, EXCHANGED)
    form = {"token": await token_of(world, "calendar"), "client_id": "desk"}
    httpx.post(f"{server.issuer}/token/revocation", data=form, trust_env=False)
    with pytest.raises(NeedsReconnectError):
        await anew(world)
