"""Installation tokens of a GitHub App, from a server that verifies the JWT as GitHub does."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from apex_creds.errors import InvalidInputError, RotatorError, RotatorRefusedError
from apex_creds.model import ApiKey, GenericSecret
from apex_creds.rotators import configure, rotator_from_uri
from apex_creds.scheduler.credential_rotation import CredentialRotation
from apex_creds.scheduler.worker import next_fire
from tests.support.github import PEM
from tests.support.rotators import parts_of, rotate
from tests.support.vaults import create

pytestmark = pytest.mark.anyio


@pytest.fixture
async def vault(tmp_path, clock, github):
    async with await create(tmp_path, clock=clock) as made:
        await made.put("gh-app", GenericSecret(PEM), origins=[github.origin])
        await made.put("gh", ApiKey("nothing yet"), origins=[github.origin])
        uri = f"github-app:{github.origin}/app/installations/7?app=42&admin=gh-app"
        await configure(made, "gh", uri=uri, grace=1e6)
        yield made


async def test_a_token_of_an_hour_is_replaced_before_it_ends(vault, github, clock):
    github.tokens["nothing yet"] = clock.now + 10
    first = (await rotate(vault, "gh"))["value"]
    info = await vault.get("gh")
    assert github.lets_in(first)
    assert info.expires == clock.now + 3600
    assert info.rotation.retires <= clock.now + 3600  # no grace is longer than the token
    rotation = CredentialRotation(vault, next_fire=next_fire)
    for _ in range(12):
        clock.now += 600
        assert await rotation.run() == 0
        assert github.lets_in((await parts_of(vault, "gh"))["value"])
    assert github.made <= 4


async def test_a_lost_token_is_revoked(vault, github, clock):
    github.tokens["nothing yet"] = clock.now + 10
    first = (await rotate(vault, "gh"))["value"]
    second = (await rotate(vault, "gh", lost=True))["value"]
    assert not github.lets_in(first)
    assert github.lets_in(second)
    assert first != second


async def test_another_key_is_refused(vault, github):
    other = rsa.generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    github.verified = lambda token: False
    await vault.put("gh-app", GenericSecret(other))
    with pytest.raises(RotatorRefusedError, match="401"):
        await rotate(vault, "gh")
    assert await parts_of(vault, "gh") == {"value": "nothing yet"}


async def test_what_is_no_key_is_refused_and_not_repeated(vault, github):
    await vault.put("gh-app", GenericSecret(b"hunter2 is no key"))
    with pytest.raises(InvalidInputError) as caught:
        await rotate(vault, "gh")
    assert "hunter2" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "answer",
    [
        (201, b""),
        (201, b"[]"),
        (201, b'{"token":7,"expires_at":"2030-01-01T00:00:00Z"}'),
        (201, b'{"token":"canary-token","expires_at":"never"}'),
        (201, b'{"token":"canary-token","expires_at":"9999-12-31T23:59:59Z"}'),
        (201, b'{"token":"canary-token","expires_at":"2001-01-01T00:00:00Z"}'),
        (201, b'{"token":"canary-token\\r\\nX: y","expires_at":"2023-11-14T23:00:00Z"}'),
        (201, b'{"token":"","expires_at":"2023-11-14T23:00:00Z"}'),
        (201, b" " * (1 << 19)),
        (500, b"canary-token"),
        (302, b"canary-token"),
        (429, b""),
    ],
)
async def test_a_hostile_answer_stores_nothing(vault, github, answer, caplog):
    github.answer = answer
    with pytest.raises(RotatorError) as caught:
        await rotate(vault, "gh")
    assert not isinstance(caught.value, RotatorRefusedError)
    assert "canary" not in f"{caught.value} {caught.value.hint} {caplog.text}"
    assert await parts_of(vault, "gh") == {"value": "nothing yet"}


@pytest.mark.parametrize(
    "uri",
    [
        "github-app:https://api.github.com?app=1&admin=x",
        "github-app:https://api.github.com/app/installations/x?app=1&admin=x",
        "github-app:https://api.github.com/app/installations/1?admin=x",
        "github-app:https://api.github.com/app/installations/1?app=1",
        "github-app:http://api.github.com/app/installations/1?app=1&admin=x",
    ],
)
def test_a_uri_that_is_not_understood(uri):
    with pytest.raises(InvalidInputError):
        rotator_from_uri(uri)
