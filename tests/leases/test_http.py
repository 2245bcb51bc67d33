"""The secret reaches its origin and nothing else: against a real server on the loopback."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import traceback
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest
import rich.console
import rich.traceback

from apex_creds.errors import (
    AccessDeniedError,
    InvalidInputError,
    LeaseEndedError,
    RequestNotAllowedError,
)
from apex_creds.leases.http_client import open_async_client, open_client
from apex_creds.model import ApiKey, BasicAuth, GenericSecret
from apex_creds.vault import PutItem
from tests.leases.test_handles import found_from
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
        await world.vault.grant("demo", "web", scopes=["read"])
        yield made


@pytest.fixture
async def there() -> AsyncIterator[Server]:
    """Another origin."""
    async with server() as made:
        yield made


async def fetch(world: World, use, *, options=None, **need) -> object:
    async def plugin(credentials):
        async with credentials["web"].client(**(options or {})) as http:
            return await use(http)

    return await world.call(plugin, needs=({"name": "web", **need},))


def all_text(value: object) -> str:
    """Everything that an object shows of itself, two levels down."""
    shown = [repr(value), str(value)]
    for name in dir(value):
        if not name.startswith("__"):
            try:
                found = getattr(value, name)
            except Exception:
                continue
            shown += [repr(found), repr(getattr(found, "__dict__", ""))]
    return " ".join(shown)


def has_secret(*values: object) -> bool:
    encoded = base64.b64encode(SECRET.encode()).decode()
    return any(SECRET in all_text(v) or encoded[:-4] in all_text(v) for v in values)


# -- how it is sent ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delivery", "header", "value"),
    [
        ("bearer", "authorization", f"Bearer {SECRET}"),
        ("header:X-Api-Key", "x-api-key", SECRET),
        ("basic", "authorization", "Basic " + base64.b64encode(SECRET.encode()).decode()),
        ("query:api key".replace(" ", "_"), "", f"/path?a=b&api_key={SECRET}"),
    ],
)
async def test_it_is_sent_and_never_seen(
    world: World, here: Server, delivery: str, header: str, value: str
) -> None:
    await world.vault.put("web", ApiKey(SECRET), delivery=delivery)
    hooked: list[object] = []

    async def on_request(request):
        hooked.append(request)

    async def on_response(response):
        hooked.append(response)

    async def use(http):
        response = await http.get(f"{here.origin}/path", params={"a": "b"})
        assert response.text == "hello"
        assert not has_secret(response, response.request, *hooked, http)
        assert not has_secret(response.request.headers, response.request.url)
        assert found_from(response, *hooked) == set()
        return response.status_code

    hooks = {"request": [on_request], "response": [on_response]}
    assert await fetch(world, use, options={"event_hooks": hooks}) == 200
    assert len(hooked) == 2
    assert (here.header(header) if header else [here.target]) == [value]
    assert len(world.events("redeem")) == 1
    assert world.events("leak") == []


async def test_a_user_and_a_password(world: World, here: Server) -> None:
    await world.vault.delete("web")
    await world.vault.put("web", BasicAuth("älice", "pä:ss"), origins=[here.origin])
    await fetch(world, lambda http: http.get(f"{here.origin}/"))
    sent = here.header("authorization")[0].removeprefix("Basic ")
    assert base64.b64decode(sent).decode() == "älice:pä:ss"


async def test_what_the_plugin_sets_itself_is_replaced(world: World, here: Server) -> None:
    headers = {"Authorization": "Bearer mine", "authorization": "Bearer other"}
    await fetch(world, lambda http: http.get(f"{here.origin}/", headers=headers))
    assert here.header("authorization") == [f"Bearer {SECRET}"]
    await world.vault.put("web", ApiKey(SECRET), delivery="query:key")
    await fetch(world, lambda http: http.get(f"{here.origin}/?key=mine&x=1&key=other"))
    assert here.target == f"/?x=1&key={SECRET}"


async def test_a_user_in_the_url_is_refused(world: World, here: Server) -> None:
    """The URL would say that one thing is sent, and another would be."""

    async def use(http):
        for user in ("me:mine@", "me@", "127.0.0.1:1\\@"):
            with pytest.raises(RequestNotAllowedError):
                await http.get(here.origin.replace("http://", f"http://{user}"))

    await fetch(world, use)
    assert here.connections == 0
    assert world.reasons() == [("web", "request_not_allowed")] * 3


async def test_each_request_is_a_redeem(world: World, here: Server) -> None:
    async def plugin(credentials):
        handle = credentials["web"].attenuate(max_uses=2)
        async with handle.client(base_url=here.origin) as http:
            await http.post("/one", json={"a": 1})
            await http.get("/two")
            with pytest.raises(LeaseEndedError):
                await http.get("/three")

    await world.call(plugin, needs=({"name": "web"},))
    assert len(here.requests) == 2
    methods = [(event.method, event.origin) for event in world.events("redeem")]
    assert methods == [("POST", here.origin), ("GET", here.origin)]


async def test_after_the_invocation_nothing_is_sent(world: World, here: Server) -> None:
    kept = []

    async def plugin(credentials):
        kept.append(credentials["web"].client())

    await world.call(plugin, needs=({"name": "web"},))
    with pytest.raises(LeaseEndedError):
        await kept[0].get(f"{here.origin}/")
    await kept[0].aclose()
    assert here.connections == 0


async def test_a_scope(world: World, here: Server) -> None:
    for scope, allowed in (("read", True), ("write", False)):

        async def plugin(credentials, scope=scope, allowed=allowed):
            async with credentials["web"].client(scope=scope) as http:
                if allowed:
                    await http.get(f"{here.origin}/")
                    return
                with pytest.raises(AccessDeniedError):
                    await http.get(f"{here.origin}/")

        await world.call(plugin, needs=({"name": "web", "scopes": ["read"]},))
    assert len(here.requests) == 1


async def test_streamed_bodies(world: World, here: Server) -> None:
    async def use(http):
        async with http.stream("GET", f"{here.origin}/") as response:
            assert "network_stream" not in response.extensions
            return [chunk async for chunk in response.aiter_text()]

    assert await fetch(world, use) == ["hello"]


@pytest.mark.parametrize("value", ["line\nbreak", "nul\0", "ünicode", " sk-1234 "])
async def test_what_is_no_header_text_is_not_sent(
    world: World, here: Server, value: str
) -> None:
    # As an older version, or a migration, stored it.
    await world.vault.put_many([PutItem(name="web", secret=ApiKey(value), as_is=True)])

    shown = []

    async def use(http):
        with pytest.raises(InvalidInputError) as caught:
            await http.get(f"{here.origin}/")
        shown.append(everything_of(caught.value))

    await fetch(world, use)
    assert value not in shown[0]
    assert repr(value)[1:-1] not in shown[0]
    assert here.requests == []


async def test_bytes_are_sent_in_a_basic_header(world: World, here: Server) -> None:
    await world.vault.delete("web")
    await world.vault.put(
        "web", GenericSecret(b"plain"), delivery="basic", origins=[here.origin]
    )
    await fetch(world, lambda http: http.get(f"{here.origin}/"))
    assert here.header("authorization") == ["Basic " + base64.b64encode(b"plain").decode()]


# -- where it may go -----------------------------------------------------------------


async def test_where_it_may_go_is_changed_under_an_open_lease(
    world: World, here: Server, there: Server
) -> None:
    async def use(http):
        await http.get(f"{here.origin}/")
        await world.vault.edit("web", origins=[there.origin])
        with pytest.raises(RequestNotAllowedError) as caught:
            await http.get(f"{here.origin}/")
        assert f"apex-creds edit web --origin {here.origin}" in caught.value.hint

    await fetch(world, use)
    await fetch(world, lambda http: http.get(f"{there.origin}/"))
    assert (here.connections, there.connections) == (1, 1)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_no_redirect_takes_it_elsewhere(
    world: World, here: Server, there: Server, code: int
) -> None:
    here.answer = lambda head: ok(b"", f"{code} Moved", location=f"{there.origin}/x")

    async def use(http):
        with pytest.raises(RequestNotAllowedError):
            await http.get(f"{here.origin}/", follow_redirects=True)
        response = await http.get(f"{here.origin}/")
        assert not has_secret(response.next_request)

    await fetch(world, use)
    assert there.connections == 0


async def test_a_redirect_within_the_origin_is_followed(world: World, here: Server) -> None:
    moved = ok(b"", "302 Found", location="/new")
    here.answer = lambda head: moved if " /old " in head else ok(b"moved")

    async def use(http):
        response = await http.get(f"{here.origin}/old")
        assert not has_secret(response, *response.history, response.history[0].request)
        return response.text

    assert await fetch(world, use, options={"follow_redirects": True}) == "moved"
    assert len(world.events("redeem")) == 2


async def test_a_redirect_that_carries_the_secret_is_redacted(
    world: World, here: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A server may send back what it was sent; then it is the plugin's output."""
    await world.vault.put("web", ApiKey(SECRET), delivery="query:key")
    here.answer = lambda head: ok(b"", "302 Found", location=head.split(" ")[1])
    caplog.set_level(logging.DEBUG)

    async def use(http):
        response = await http.get(f"{here.origin}/")
        with pytest.raises(httpx.TooManyRedirects):
            await http.get(f"{here.origin}/", follow_redirects=True)
        return response.headers["location"]

    covered = f"/?key={'*' * len(SECRET)}"
    assert await fetch(world, use) == covered
    assert SECRET not in caplog.text
    assert covered in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:{here}/",
        "http://127.0.0.1:{there}/",
        "http://127.0.0.1/",
        "https://127.0.0.1:{here}/",
        "http://127.0.0.1:{here}@127.0.0.1:{there}/",
        "http://127.0.0.1.:{here}/",
        "http://127.1:{here}/",
        "http://[::ffff:127.0.0.1]:{here}/",
    ],
)
async def test_other_origins(world: World, here: Server, there: Server, url: str) -> None:
    async def use(http):
        with pytest.raises(RequestNotAllowedError):
            await http.get(url.format(here=here.port, there=there.port))

    await fetch(world, use)
    assert (here.connections, there.connections) == (0, 0)
    assert world.reasons() == [("web", "request_not_allowed")]


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "unix:///x", "file:///etc/passwd"])
async def test_other_schemes(world: World, here: Server, url: str) -> None:
    async def use(http):
        with pytest.raises((RequestNotAllowedError, httpx.UnsupportedProtocol)):
            await http.get(url)

    await fetch(world, use)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", ""])
