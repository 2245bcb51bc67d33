"""Connecting to a real authorization server: a browser, a device, a program; and ending it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import httpx
import pytest

from apex_creds.errors import CredentialExistsError, InvalidInputError, OAuthError
from apex_creds.model import ApiKey, ConnectionState, OAuthToken, Origin
from apex_creds.oauth import Provider, Way, connect, disconnect, flows
from apex_creds.oauth.endpoints import Client
from apex_creds.storage.base import Leads
from tests.support.oidc import Server, person
from tests.support.worlds import World

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
SCOPE = "openid offline_access api"
HERE = Origin.parse("http://127.0.0.1:9")
SECRET = "robot-secret-of-the-tests"


def somebody(says: str = "yes") -> Callable[[str], None]:
    """A person who follows what is shown."""

    def show(url: str) -> None:
        threading.Thread(target=person, args=(url,), kwargs={"says": says}, daemon=True).start()

    return show


@pytest.fixture
def revoked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that the server was asked to revoke."""
    tokens, real = list[str](), flows.revoke

    async def revoke(endpoint: str, token: str, client: Client, *, hint: str) -> None:
        tokens.append(token)
        await real(endpoint, token, client, hint=hint)

    monkeypatch.setattr(flows, "revoke", revoke)
    return tokens


@pytest.mark.parametrize("way", [Way.BROWSER, Way.DEVICE])
async def test_a_person_connects(world: World, provider: Provider, way: Way) -> None:
    made = await connect(
        world.vault,
        "calendar",
        provider,
        client_id="desk",
        way=way,
        scope=SCOPE,
        origins=[HERE],
        show=somebody(),
    )
    assert made.renewable
    connection = made.info.connection
    assert connection is not None
    assert connection.state is ConnectionState.CONNECTED
    assert made.info.expires == world.clock.time() + 600
    assert made.info.origins == (HERE,)
    async with world.vault.open("calendar") as opened:
        assert set(opened.names) == {"access", "refresh"}
    assert await disconnect(world.vault, "calendar")
    assert "calendar" not in [info.name for info in await world.vault.list()]


async def test_a_program_connects(world: World, provider: Provider) -> None:
    await world.vault.put("robot-secret", ApiKey(SECRET))
    made = await connect(
        world.vault,
        "robot",
        provider,
        client_id="robot",
        client_secret="robot-secret",
        way=Way.CLIENT,
        scope="api",
        show=lambda _: pytest.fail("nobody is asked"),
    )
    assert made.renewable
    assert made.info.connection is not None
    assert made.info.connection.client_secret == "robot-secret"


async def test_a_person_says_no(world: World, provider: Provider) -> None:
    with pytest.raises(OAuthError) as caught:
        await connect(world.vault, "calendar", provider, client_id="desk", show=somebody("no"))
    assert caught.value.code == "access_denied"
    assert "calendar" not in [info.name for info in await world.vault.list()]


async def test_nobody_answers(provider: Provider) -> None:
    with pytest.raises(OAuthError, match="in time"):
        await flows.authorize_in_browser(
            provider, Client(id="desk"), show=lambda _: None, seconds=0.0
        )


async def test_what_others_send_to_the_redirect_changes_nothing(provider: Provider) -> None:
    refused: list[int] = []

    def show(url: str) -> None:
        def attack_then_allow() -> None:
            redirect = httpx.URL(url).params["redirect_uri"]
            state = httpx.URL(url).params["state"]
            with httpx.Client(trust_env=False) as other:
                for query, headers, method in (
                    ("?code=evil&state=guess", {}, "GET"),
                    ("?error=access_denied&state=guess", {}, "GET"),
                    ("?code=evil", {}, "GET"),
                    (f"?code=evil&state={state}", {"host": "evil.test"}, "GET"),
                    (f"?code=evil&state={state}", {}, "POST"),
                    (f"x?code=evil&state={state}", {}, "GET"),
                ):
                    answer = other.request(method, redirect + query, headers=headers)
                    refused.append(answer.status_code)
            person(url)

        threading.Thread(target=attack_then_allow, daemon=True).start()

    tokens = await flows.authorize_in_browser(
        provider, Client(id="desk"), scope=SCOPE, show=show
    )
    assert tokens.access
    assert refused == [400] * 6


async def test_the_name_of_another_credential_is_not_taken(
    world: World, provider: Provider
) -> None:
    with pytest.raises(CredentialExistsError):
        await connect(
            world.vault, "key", provider, client_id="desk", show=lambda _: pytest.fail("asked")
        )


async def test_what_is_not_connected_is_not_disconnected(world: World) -> None:
    with pytest.raises(InvalidInputError):
        await disconnect(world.vault, "key")


async def test_tokens_are_revoked_at_the_server(
    world: World, provider: Provider, server: Server
) -> None:
    await connect(world.vault, "mail", provider, client_id="desk", scope=SCOPE, show=somebody())
    async with world.vault.open("mail") as opened:
        refresh = bytes(opened.view("refresh")).decode()
    await disconnect(world.vault, "mail")
    form = {"grant_type": "refresh_token", "refresh_token": refresh, "client_id": "desk"}
    answer = httpx.post(f"{server.issuer}/token", data=form, trust_env=False)
    assert answer.json()["error"] == "invalid_grant"


async def test_what_is_stored_meanwhile_under_the_name_stays(
    world: World, provider: Provider, revoked: list[str]
) -> None:
    """A person has minutes to say yes; the token that nobody keeps is revoked."""
    allow, loop = somebody(), asyncio.get_running_loop()
    put = world.vault.put("mail", ApiKey("somebody-else's"))

    def show(url: str) -> None:
        def store_then_allow() -> None:
            asyncio.run_coroutine_threadsafe(put, loop).result()
            allow(url)

        threading.Thread(target=store_then_allow, daemon=True).start()

    with pytest.raises(CredentialExistsError):
        await connect(world.vault, "mail", provider, client_id="desk", scope=SCOPE, show=show)
    async with world.vault.open("mail") as opened:
        assert bytes(opened.view()) == b"somebody-else's"
    assert len(revoked) == 2


async def test_what_a_refresh_stores_meanwhile_is_revoked(
    world: World, provider: Provider, revoked: list[str]
) -> None:
    made = await connect(
        world.vault, "mail", provider, client_id="desk", scope=SCOPE, show=somebody()
    )
    storage, connection = world.vault.store.storage, made.info.connection
    assert isinstance(storage, Leads)
    assert connection is not None
    async with storage.leader(f"refresh_{made.info.id}") as lead:
        assert lead
        ending = asyncio.create_task(disconnect(world.vault, "mail"))
        await asyncio.sleep(0)
        new = OAuthToken("new-access", refresh_token="new-refresh")
        await world.vault.renew(made.info, new, connection=connection)
    assert await ending
    assert revoked == ["new-refresh", "new-access"]


async def test_nobody_refreshes_what_is_being_revoked(
    world: World, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await connect(
        world.vault, "mail", provider, client_id="desk", scope=SCOPE, show=somebody()
    )
    storage, seen = world.vault.store.storage, []
    assert isinstance(storage, Leads)

    async def revoke(*_: object, hint: str) -> None:
        async with storage.leader(f"refresh_{made.info.id}") as lead:
            seen.append((hint, bool(lead)))

    monkeypatch.setattr(flows, "revoke", revoke)
    await disconnect(world.vault, "mail")
    assert seen == [("refresh_token", False), ("access_token", False)]
