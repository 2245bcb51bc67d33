"""JWT bearer and token exchange, at a server that checks what the RFCs say it must."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from apex_creds.errors import InvalidInputError, NeedsReconnectError, OAuthError, TokenError
from apex_creds.model import (
    ApiKey,
    Assertion,
    CredentialInfo,
    GenericSecret,
    OAuthToken,
    Rotation,
)
from apex_creds.oauth import Provider, Refresher, Way, connect
from apex_creds.oauth import refresh as refresh_module
from apex_creds.oauth.endpoints import Answer, Client
from apex_creds.oauth.flows import ACCESS_TOKEN, EXCHANGE, JWT_BEARER
from apex_creds.oauth.messages import Form
from apex_creds.vault import credential_writes
from tests.support.worlds import World

pytestmark = pytest.mark.anyio
ENDPOINT = "https://login.example.com/token"
PROVIDER = Provider(name="example", token_endpoint=ENDPOINT)


class Strict:
    """A token endpoint after RFC 7523 (section 3) and RFC 8693 (section 2.1)."""

    def __init__(self, world: World) -> None:
        self.key = ed25519.Ed25519PrivateKey.generate()
        self.world = world
        self.seen: set[str] = set()
        self.issued = 0
        self.subjects = {"subject-token"}
        self.answers: dict[str, Any] = {}

    @property
    def pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    async def post(self, url: str, form: Form, client: Client) -> Answer:
        assert url == ENDPOINT
        kind = form.get("grant_type")
        good = self._signed(form) if kind == JWT_BEARER else self._exchanged(form, client)
        if not good:
            return Answer(400, b'{"error": "invalid_grant"}')
        self.issued += 1
        answer = {
            "access_token": f"issued-{self.issued}",
            "token_type": "Bearer",
            "expires_in": 300,
        }
        if kind == EXCHANGE:
            answer["issued_token_type"] = ACCESS_TOKEN
        return Answer(200, json.dumps(answer | self.answers).encode())

    def _signed(self, form: Form) -> bool:
        signed, _, signature = form["assertion"].rpartition(".")
        head, claims = (json.loads(_decoded(part)) for part in signed.split("."))
        try:
            self.key.public_key().verify(_decoded(signature), signed.encode())
        except InvalidSignature:
            return False
        now = self.world.clock.time()
        again = claims["jti"] in self.seen
        self.seen.add(claims["jti"])
        return (
            head == {"alg": "EdDSA", "typ": "JWT", "kid": "k1"}
            and (claims["iss"], claims["sub"], claims["aud"]) == ("desk", "alice", ENDPOINT)
            and claims["iat"] <= now < claims["exp"] <= now + 600
            and not again
            and form.get("scope") == "api"
        )

    def _exchanged(self, form: Form, client: Client) -> bool:
        return (
            form.get("subject_token") in self.subjects
            and form.get("subject_token_type") == ACCESS_TOKEN
            and form.get("audience") == "https://api.example.com"
            and client.id == "desk"
        )


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.fixture
async def strict(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Strict]:
    made = Strict(world)
    monkeypatch.setattr("apex_creds.oauth.endpoints.post", made.post)
    await world.vault.put("signing", GenericSecret(made.pem))
    await world.vault.put("subject", OAuthToken("subject-token"))
    return made


SIGNED = Assertion(
    credential="signing", issuer="desk", subject="alice", key_id="k1", algorithm="EdDSA"
)
EXCHANGED = Assertion(credential="subject", audience="https://api.example.com")


async def connected(
    world: World, way: Way, assertion: Assertion | None, **options: Any
) -> CredentialInfo:
    made = await connect(
        world.vault,
        options.pop("name", "made"),
        PROVIDER,
        client_id="" if way is Way.JWT else "desk",
        way=way,
        scope="api" if way is Way.JWT else "",
        show=print,
        assertion=assertion,
        **options,
    )
    assert made.renewable
    return made.info


async def token_of(world: World, name: str = "made", principal: str = "") -> str:
    async with world.vault.open(name, principal=principal) as opened:
        return bytes(opened.view()).decode()


@pytest.mark.parametrize(("way", "assertion"), [(Way.JWT, SIGNED), (Way.EXCHANGE, EXCHANGED)])
async def test_a_token_is_issued_and_issued_anew(
    world: World, strict: Strict, way: Way, assertion: Assertion
) -> None:
    await connected(world, way, assertion)
    assert await token_of(world) == "issued-1"
    world.clock.now += 400
    info = await Refresher(world.vault, post=strict.post).ensure("made")
    assert await token_of(world) == "issued-2"
    assert info.connection is not None
    assert info.connection.assertion == assertion
    assert info.connection.outcome == "ok"


async def test_the_key_is_in_no_request(world: World, strict: Strict) -> None:
    sent: list[str] = []
    real = strict.post

    async def post(url: str, form: Form, client: Client) -> Answer:
        sent.append(str(parse_qs("&".join(f"{k}={v}" for k, v in form.items()))))
        return await real(url, form, client)

    await connected(world, Way.JWT, SIGNED)
    world.clock.now += 400
    await Refresher(world.vault, post=post).ensure("made")
    assert sent
    assert "PRIVATE" not in str(sent)
    used = [e for e in world.events("rotation") if e.credential == "signing"]
    assert [event.action for event in used] == ["connect", "refresh"]


async def test_the_token_that_is_exchanged_is_renewed_first(
    world: World, strict: Strict
) -> None:
    """And what can't be renewed is not exchanged in hope."""
    await connected(world, Way.JWT, SIGNED, name="first")
    strict.subjects = {"issued-1", "issued-3"}
    again = Assertion(credential="first", audience="https://api.example.com")
    with pytest.raises(InvalidInputError, match="itself issued"):
        await connected(world, Way.EXCHANGE, again)
    info = await world.vault.get("first")
    assert info.connection is not None
    # As one that a person connected.
    plain = refresh_module.msgspec.structs.replace(
        info.connection, assertion=None, grant="client_credentials"
    )
    await world.vault.note_connection(info, plain)
    real = strict.post

    async def post(url: str, form: Form, client: Client) -> Answer:
        if form["grant_type"] == "client_credentials":
            strict.issued += 1
            body = {"access_token": f"issued-{strict.issued}", "expires_in": 300}
            return Answer(200, json.dumps(body).encode())
        return await real(url, form, client)

    await connected(world, Way.EXCHANGE, again)
    world.clock.now += 400
    strict.subjects = {"issued-3"}  # the renewed one, and not the expired
    await Refresher(world.vault, post=post).ensure("made")
    assert await token_of(world, "first") == "issued-3"
    assert await token_of(world) == "issued-4"