async def test_a_host_header_that_is_not_the_urls(
    world: World, here: Server, host: str
) -> None:
    async def use(http):
        with pytest.raises(RequestNotAllowedError):
            await http.get(f"{here.origin}/", headers={"Host": host})
        doubled = [("Host", f"127.0.0.1:{here.port}"), ("Host", host)]
        with pytest.raises(RequestNotAllowedError):
            await http.get(f"{here.origin}/", headers=doubled)

    await fetch(world, use)
    assert here.connections == 0


async def test_methods(world: World, here: Server) -> None:
    async def use(http):
        assert (await http.get(f"{here.origin}/")).status_code == 200
        assert (await http.request("get", f"{here.origin}/")).status_code == 200
        for method in ("POST", "DELETE", "PURGE", "GETX", "GET "):
            with pytest.raises(RequestNotAllowedError):
                await http.request(method, f"{here.origin}/")

    await fetch(world, use, methods=["GET", "HEAD"])
    assert len(here.requests) == 2


@pytest.mark.parametrize(
    "method",
    ["TRACE", "trace", "TRACK", "CONNECT", "", 'GET","decision":"deny', "GET\n", "G\u00c9T"],
)
async def test_methods_that_are_never_sent(world: World, here: Server, method: str) -> None:
    """Also where all are allowed: TRACE shows the request, and the log is no target."""

    async def use(http):
        with pytest.raises((RequestNotAllowedError, UnicodeError)):
            await http.request(method, f"{here.origin}/")

    await fetch(world, use)
    assert here.connections == 0
    world.events()


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../admin", "/v1/%2e%2e/admin", "/v1/%2E%2E/admin", "/v1/.%2e/admin",
        "/v1/..;/admin",
        "/v1/..%2fadmin", "/v1/..%2Fadmin", "/v1/..%5cadmin", "/v1/..\\admin", "/v1//admin",
        "//v1/x", "/v1/x;y", "/v1/%00", "/v1", "/v1x", "/V1/x", "/admin", "/", "", "/%76%31/x",
        "/v1/./x/%2e", "/v1/?/../../admin/%2e%2e", "/admin?/v1/", "/admin#/v1/",
    ],
)  # fmt: skip
async def test_paths(world: World, here: Server, path: str) -> None:
    async def use(http):
        try:
            await http.get(f"{here.origin}{path}")
        except RequestNotAllowedError:
            return "refused"
        return "sent"

    outcome = await fetch(world, use, paths=["/v1/*"])
    if path == "/v1/?/../../admin/%2e%2e":
        assert outcome == "sent", "what is in the query is no path"
    else:
        assert (outcome, here.connections) == ("refused", 0)


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/users/7", "/v1/a?b=/../c", "/v1/%C3%A9", "/exact"]
)
async def test_paths_that_are_allowed(world: World, here: Server, path: str) -> None:
    await fetch(world, lambda http: http.get(f"{here.origin}{path}"), paths=["/v1/*", "/exact"])
    assert here.target == path


