"""The signatures of docs/SDKS.md are what those who check them expect."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64decode, b64encode, urlsafe_b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from apex_creds.model import ApiKey, GenericSecret
from tests.support.loopback import ok, server
from tests.support.snippets import blocks
from tests.support.worlds import World

pytestmark = pytest.mark.anyio
PAGE = Path(__file__).parents[2] / "docs" / "SDKS.md"
SECRET = "webhook-canary-0123456789"
BODY = b'{"hello": "there"}'
NEEDS = ({"name": "webhooks", "access": "sign"}, {"name": "github-app", "access": "sign"})
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def page(world: World) -> dict[str, object]:
    found: dict[str, object] = {}
    [text] = [each.text for each in blocks(PAGE.read_text()) if "github_app" in each.text]
    exec(text, found)
    found["time"] = world.clock
    return found


@pytest.fixture
async def world(world: World) -> World:
    await world.vault.put("webhooks", ApiKey(SECRET))
    await world.vault.put("github-app", GenericSecret(PEM))
    for name in ("webhooks", "github-app"):
        await world.vault.grant("demo", name, sign=True)
    return world


def digest(*parts: bytes) -> bytes:
    return hmac.digest(SECRET.encode(), b"".join(parts), hashlib.sha256)


async def test_webhooks(world: World, page) -> None:
    async def plugin(credentials):
        made = [page[f"as_{name}_does"] for name in ("github", "slack", "stripe")]
        return [
            *[await each(BODY) for each in made],
            await page["by_standard_webhooks"](BODY, "m"),
        ]

    github, slack, stripe, standard = await world.call(plugin, needs=NEEDS)
    assert github == {"X-Hub-Signature-256": f"sha256={digest(BODY).hex()}"}
    at = slack["X-Slack-Request-Timestamp"]
    assert slack["X-Slack-Signature"] == f"v0={digest(f'v0:{at}:'.encode(), BODY).hex()}"
    at, _, signature = stripe["Stripe-Signature"].removeprefix("t=").partition(",v1=")
    assert signature == digest(f"{at}.".encode(), BODY).hex()
    at = standard["webhook-timestamp"]
    expected = digest(f"m.{at}.".encode(), BODY)
    assert standard["webhook-signature"] == f"v1,{b64encode(expected).decode()}"
    assert [event.method for event in world.events("redeem")] == ["SIGN"] * 4


async def test_a_github_app(world: World, page) -> None:
    async with server() as here:
        here.answer = lambda head: ok(b"{}")

        async def plugin(credentials):
            async with await page["github_app"]("12345", here.origin) as client:
                return (await client.get("/app")).status_code

        assert await world.call(plugin, needs=NEEDS) == 200
        token = here.header("authorization")[0].removeprefix("Bearer ")
    message, _, signature = token.rpartition(".")
    raw = urlsafe_b64decode(signature + "==")
    KEY.public_key().verify(raw, message.encode(), padding.PKCS1v15(), SHA256())
    claims = json.loads(b64decode(message.partition(".")[2] + "==", altchars=b"-_"))
    assert claims["iss"] == "12345"
    assert claims["exp"] - claims["iat"] == 600
