"""Signing instead of revealing: what it takes, what it makes, what the log says of it."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import json
from base64 import urlsafe_b64decode

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from apex_creds.errors import AccessDeniedError, InvalidInputError, RequestNotAllowedError
from apex_creds.leases.connection_pool import AsyncPool
from apex_creds.model import ApiKey, AwsKey, BasicAuth, GenericSecret
from tests.support.worlds import World

pytestmark = pytest.mark.anyio

SECRET = "whsec-canary-0123456789"
ORIGIN = "https://b.s3.eu-west-1.amazonaws.com"
SIGN = {"name": "hook", "access": "sign"}
KEYS = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}


def pem(key, encryption: KeySerializationEncryption | None = None) -> bytes:
    chosen = encryption or NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, chosen)


async def stored(world: World, secret, *, sign: bool = True, **more) -> None:
    await world.vault.put("hook", secret, **more)
    await world.vault.grant("demo", "hook", sign=sign)


def audited(world: World) -> list[tuple[str, str]]:
    return [(event.method, event.origin) for event in world.events("redeem")]


# -- bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_an_hmac(world: World, algorithm: str) -> None:
    await stored(world, ApiKey(SECRET))

    async def plugin(credentials):
        handle = credentials["hook"]
        made = await handle.sign(b"payload", algorithm=algorithm)
        there = await asyncio.to_thread(handle.sync_sign, b"payload", algorithm=algorithm)
        assert made == there
        return made.hex()

    expected = hmac.new(SECRET.encode(), b"payload", algorithm).hexdigest()
    assert await world.call(plugin, needs=(SIGN,)) == expected
    assert audited(world) == [("SIGN", ""), ("SIGN", "")]


async def test_arguments_that_are_none(world: World) -> None:
    await stored(world, ApiKey(SECRET))

    async def plugin(credentials):
        handle = credentials["hook"]
        for wrong in ({"data": "text"}, {"data": b"", "algorithm": "md5"}):
            with pytest.raises(InvalidInputError):
                await handle.sign(**wrong)
        with pytest.raises(InvalidInputError):
            await handle.jwt({"sub": object()})

    await world.call(plugin, needs=(SIGN,))
    assert audited(world) == []


# -- what it takes -------------------------------------------------------------------


async def test_who_may_sign_may_not_read_or_send(world: World) -> None:
    await stored(world, ApiKey(SECRET), origins=["https://a.test"])

    async def plugin(credentials):
        handle = credentials["hook"]
        with pytest.raises(AccessDeniedError):
            async with handle.reveal():
                raise AssertionError
        async with handle.client() as http:
            with pytest.raises(RequestNotAllowedError):
                await http.get("https://a.test/")

    await world.call(plugin, needs=(SIGN,))
    assert [reason for _, reason in world.reasons()][-2:] == [
        "reveal_not_granted",
        "request_not_allowed",
    ]
    assert audited(world) == []


@pytest.mark.parametrize("access", ["inject", "sign"])
async def test_it_takes_manifest_and_grant(world: World, access: str) -> None:
    await stored(world, ApiKey(SECRET), sign=access == "inject")

    async def plugin(credentials):
        with pytest.raises(AccessDeniedError) as caught:
            await credentials["hook"].sign(b"x")
        assert "--sign" in str(caught.value.hint)
        with pytest.raises(AccessDeniedError):
            await credentials["hook"].jwt({})

    await world.call(plugin, needs=({"name": "hook", "access": access},))
    assert {reason for _, reason in world.reasons()} == {"sign_not_granted"}
    assert audited(world) == []


async def test_who_may_read_may_sign(world: World) -> None:
    await world.vault.put("hook", ApiKey(SECRET))
    await world.vault.grant("demo", "hook", reveal=True)

    async def plugin(credentials):
        return await credentials["hook"].sign(b"x")

    for access in ("reveal", "sign"):
        made = await world.call(plugin, needs=({"name": "hook", "access": access},))
        assert made == hmac.digest(SECRET.encode(), b"x", "sha256")


# -- tokens --------------------------------------------------------------------------


def read(token: str) -> tuple[dict, dict, bytes, bytes]:
    parts = [part + "=" * (-len(part) % 4) for part in token.split(".")]
    head, claims, signature = map(urlsafe_b64decode, parts)
    return json.loads(head), json.loads(claims), signature, token.rpartition(".")[0].encode()


def verify(algorithm: str, signature: bytes, message: bytes) -> None:
    key = KEYS[algorithm].public_key()
    if algorithm == "RS256":
        key.verify(signature, message, padding.PKCS1v15(), SHA256())
    elif algorithm == "ES256":
        assert len(signature) == 64
        numbers = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
        key.verify(encode_dss_signature(*numbers), message, ec.ECDSA(SHA256()))
    else:
        key.verify(signature, message)


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_token(world: World, algorithm: str) -> None:
    await stored(world, GenericSecret(pem(KEYS[algorithm])))

    async def plugin(credentials):
        handle = credentials["hook"]
        options = {"algorithm": algorithm, "key_id": "k1", "expires_in": 60}
        there = await asyncio.to_thread(handle.sync_jwt, {"iss": "a"}, **options)
        assert read(there)[1]["iss"] == "a"
        return await handle.jwt({"iss": "a", "n": [1, {"ü": None}]}, **options)

    head, claims, signature, message = read(await world.call(plugin, needs=(SIGN,)))
    verify(algorithm, signature, message)
    assert head == {"alg": algorithm, "typ": "JWT", "kid": "k1"}
    now = int(world.clock.time())
    assert claims == {"iss": "a", "n": [1, {"ü": None}], "iat": now, "exp": now + 60}
    assert audited(world) == [("JWT", ""), ("JWT", "")]


async def test_a_token_is_good_for_an_hour_at_most(world: World) -> None:
    await stored(world, GenericSecret(pem(KEYS["EdDSA"])))
    now = int(world.clock.time())

    async def plugin(credentials):
        handle = credentials["hook"]
        for claims in ({"exp": now + 3700}, {"exp": "later"}, {"exp": True}, {"exp": None}):
            with pytest.raises(InvalidInputError):
                await handle.jwt(claims, algorithm="EdDSA")
        with pytest.raises(InvalidInputError):
            await handle.jwt({}, algorithm="EdDSA", expires_in=3601)
        return read(await handle.jwt({"exp": now + 9, "iat": now - 60}, algorithm="EdDSA"))[1]

    assert await world.call(plugin, needs=(SIGN,)) == {"exp": now + 9, "iat": now - 60}


BAD_KEYS = {
    "text": (b"sk-1234567890", "RS256"),
    "another kind": (pem(KEYS["RS256"]), "ES256"),
    "another curve": (pem(ec.generate_private_key(ec.SECP384R1())), "ES256"),
    "short": (pem(rsa.generate_private_key(65537, 1024)), "RS256"),
    "none": (pem(KEYS["RS256"]), "none"),
    "with a passphrase": (
        pem(KEYS["RS256"], encryption=BestAvailableEncryption(b"x")),
        "RS256",
    ),
}


@pytest.mark.parametrize("kind", BAD_KEYS)
async def test_a_key_that_is_none_for_the_algorithm(world: World, kind: str) -> None:
    secret, algorithm = BAD_KEYS[kind]
    await stored(world, GenericSecret(secret))

    async def plugin(credentials):
        with pytest.raises(InvalidInputError) as caught:
            await credentials["hook"].jwt({}, algorithm=algorithm)
        shown = f"{caught.value!r} {caught.value.hint} {caught.value.__context__}"
        assert secret.decode().splitlines()[0][-9:] not in shown

    await world.call(plugin, needs=(SIGN,))


# -- AWS -----------------------------------------------------------------------------

ID, KEY = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


async def test_a_url_that_is_signed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = pytest.importorskip("botocore.auth")
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    await stored(world, AwsKey(ID, KEY), origins=[ORIGIN])
    url = f"{ORIGIN}/a%20key?versionId=1"

    async def plugin(credentials):
        handle = credentials["hook"]
        where = {"region": "eu-west-1", "service": "s3", "expires_in": 60}
        there = await asyncio.to_thread(handle.sync_presign, "GET", url, **where)
        made = await handle.presign("GET", url, **where)
        assert made == there
        with pytest.raises(InvalidInputError, match="region"):
            await handle.presign("GET", url)
        with pytest.raises(InvalidInputError, match="hour"):
            await handle.presign("GET", url, expires_in=3601)
        for method, other in (("GET", "https://a.test/"), ("PUT", url), ("GET", ORIGIN + "/x")):
            with pytest.raises(RequestNotAllowedError):
                await handle.presign(method, other, **where)
        return made

    need = {**SIGN, "methods": ["GET"], "paths": ["/a%20*"]}
    made = await world.call(plugin, needs=(need,))
    now = datetime.datetime.fromtimestamp(world.clock.time(), datetime.UTC)
    monkeypatch.setattr(auth, "get_current_datetime", lambda: now)
    request = AWSRequest(method="GET", url=url)
    auth.S3SigV4QueryAuth(Credentials(ID, KEY), "s3", "eu-west-1", expires=60).add_auth(request)
    assert made == request.url
    assert audited(world)[0] == ("PRESIGN", ORIGIN)


async def test_a_request_is_signed_and_carries_no_secret(world: World) -> None:
    asked: list[httpx.Request] = []

    def service(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200)

    await stored(world, AwsKey(ID, KEY), origins=[ORIGIN], delivery="aws4:eu-west-1/s3")
    world.middleware.broker.connections._given = AsyncPool(
        httpx.MockTransport(service), queues=False
    )

    async def plugin(credentials):
        async with credentials["hook"].client() as http:
            assert (await http.put(f"{ORIGIN}/k", content=b"body")).status_code == 200

    await world.call(plugin, needs=(SIGN,))
    [sent] = asked
    assert sent.headers["authorization"].startswith(f"AWS4-HMAC-SHA256 Credential={ID}/")
    assert sent.headers["x-amz-content-sha256"] == hashlib.sha256(b"body").hexdigest()
    assert KEY not in f"{sent.url} {sent.headers.raw}"
    assert audited(world) == [("PUT", ORIGIN)]


async def test_a_key_of_aws_is_for_signatures_of_requests_only(world: World) -> None:
    await stored(world, AwsKey(ID, KEY), origins=[ORIGIN])
    assert str((await world.vault.get("hook")).delivery) == "aws4"

    async def signs(credentials):
        with pytest.raises(InvalidInputError, match="requests"):
            await credentials["hook"].sign(b"x")
        with pytest.raises(InvalidInputError, match="requests"):
            await credentials["hook"].jwt({})

    async def injects(credentials):
        async with credentials["hook"].client() as http:
            with pytest.raises(RequestNotAllowedError) as caught:
                await http.get(ORIGIN)
        assert '"sign"' in str(caught.value.hint)

    await world.call(signs, needs=(SIGN,))
    await world.vault.grant("demo", "hook", sign=True)  # the other was bound to that manifest
    await world.call(injects, needs=("hook",))


async def test_what_a_signature_shows_of_a_key_is_no_leak(world: World) -> None:
    token = "IQoJb3JpZ2luX2VjEXAMPLETOKEN0123"
    await stored(world, AwsKey(ID, KEY, token), origins=[ORIGIN], delivery="aws4:eu-west-1/s3")

    async def plugin(credentials):
        return await credentials["hook"].presign("GET", ORIGIN + "/x")

    made = await world.call(plugin, needs=(SIGN,))
    assert f"X-Amz-Credential={ID}%2F" in made
    assert f"X-Amz-Security-Token={token}&" in made
    assert world.events("leak") == []


async def test_a_user_and_a_password_can_be_a_key_of_aws(world: World) -> None:
    await stored(world, BasicAuth(ID, KEY), origins=[ORIGIN], delivery="aws4:eu-west-1/s3")

    async def plugin(credentials):
        return await credentials["hook"].presign("GET", ORIGIN + "/x")

    made = await world.call(plugin, needs=(SIGN,))
    assert f"X-Amz-Credential={ID}%2F" in made