async def test_extensions_that_listen_or_redirect_are_dropped(
    world: World, here: Server, there: Server
) -> None:
    heard = []

    async def trace(name, info):
        heard.append((name, info))

    extensions = {
        "trace": trace,
        "target": b"/other",
        "sni_hostname": "evil.example",
        "timeout": {"connect": 5.0, "read": 5.0, "write": 5.0, "pool": 5.0},
    }

    async def use(http):
        return (await http.get(f"{here.origin}/path", extensions=extensions)).status_code

    assert await fetch(world, use) == 200
    assert here.target == "/path"
    assert heard == []


@pytest.mark.parametrize(
    "option",
    [
        "transport",
        "mounts",
        "proxy",
        "verify",
        "cert",
        "auth",
        "trust_env",
        "http2",
        "app",
        "x",
    ],
)
async def test_options_that_come_between_are_refused(world: World, option: str) -> None:
    async def plugin(credentials):
        for make in (credentials["key"].client, credentials["key"].sync_client):
            with pytest.raises(InvalidInputError) as caught:
                make(**{option: None})
            assert option in str(caught.value)

    await world.call(plugin)


async def test_proxies_of_the_environment_are_not_used(
    world: World, here: Server, there: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, there.origin)
    monkeypatch.delenv("NO_PROXY", raising=False)
    await fetch(world, lambda http: http.get(f"{here.origin}/"))
    assert (len(here.requests), there.connections) == (1, 0)


