"""A provider that takes connections and never answers: it holds up nobody else, and ends."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from apex_creds import outbound
from apex_creds.errors import OAuthUnreachableError, TokenError
from apex_creds.model import ApiKey, Connection, GenericSecret, OAuthToken
from apex_creds.oauth import Refresher
from apex_creds.oauth.endpoints import Answer
from apex_creds.rotators import Rotations, configure
from tests.support.github import PEM, GitHub
from tests.support.http_servers import serving
from tests.support.rotators import parts_of
from tests.support.vaults import create

pytestmark = pytest.mark.anyio


@pytest.fixture
def silent():
    """A server that accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


async def put(vault, name, origin):
    await vault.put(f"{name}-app", GenericSecret(PEM), origins=[origin])
    await vault.put(name, ApiKey("first"), origins=[origin])
    uri = f"github-app:{origin}/app/installations/7?app=42&admin={name}-app"
    await configure(vault, name, uri=uri)


async def test_a_rotation_elsewhere_does_not_wait_for_it(tmp_path, clock):
    tested = threading.Event()
    slow, good = GitHub(clock), GitHub(clock)

    def answers_last(asked, body):
        tested.wait(60)
        return slow.respond(asked, body)

    def answers(asked, body):
        reply = good.respond(asked, body)
        if asked.command == "GET":
            tested.set()
        return reply

    with serving(answers_last) as first, serving(answers) as second:
        async with await create(tmp_path, clock=clock) as vault:
            for name, server in (("a", first), ("b", second)):
                await put(vault, name, server.origin)
            rotations = Rotations(vault)
            for name in ("a", "b"):
                await rotations.ask(name)
            assert await rotations.run_due() == 0  # the first one was still waited for
            assert slow.lets_in((await parts_of(vault, "a"))["value"])
            assert good.lets_in((await parts_of(vault, "b"))["value"])


async def test_it_has_a_deadline_and_then_waits_its_turn(tmp_path, clock, silent, monkeypatch):
    monkeypatch.setattr(outbound, "_SECONDS", 0.2)
    async with await create(tmp_path, clock=clock) as vault:
        rotations = Rotations(vault)
        for name in ("a", "b"):
            await put(vault, name, silent)
            await rotations.ask(name)
        assert await rotations.run_due() == 1
        assert await outcomes(vault) == {"a": "unreachable", "b": ""}  # that is not even asked
        assert await rotations.run_due() == 2  # its turn, as the first one pauses
        await vault.edit("a", expires=clock.now - 1)
        with pytest.raises(TokenError, match="a moment ago"):
            await rotations.ensure("a")
        clock.now += 10
        with pytest.raises(TokenError, match="did not answer"):
            await rotations.ensure("a")


async def outcomes(vault):
    return {each.name: each.rotation.outcome for each in await vault.list() if each.rotation}


async def test_a_refresh_elsewhere_does_not_wait_for_it(tmp_path, clock):
    renewed = asyncio.Event()

    async def post(url, form, client):
        if "a.example" in url:
            async with asyncio.timeout(20):
                await renewed.wait()
        else:
            renewed.set()
        return Answer(
            200, b'{"access_token": "new", "token_type": "Bearer", "expires_in": 600}'
        )

    async with await create(tmp_path, clock=clock) as vault:
        for name in ("a", "b"):
            info = await vault.put(
                name, OAuthToken("old", refresh_token="r", expires_at=clock.now)
            )
            made = Connection(
                provider=name, token_endpoint=f"https://{name}.example/token", client_id="c"
            )
            token = OAuthToken("old", refresh_token="r", expires_at=clock.now)
            await vault.renew(info, token, connection=made)
        assert await Refresher(vault, post=post).renew_due() == 0
        assert [(await parts_of(vault, name))["access"] for name in ("a", "b")] == ["new"] * 2


async def test_of_many_at_one_provider_one_is_asked_in_a_round(tmp_path, clock):
    asked = []

    async def post(url, form, client):
        asked.append(form["refresh_token"])
        raise OAuthUnreachableError("No answer came.", sent=False)

    async with await create(tmp_path, clock=clock) as vault:
        for number in range(5):
            token = OAuthToken("old", refresh_token=str(number), expires_at=clock.now)
            info = await vault.put(f"t{number}", token)
            made = Connection(
                provider="p", token_endpoint="https://a.example/token", client_id="c"
            )
            await vault.renew(info, token, connection=made)
        refresher = Refresher(vault, post=post)
        for _ in range(5):
            assert await refresher.renew_due() == 0
        assert asked == ["0", "1", "2", "3", "4"]  # and in the next round another one
