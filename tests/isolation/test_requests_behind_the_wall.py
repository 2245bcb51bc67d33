"""What a plugin sends goes through the host, by handles and by the SDKs that it has."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from apex_creds import AccessDeniedError, CredentialMiddleware
from apex_creds.errors import RequestNotAllowedError
from apex_creds.isolation.dialing import Dialer
from apex_creds.isolation.runner import IsolatedRunner
from apex_creds.model import ApiKey
from tests.isolation.everyday_plugin import everyday, world
from tests.support.vendor import SECRET, Vendor, vendor
from tests.support.worlds import World

pytestmark = pytest.mark.anyio
__all__ = ["world"]

NEEDS = ({"name": "key"},)


@pytest.fixture
async def service(world: World) -> AsyncIterator[Vendor]:
    async with vendor() as made:
        await made.allow(world, "key")
        yield made


async def test_a_client_whose_requests_the_host_sends(world: World, service: Vendor) -> None:
    status, text = await world.call(everyday("get"), service.origin, needs=NEEDS)
    assert status == 200
    assert SECRET not in text
    (request,) = service.requests
    assert request[:2] == ("GET", "/hello?q=1")
    assert request[2]["authorization"] == f"Bearer {SECRET}"
    assert [event.method for event in world.events("redeem")] == ["GET"]


async def test_in_a_thread_and_with_a_body_in_pieces(world: World, service: Vendor) -> None:
    assert await world.call(everyday("get_in_thread"), service.origin, needs=NEEDS) == 200
    await world.call(everyday("upload"), service.origin, needs=NEEDS)
    assert service.requests[-1][3] == b"one two"


async def test_an_answer_that_has_the_secret_is_covered(world: World, service: Vendor) -> None:
    service.echoes = True
    _, text = await world.call(everyday("get"), service.origin, needs=NEEDS)
    assert SECRET not in text
    assert [event.credential for event in world.events("leak")] == ["key"]


async def test_another_origin_is_refused_before_a_byte_leaves(
    world: World, service: Vendor
) -> None:
    with pytest.raises((RequestNotAllowedError, AccessDeniedError)):
        await world.call(everyday("get"), "http://127.0.0.1:9", needs=NEEDS)
    assert not service.requests


async def test_a_server_that_is_not_there_is_the_library_s_own_error(
    world: World, service: Vendor
) -> None:
    await world.vault.put("gone", ApiKey("x" * 20), origins=["http://127.0.0.1:9"])
    await world.vault.grant("demo", "gone")
    with pytest.raises(Exception, match="ConnectError"):
        await world.call(everyday("get_gone"), needs=({"name": "gone"},))


async def test_the_adapters_of_sdks(world: World, service: Vendor) -> None:
    service.answer = lambda *_: {"object": "list", "data": [{"id": "m1", "object": "model"}]}
    found = await world.call(everyday("by_sdk"), service.origin, "key", needs=NEEDS)
    assert found == ["m1"]
    assert service.requests[-1][2]["authorization"] == f"Bearer {SECRET}"


async def test_an_unmodified_sdk_has_a_placeholder_and_the_gateway(
    world: World, service: Vendor
) -> None:
    service.answer = lambda *_: {"object": "list", "data": [{"id": "m1", "object": "model"}]}
    await service.allow(world, "OPENAI_API_KEY")
    runner = IsolatedRunner(dialer=Dialer())
    async with CredentialMiddleware(world.vault, isolation=runner) as middleware:
        world.middleware, before = middleware, world.middleware
        try:
            needs = ({"name": "OPENAI_API_KEY"},)
            for _ in range(2):
                key, found = await world.call(everyday("unmodified"), needs=needs)
                assert found == ["m1"]
                assert key.startswith("sk-proj-")
        finally:
            world.middleware = before
    assert SECRET not in key
    assert service.requests[-1][2]["authorization"] == f"Bearer {SECRET}"
    assert [event.method for event in world.events("redeem")] == ["GET", "GET"]