# -- failures ------------------------------------------------------------------------


def everything_of(error: BaseException) -> str:
    """An error as the most talkative of handlers show it: with the variables of all frames."""
    plain = "".join(
        traceback.TracebackException.from_exception(error, capture_locals=True).format()
    )
    out = io.StringIO()
    shown = rich.traceback.Traceback.from_exception(
        type(error), error, error.__traceback__, show_locals=True, locals_max_string=2000
    )
    rich.console.Console(file=out, width=400).print(shown)
    return plain + out.getvalue() + frames_of(error)


def frames_of(error: BaseException) -> str:
    """The variables of every frame that the error leads to, and what hangs on them."""
    shown, seen, ahead = [], set(), [error]
    while ahead:
        at = ahead.pop()
        if id(at) in seen or not isinstance(at, BaseException):
            continue
        seen.add(id(at))
        shown += [repr(at), str(at), repr(vars(at))]
        ahead += [at.__cause__, at.__context__]
        step = at.__traceback__
        while step is not None:
            for value in step.tb_frame.f_locals.values():
                is_headers = isinstance(getattr(value, "headers", None), httpx.Headers)
                shown.append(repr(value))
                shown.append(repr(list(value.headers.raw)) if is_headers else "")
                ahead += value if isinstance(value, tuple) else [value]
            step = step.tb_next
    return " ".join(shown)


BROKEN = {
    "hung up": b"",
    "nonsense": b"nonsense\r\n\r\n",
    "cut in the head": b"HTTP/1.1 200",
    "cut in the body": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\nX",
}


@pytest.mark.parametrize("kind", BROKEN)
async def test_broken_answers_show_no_secret(world: World, here: Server, kind: str) -> None:
    here.last_words = BROKEN[kind]
    assert await failure(world, here.origin) == "RemoteProtocolError"
    assert len(here.requests) == 1


async def test_a_time_out_shows_no_secret(world: World, here: Server) -> None:
    here.hang = asyncio.Event()
    late = httpx.Timeout(WITHIN, read=0.2)
    assert await failure(world, here.origin, timeout=late) == "ReadTimeout"


async def test_a_refused_connection_shows_no_secret(world: World, here: Server) -> None:
    await world.vault.put("web", ApiKey(SECRET), origins=["http://127.0.0.1:1"])
    assert await failure(world, "http://127.0.0.1:1") == "ConnectError"


async def failure(world: World, url: str, **options) -> object:
    """The class of the error of a request, which must show no secret."""

    async def use(http):
        with pytest.raises(httpx.RequestError) as caught:
            await http.get(f"{url}/")
        assert SECRET not in everything_of(caught.value)
        assert SECRET not in str(caught.value.request.headers.raw)
        assert found_from(caught.value.request) == set()
        return type(caught.value).__name__

    return await fetch(world, use, options=options)


