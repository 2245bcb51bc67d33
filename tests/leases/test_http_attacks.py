"""What a red team found in the transports, each as a test that stays."""

from __future__ import annotations

import asyncio
import re
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from types import FrameType, FunctionType, ModuleType

import anyio
import httpx
import pytest

from apex_creds.errors import RequestNotAllowedError
from apex_creds.leases.connection_pool import _AT_ONCE, Key
from apex_creds.model import ApiKey
from tests.support.loopback import Server, ok, server
from tests.support.loops import WITHIN
from tests.support.worlds import World

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

    with anyio.fail_after(WITHIN):
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
        "/v1/..%3b/admin",
        "/v1/..%3B/x",
        "/v1/..%20/admin",
        "/v1/%20%2e%2e/admin",
        "/v1/..%23/admin",
        "/v1/..%3f/admin",
        "/v1/x%3fy",
        "/v1/..%26/x",
        "/v1/%ef%bc%8e%ef%bc%8e/admin",
        "/v1/%e2%80%a5/admin",
        "/v1/\uff0e\uff0e/admin",
        "/v1/..%c2%a0/admin",
        "/v1/.../admin",
        "/v1/.%20/admin",
        "/v1/x%ef%bc%8fadmin",
        "/v1/x%e2%88%95admin",
        "/v1/x%ef%bc%bcadmin",
        "/v1/%%32%65%%32%65/admin",
        "/v1/%ef%bc%852e%ef%bc%852e/admin",
        "/v1/%ff",
        "/v1/%",
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
        with anyio.fail_after(WITHIN):
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
    key = Key("demo", (await world.vault.find("web")).info.id)
    pool = await world.middleware.broker.connections.here(key)
    assert [str(origin) for origin in pool._places] == [here.origin]


# -- what a server may take for another request ----------------------------------------------

SMUGGLED = b"POST /notes HTTP/1.1\r\nHost: x\r\nContent-Length: 400\r\n\r\n"


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PURGE", "LOCK"])
@pytest.mark.parametrize("how", ["bytes", "chunks", "length", "form", "file"])
async def test_a_body_where_servers_expect_none_is_refused(
    world: World, here: Server, method: str, how: str
) -> None:
    async def chunks():
        yield SMUGGLED

    body = {
        "bytes": {"content": SMUGGLED},
        "chunks": {"content": chunks()},
        "length": {"headers": {"Content-Length": "5"}},
        "form": {"data": {"a": "b"}},
        "file": {"files": {"a": SMUGGLED}},
    }[how]

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            with pytest.raises(RequestNotAllowedError):
                await http.request(method, f"{here.origin}/v1/a", **body)

    def in_thread(credentials):
        with credentials["web"].sync_client() as http, pytest.raises(RequestNotAllowedError):
            http.request(method, f"{here.origin}/v1/a", **{**body, **_sync(body)})

    await world.call(plugin, needs=({"name": "web"},))
    await world.call(in_thread, needs=({"name": "web"},))
    assert here.connections == 0
    assert world.reasons() == [("web", "request_not_allowed")] * 2


def _sync(body: dict[str, object]) -> dict[str, object]:
    return {"content": iter([SMUGGLED])} if hasattr(body.get("content"), "asend") else {}


async def test_a_stream_without_a_length_is_not_sent_with_a_get(
    world: World, here: Server
) -> None:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            request = http.build_request("GET", f"{here.origin}/v1/a")
            request.stream = httpx.ByteStream(SMUGGLED)
            await http.send(request)
            await http.get(f"{here.origin}/v1/b")

    await world.call(plugin, needs=(NEED,))
    assert [head.split(" ")[1] for head in here.requests] == ["/v1/a", "/v1/b"]


async def test_a_connection_after_a_body_that_few_servers_read_is_not_used_again(
    world: World, here: Server
) -> None:
    """This server reads no bodies: what is left would be the next request."""
    here.answer = lambda head: ok(b"", connection="close") if "close" in head else ok(b"")

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            await http.request("PROPFIND", f"{here.origin}/v1/a", content=b"<x/>")
            await http.get(f"{here.origin}/v1/b")

    await world.call(plugin, needs=({"name": "web"},))
    assert here.header("connection", at=0) == ["close"]
    assert here.connections == 2
    assert here.target == "/v1/b"


