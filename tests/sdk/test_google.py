"""google-auth as it is: a session, and credentials that sign with a key they don't have."""

from __future__ import annotations

import asyncio
import json
from base64 import urlsafe_b64decode

import pytest

pytest.importorskip("google.auth")

from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import AuthorizedSession

from apex_creds.model import ApiKey, GenericSecret
from apex_creds.sdk import google
from tests.support.loopback import server
from tests.support.worlds import World

pytestmark = pytest.mark.anyio

KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
NEED = {"name": "robot", "access": "sign"}


def claims_of(token: str) -> dict[str, object]:
    """What a token says, if the key signed it."""
    message, _, signature = token.rpartition(".")
    raw = urlsafe_b64decode(signature + "==")
    KEY.public_key().verify(raw, message.encode(), padding.PKCS1v15(), SHA256())
    return json.loads(urlsafe_b64decode(message.partition(".")[2] + "=="))


async def test_one_session_in_two_invocations(world: World) -> None:
    session = google.session("drive")
    async with server() as here:
        await world.vault.put("drive", ApiKey("ya29-canary-0123"), origins=[here.origin])
        await world.vault.grant("demo", "drive")

        async def plugin(credentials):
            return (await asyncio.to_thread(session.get, f"{here.origin}/files")).status_code

        for _ in range(2):
            assert await world.call(plugin, needs=("drive",)) == 200
            assert here.header("authorization") == ["Bearer ya29-canary-0123"]
        assert (await asyncio.to_thread(session.get, f"{here.origin}/files")).status_code == 403
        assert len(here.requests) == 2


async def test_a_token_that_the_service_refuses_is_its_answer(world: World, service) -> None:
    session = google.session("web")
    service.prefix = "Another "  # than it is sent with
    await service.allow(world, delivery="bearer")

    async def plugin(credentials):
        return await asyncio.to_thread(session.get, service.origin)

    answer = await world.call(plugin, needs=({"name": "web"},))
    assert (answer.status_code, answer.json()["error"]["message"]) == (401, "wrong key")
    assert len(service.requests) == 1


async def test_a_service_account_signs_for_whoever_sends(world: World) -> None:
    account = google.ServiceAccount("robot", email="robot@p.test", key_id="k1")
    session = AuthorizedSession(account)
    async with server() as here:
        await world.vault.put("robot", GenericSecret(PEM))
        await world.vault.grant("demo", "robot", sign=True)

        async def plugin(credentials):
            return (await asyncio.to_thread(session.get, f"{here.origin}/files")).text

        for _ in range(2):
            assert await world.call(plugin, needs=(NEED,)) == "hello"
        [sent] = here.header("authorization")
        claims = claims_of(sent.removeprefix("Bearer "))
        assert (claims["iss"], claims["aud"]) == ("robot@p.test", f"{here.origin}/")
        assert [event.method for event in world.events("redeem")] == ["JWT", "JWT"]
        assert "PRIVATE" not in repr(vars(account))
        with pytest.raises(RefreshError, match="invocation"):
            await asyncio.to_thread(session.get, f"{here.origin}/files")
        assert len(here.requests) == 2


async def test_a_refusal_is_the_sdks_own(world: World) -> None:
    session = AuthorizedSession(google.ServiceAccount("robot", email="robot@p.test"))
    await world.vault.put("robot", GenericSecret(PEM))
    await world.vault.grant("demo", "robot")

    async def plugin(credentials):
        with pytest.raises(RefreshError, match="--sign"):
            await asyncio.to_thread(session.get, "http://127.0.0.1:1/")

    await world.call(plugin, needs=(NEED,))