async def test_a_cancelled_request_holds_no_secret(world: World, here: Server) -> None:
    here.hang = asyncio.Event()
    caught: list[BaseException] = []
    shown: list[str] = []

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            try:
                await http.get(f"{here.origin}/")
            except BaseException as error:
                caught.append(error)
                shown.append(everything_of(error))
                raise

    with world.nothing_left():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.call(plugin, needs=({"name": "web"},)))
            await here.hang.wait()
            tasks.cancel_scope.cancel()
    assert isinstance(caught[0], asyncio.CancelledError)
    assert SECRET not in shown[0]
    assert [event.outcome for event in world.events("invocation")] == ["CancelledError"]


async def test_logs_hold_no_secret(
    world: World, here: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await fetch(world, lambda http: http.get(f"{here.origin}/"))
    assert "send_request_headers" in caplog.text
    assert SECRET not in caplog.text
    assert SECRET not in repr([vars(record) for record in caplog.records])


# -- synchronous -----------------------------------------------------------------------


async def test_a_client_for_threads(world: World, here: Server, there: Server) -> None:
    seen = []
    here.answer = lambda head: (
        ok(b"", "302 Found", location=f"{there.origin}/") if " /away " in head else ok(b"hi")
    )

    def plugin(credentials):
        hooks = {"request": [seen.append], "response": [seen.append]}
        with credentials["web"].sync_client(event_hooks=hooks) as http:
            response = http.get(f"{here.origin}/")
            assert not has_secret(response, response.request, *seen)
            assert found_from(response, *seen) == set()
            with pytest.raises(RequestNotAllowedError):
                http.get(f"{here.origin}/away", follow_redirects=True)
            with http.stream("GET", f"{here.origin}/") as streamed:
                assert list(streamed.iter_text()) == ["hi"]
            here.last_words = b""
            with pytest.raises(httpx.RequestError) as caught:
                http.get(f"{here.origin}/")
            assert SECRET not in everything_of(caught.value)
            return response.text

    with world.nothing_left():
        assert await world.call(plugin, needs=({"name": "web"},)) == "hi"
    assert here.header("authorization") == [f"Bearer {SECRET}"]
    assert there.connections == 0


async def test_many_threads_at_once(world: World, here: Server) -> None:
    def plugin(credentials):
        with credentials["web"].sync_client() as http:
            return http.get(f"{here.origin}/").status_code

    results = []

    async def once():
        results.append(await world.call(plugin, needs=({"name": "web"},)))

    with world.nothing_left():
        async with anyio.create_task_group() as tasks:
            for _ in range(60):
                tasks.start_soon(once)
    assert results == [200] * 60
    assert {h for i in range(60) for h in here.header("authorization", at=i)} == {
        f"Bearer {SECRET}"
    }


@pytest.mark.parametrize("kind", [httpx.AsyncClient, httpx.Client])
async def test_a_client_without_options_is_as_httpx_makes_it(kind: type) -> None:
    open_one = {httpx.AsyncClient: open_async_client, httpx.Client: open_client}[kind]
    one = open_one("lease", None, {})
    made = kind(transport=one._transport, trust_env=False, timeout=httpx.Timeout(5, pool=60))
    assert type(one) is kind
    assert vars(one).keys() == vars(made).keys()
    for name, part in vars(made).items():
        assert vars(one)[name] == part or str(vars(one)[name]) == str(part), name


@pytest.mark.parametrize("open_one", [open_async_client, open_client])
async def test_what_one_plugin_sets_in_its_client_is_in_no_other(open_one) -> None:
    one = open_one("lease", None, {})
    one.headers["X-Mine"] = "1"
    one.cookies.set("mine", "1")
    one.event_hooks["request"].append(print)
    one.params = {"mine": "1"}
    one.timeout.read = 1.0
    one.base_url = "http://mine.example"
    one._mounts[None] = one._transport
    other = open_one("another", None, {})
    assert "X-Mine" not in other.headers
    assert not other.cookies
    assert other.event_hooks == {"request": [], "response": []}
    assert not other.params
    assert other.timeout == httpx.Timeout(5.0, pool=60.0)
    assert other.base_url == ""
    assert not other._mounts
    assert other._transport is not one._transport