async def test_what_a_plugin_leaves_in_a_connection_is_not_before_anothers_request(
    world: World, here: Server
) -> None:
    """This server reads no bodies, so that the second plugin's request would be in one."""
    await world.vault.put("own", ApiKey("the-attackers-own"), origins=[here.origin])
    await world.vault.grant("attacker", "own")
    await world.vault.grant("attacker", "web")

    async def attacker(credentials):
        for name in credentials:
            async with credentials[name].client() as http:
                await http.post(f"{here.origin}/v1/a", content=SMUGGLED.rstrip() + b"\r\nX: ")

    async def victim(credentials):
        async with credentials["web"].client() as http:
            return (await http.get(f"{here.origin}/v1/b")).status_code

    needs = ({"name": "own"}, {"name": "web"})
    await world.call(attacker, needs=needs, plugin="attacker")
    assert await world.call(victim, needs=({"name": "web"},)) == 200
    assert here.requests[-1].startswith("GET /v1/b HTTP/1.1\r\n")
    assert here.header("authorization") == [f"Bearer {SECRET}"]
    assert here.connections == 3


# -- where a plugin's code runs -----------------------------------------------------------


def frames_above() -> str:
    """All that the frames above the caller hold which send a request, and what hangs on it."""
    shown, frame = [], sys._getframe(1)
    while frame is not None:
        package = frame.f_globals["__name__"].partition(".")[0]
        sends = package in ("apex_creds", "httpx", "httpcore", "h11", "anyio")
        for value in frame.f_locals.values() if sends else []:
            headers = getattr(value, "headers", None)
            shown += [repr(value), repr(getattr(headers, "raw", headers))]
        frame = frame.f_back
    return " ".join(shown)


async def test_a_body_is_read_where_no_frame_has_the_secret(world: World, here: Server) -> None:
    seen: list[str] = []

    class Lying(bytes):
        def __len__(self):
            seen.append(frames_above())
            return super().__len__()

    async def body():
        seen.append(frames_above())
        yield Lying(b"chunk")

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            await http.post(f"{here.origin}/v1/a", content=body())
            await http.post(f"{here.origin}/v1/a", content=Lying(b"whole"))

    def in_thread(credentials):
        def chunks():
            seen.append(frames_above())
            yield Lying(b"chunk")

        with credentials["web"].sync_client() as http:
            http.post(f"{here.origin}/v1/b", content=chunks())

    await world.call(plugin, needs=({"name": "web"},))
    await world.call(in_thread, needs=({"name": "web"},))
    assert len(seen) >= 2
    assert not [shown for shown in seen if SECRET in shown]
    assert sum(SECRET in head for head in here.requests) == 3


async def test_what_a_body_raises_is_raised(world: World, here: Server) -> None:
    async def body():
        yield b"x"
        raise LookupError("no more")

    def chunks():
        yield b"x"
        raise LookupError("no more")

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            with pytest.raises(LookupError, match="no more"):
                await http.post(f"{here.origin}/v1/a", content=body())

    def in_thread(credentials):
        with (
            credentials["web"].sync_client() as http,
            pytest.raises(LookupError, match="no more"),
        ):
            http.post(f"{here.origin}/v1/a", content=chunks())

    await world.call(plugin, needs=({"name": "web"},))
    await world.call(in_thread, needs=({"name": "web"},))


async def test_an_open_response_leads_to_no_secret(world: World, here: Server) -> None:
    """Nor does one of another request of the same plugin that is still being sent."""

    async def plugin(credentials):
        async with (
            credentials["web"].client() as http,
            http.stream("GET", f"{here.origin}/v1/a") as response,
        ):
            assert not [text for text in reachable(response) if SECRET in text]

    def in_thread(credentials):
        with (
            credentials["web"].sync_client() as http,
            http.stream("GET", f"{here.origin}/v1/a") as response,
        ):
            assert not [text for text in reachable(response) if SECRET in text]

    await world.call(plugin, needs=(NEED,))
    await world.call(in_thread, needs=(NEED,))


def reachable(root: object) -> list[str]:
    """Every text that attributes and containers lead to."""
    seen, ahead, found = set(), [root], []
    while ahead:
        at = ahead.pop()
        if id(at) in seen or isinstance(at, (ModuleType, type, FunctionType, FrameType)):
            continue
        seen.add(id(at))
        if isinstance(at, (str, bytes)):
            found.append(str(at))
        elif isinstance(at, dict):
            ahead += [*at.keys(), *at.values()]
        elif isinstance(at, (list, tuple, set, frozenset)):
            ahead += at
        else:
            slots = [n for c in type(at).__mro__ for n in getattr(c, "__slots__", ())]
            names = [*slots, *getattr(at, "__dict__", {})]
            ahead += [getattr(at, name, None) for name in names]
    return found