@pytest.mark.parametrize(
    ("way", "assertion"),
    [
        (Way.JWT, None),
        (Way.EXCHANGE, None),
        (Way.JWT, Assertion(credential="signing")),
        (Way.JWT, Assertion(credential="key", issuer="desk", subject="alice")),
        (Way.JWT, Assertion(credential="signing", issuer="desk", subject="alice")),  # no RSA
        (Way.EXCHANGE, Assertion(credential="made")),
        (Way.EXCHANGE, Assertion(credential="subject", principal="bob")),
    ],
)
async def test_what_can_not_be_asserted_is_refused(
    world: World, strict: Strict, way: Way, assertion: Assertion | None
) -> None:
    with pytest.raises(InvalidInputError):
        await connected(world, way, assertion)
    assert strict.issued == 0
    assert "made" not in [info.name for info in await world.vault.list()]


async def test_a_wrong_key_is_refused_by_the_server(world: World, strict: Strict) -> None:
    strict.key = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(OAuthError) as caught:
        await connected(world, Way.JWT, SIGNED)
    assert caught.value.code == "invalid_grant"


async def test_what_is_issued_must_be_an_access_token(world: World, strict: Strict) -> None:
    for answers in (
        {"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"issued_token_type": 5},
        {"token_type": "N_A"},
    ):
        strict.answers = answers
        with pytest.raises(OAuthError):
            await connected(world, Way.EXCHANGE, EXCHANGED)


async def test_a_key_that_is_gone_needs_a_person(world: World, strict: Strict) -> None:
    await connected(world, Way.JWT, SIGNED)
    await world.vault.delete("signing")
    world.clock.now += 400
    with pytest.raises(NeedsReconnectError):
        await Refresher(world.vault, post=strict.post).ensure("made")
    info = await world.vault.get("made")
    assert info.connection is not None
    assert info.connection.outcome == "no_assertion"


async def test_a_principals_token_is_exchanged_for_that_one_only(
    world: World, strict: Strict
) -> None:
    await world.vault.put("subject", OAuthToken("alices-own-token"), principal="alice")
    await world.vault.put("subject", ApiKey("of-another-kind"), principal="carol")
    strict.subjects = {"alices-own-token"}
    own = Assertion(credential="subject", principal="alice", audience="https://api.example.com")
    await connected(world, Way.EXCHANGE, own, principal="alice")
    assert await token_of(world, principal="alice") == "issued-1"
    for principal in ("", "bob"):
        with pytest.raises(InvalidInputError, match="somebody else"):
            await connected(world, Way.EXCHANGE, own, principal=principal)


async def test_a_subject_that_is_replaced_at_its_provider_is_waited_for(
    world: World, strict: Strict
) -> None:
    """Its value has ended, but another one comes: nobody has to connect again."""
    vault, now = world.vault, world.clock.time()
    await vault.put("subject", OAuthToken("subject-token"), expires=now + 60)
    await connected(world, Way.EXCHANGE, EXCHANGED)
    info = await vault.get("subject")
    made = Rotation(rotator="fake:https://api.example.com", since=info.version, changed=now)
    await credential_writes.edit(
        vault.store,
        "oauth_tokens",
        "subject",
        credential_writes.Edit(rotation=made),
        clock=vault.clock,
    )
    world.clock.now += 400
    with pytest.raises(TokenError, match="being replaced") as caught:
        await Refresher(vault, post=strict.post).ensure("made")
    assert not isinstance(caught.value, NeedsReconnectError)
    await vault.edit("subject", expires=world.clock.now + 600)
    await Refresher(vault, post=strict.post).ensure("made")
    assert await token_of(world) == "issued-2"