# -- what names another request -----------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "X_HTTP_Method_Override", "x_http_method", "X.HTTP.Method.Override", "X-Method",
        "X_Original_URL", "X_Forwarded_Host", "X-Host", "X-Original-Host", "X-Real-Host",
        "X-Override-URL", "X-HTTP-DestinationURL", "Destination", "Base-Url", "Request-Uri",
        "X-Original-URI", "X-Rewrite-URI", "X-Forwarded", "X-Envoy-Original-Path",
        "Content_Length", "Transfer_Encoding", "Content.Length", "HOST_", "X Y", "X:Y", "",
        "X-HTTP-Host-Override", "Proxy-Host", "Front(End)",
    ],
)  # fmt: skip
async def test_names_of_headers_that_mean_another_request(
    world: World, here: Server, name: str
) -> None:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            with pytest.raises(RequestNotAllowedError):
                await http.get(f"{here.origin}/v1/a", headers={name.encode(): b"5"})

    await world.call(plugin, needs=(NEED,))
    assert here.requests == []


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\0", "\u00e9", "a\x7f", "a\x1b[2J"])
async def test_values_of_headers_that_mean_another_request(
    world: World, here: Server, value: str
) -> None:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            with pytest.raises(RequestNotAllowedError):
                await http.get(f"{here.origin}/v1/a", headers={b"X-A": value.encode()})

    await world.call(plugin, needs=(NEED,))
    assert here.requests == []


@pytest.mark.parametrize(
    "name", ["X-Stainless-Helper-Method", "X-Request-Id", "Accept", "Idempotency-Key", "X_Id"]
)
async def test_headers_that_services_ask_for_pass(
    world: World, here: Server, name: str
) -> None:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            await http.get(f"{here.origin}/v1/a", headers={name: "x"})

    await world.call(plugin, needs=(NEED,))
    assert here.header(name) == ["x"]


@pytest.mark.parametrize(
    "name", ["X-Api-Key", "x-api-key", "X_Api_Key", "x_API-key", "X.Api.Key"]
)
async def test_the_credentials_own_header_is_sent_once(
    world: World, here: Server, name: str
) -> None:
    await world.vault.put("web", ApiKey(SECRET), delivery="header:X-Api-Key")

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            await http.get(f"{here.origin}/v1/a", headers={name: "mine"})

    await world.call(plugin, needs=(NEED,))
    assert here.header("x-api-key") == [SECRET]
    assert "mine" not in here.requests[-1]


@pytest.mark.parametrize("name", ["key", "k%65y", "%6b%65%79"])
async def test_the_credentials_own_parameter_is_sent_once(
    world: World, here: Server, name: str
) -> None:
    await world.vault.put("web", ApiKey(SECRET), delivery="query:key")

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            await http.get(f"{here.origin}/v1/a?{name}=mine&a=b")

    await world.call(plugin, needs=(NEED,))
    assert here.target == f"/v1/a?a=b&key={SECRET}"


@pytest.mark.parametrize("query", ["_method=DELETE", "a=b&_METHOD=DELETE", "%5Fmethod=PUT",
    "a;_method=PUT", "_HttpMethod=PATCH", "X-HTTP-Method-Override=PUT"])  # fmt: skip
async def test_parameters_that_mean_another_method(
    world: World, here: Server, query: str
) -> None:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            with pytest.raises(RequestNotAllowedError):
                await http.get(f"{here.origin}/v1/a?{query}")

    await world.call(plugin, needs=(NEED,))
    assert here.requests == []


# -- what a server sends back -------------------------------------------------------------

ECHOES = {
    "reason": lambda s: f"HTTP/1.1 401 bad {s}\r\ncontent-length: 0\r\n\r\n".encode(),
    "name": lambda s: f"HTTP/1.1 200 OK\r\nx-{s}: 1\r\ncontent-length: 0\r\n\r\n".encode(),
    "value": lambda s: ok(b"", x_echo=s),
    "large": lambda s: ok(b"", x_echo=s.upper()),
    "hex": lambda s: ok(b"", x_echo=s.encode().hex().upper()),
    "base64": lambda s: ok(b"", x_echo=b64encode(s.encode()).decode()),
    "base64, one": lambda s: ok(b"", x_echo=b64encode(b"u:" + s.encode()).decode()),
    "base64, two": lambda s: ok(b"", x_echo=b64encode(b"k" + s.encode() + b"!").decode()),
    "cookie": lambda s: ok(b"", set_cookie=f"t={s}"),
}


@pytest.mark.parametrize("how", ECHOES)
async def test_a_head_that_repeats_the_secret(world: World, here: Server, how: str) -> None:
    here.answer = lambda head: ECHOES[how](head.split("Bearer ")[1].split("\r\n")[0])
    answer = here.answer(f"Bearer {SECRET}\r\n").lower()

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            response = await http.get(f"{here.origin}/v1/a")
            return [response.reason_phrase, dict(http.cookies), response.headers.multi_items()]

    seen = str(await world.call(plugin, needs=(NEED,))).lower()
    words = {word.decode() for word in re.split(rb"[\s=]", answer) if len(word) > 12}
    told = [word for word in words if word != "content-length:"]
    assert told
    assert not [word for word in told if word in seen]
