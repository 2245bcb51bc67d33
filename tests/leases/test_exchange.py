"""The sending step by itself: several credentials, and a search of what comes back."""

from __future__ import annotations

import json
from base64 import b64encode
from urllib.parse import quote, quote_plus, urlencode

import httpx
import pytest

from apex_creds.errors import (
    ApexCredsError,
    InvalidInputError,
    RequestNotAllowedError,
    StorageError,
)
from apex_creds.leases.exchange import exchange, exchange_blocking
from apex_creds.leases.http_messages import Request, SendFailure
from apex_creds.model import ApiKey
from tests.support.loopback import Server, ok, server
from tests.support.worlds import World

pytestmark = pytest.mark.anyio


class Failed(Exception):
    """What a library would raise."""


def asked(here: Server, **changes: object) -> Request:
    def say(failure: SendFailure) -> Exception:
        return Failed(failure)

    values = {
        "method": "GET",
        "url": f"{here.origin}/v1",
        "headers": [(b"X-Mine", b"1")],
        "body": None,
        "timeout": {},
        "say": say,
    }
    return Request(**(values | changes))


async def stored(world: World, here: Server, **deliveries: str) -> None:
    for name, delivery in deliveries.items():
        await world.vault.put(
            name, ApiKey(f"{name}-secret-0123456789"), origins=[here.origin], delivery=delivery
        )
        await world.vault.grant("demo", name)


async def sent(world: World, request: Request, *names: str, **need: object) -> bytes:
    async def plugin(credentials):
        answered = await exchange([credentials[name].id for name in names], request)
        try:
            return b"".join([chunk async for chunk in answered.body])
        finally:
            await answered.body.aclose()

    return await world.call(plugin, needs=tuple({"name": name, **need} for name in names))


async def test_several_credentials_go_in_each_in_its_way(world: World) -> None:
    async with server() as here:
        await stored(world, here, a="bearer", b="header:X-Api-Key", c="query:key")
        assert await sent(world, asked(here), "a", "b", "c") == b"hello"
        assert here.header("authorization") == ["Bearer a-secret-0123456789"]
        assert here.header("x-api-key") == ["b-secret-0123456789"]
        assert here.target == "/v1?key=c-secret-0123456789"
        assert here.header("host") == [f"127.0.0.1:{here.port}"]
        assert len(world.events("redeem")) == 3


async def test_two_in_one_place_are_refused_before_a_byte_leaves(world: World) -> None:
    async with server() as here:
        await stored(world, here, a="bearer", b="header:authorization")
        with pytest.raises(InvalidInputError, match="same place"):
            await sent(world, asked(here), "a", "b")
        assert here.connections == 0


async def test_one_that_is_not_allowed_there_keeps_the_others_in(world: World) -> None:
    async with server() as here, server() as there:
        await stored(world, here, a="bearer")
        await stored(world, there, b="header:X-Api-Key")
        with pytest.raises(ApexCredsError):
            await sent(world, asked(here), "a", "b")
        assert here.connections == 0


async def test_what_goes_wrong_is_said_by_the_library(world: World) -> None:
    async with server() as here:
        await stored(world, here, a="bearer")
        here.last_words = b""
        with pytest.raises(Failed) as caught:
            await sent(world, asked(here), "a")
        (failure,) = caught.value.args
        assert (failure.kind, failure.name) == ("protocol", "RemoteProtocolError")
        assert "secret" not in failure.text


CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel"


async def test_an_answer_that_is_cut_is_said_by_the_library_on_both_sides(world: World) -> None:
    came: list[bytes] = []

    async def waits(credentials):
        answered = await exchange([credentials["a"].id], asked(here))
        try:
            async for chunk in answered.body:
                came.append(chunk)  # noqa: PERF401 - it fails on the way
        finally:
            await answered.body.aclose()

    def blocks(credentials):
        answered = exchange_blocking([credentials["a"].id], asked(here))
        try:
            came.extend(answered.body)
        finally:
            answered.body.close()

    async with server() as here:
        await stored(world, here, a="bearer")
        here.last_words = CUT
        for plugin in (waits, blocks):
            with pytest.raises(Failed) as caught:
                await world.call(plugin, needs=({"name": "a"},))
            (failure,) = caught.value.args
            assert (failure.kind, failure.name) == ("protocol", "RemoteProtocolError")
    assert came == [b"hel", b"hel"]


class Upper:
    """A search that changes what it sees, holds a byte back, and counts its ends."""

    def __init__(self, headers):
        self.headers = [*headers, (b"x-searched", b"1")]
        self.held = b""
        self.closed = 0

    def feed(self, chunk):
        whole = self.held + chunk
        self.held = whole[-1:]
        return [whole[:-1].upper()]

    def finish(self):
        return self.held.upper()

    def close(self):
        self.closed += 1


class Search:
    def __init__(self, error: Exception | None = None):
        self.made: list[Upper] = []
        self.names: list[list[str]] = []
        self.error = error

    def ask(self, leases, headers):
        headers.append((b"x-asked", b"X-Asked", b"1"))

    def wipe(self):
        """It keeps nothing."""

    def begin(self, leases, records, method, status, headers):
        assert method == "GET"
        self.names.append([record.info.name for record in records])
        if self.error is not None:
            raise self.error
        self.made.append(Upper(headers))
        return self.made[-1]


async def test_an_answer_is_searched_while_it_streams(world: World) -> None:
    async with server() as here:
        await stored(world, here, a="bearer")
        search = world.middleware.broker.search = Search()
        assert await sent(world, asked(here), "a") == b"HELLO"
        assert search.names == [["a"]]
        assert here.header("x-asked") == ["1"]
        assert search.made[0].closed == 1

        async def with_httpx(credentials):
            async with credentials["a"].client() as http:
                answer = await http.get(f"{here.origin}/v1")
                return answer.text, answer.headers["x-searched"]

        assert await world.call(with_httpx, needs=({"name": "a"},)) == ("HELLO", "1")


async def test_an_answer_that_can_not_be_searched_goes_no_further(world: World) -> None:
    async with server() as here:
        await stored(world, here, a="bearer")
        world.middleware.broker.search = Search(StorageError("no"))
        for _ in range(40):  # more than a pool has places
            with pytest.raises(StorageError):
                await sent(world, asked(here), "a")


async def test_the_same_in_a_thread(world: World) -> None:
    async with server() as here:
        here.answer = lambda head: ok(b"hello there")
        await stored(world, here, a="bearer", b="header:X-Api-Key")
        search = world.middleware.broker.search = Search()

        def plugin(credentials):
            ids = [credentials[name].id for name in ("a", "b")]
            request = asked(here, url=httpx.URL(f"{here.origin}/v1"))
            answered = exchange_blocking(ids, request)
            try:
                return b"".join(answered.body)
            finally:
                answered.body.close()

        assert await world.call(plugin, needs=({"name": "a"}, {"name": "b"})) == b"HELLO THERE"
        assert search.made[0].closed == 1


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"url": "https://evil.test/take/it?k=v"}, ("GET", "https://evil.test", "/take/it")),
        ({"url": "http://u:p@127.0.0.1:1/a?b"}, ("GET", "http://127.0.0.1:1", "/a")),
        ({"method": "TRACE"}, ("TRACE", None, "/v1")),
        ({"url": "not a url"}, ("GET", "", "")),
        ({"method": "GET\n\x1b[2J"}, ("GET\\n\\x1b[2J", None, "/v1")),
        (
            {"url": "https://evil.test/a%0Ab\u202ec/" + "x" * 400},
            ("GET", "https://evil.test", "/a%0Ab%E2%80%AEc/" + "x" * 239 + "…"),
        ),
    ],
)
async def test_a_denied_request_is_in_the_log_with_where_it_went(
    world: World, changes: dict[str, object], shown: tuple[str, str | None, str]
) -> None:
    async with server() as here:
        await stored(world, here, a="bearer")
        with pytest.raises(ApexCredsError):
            await sent(world, asked(here, **changes), "a")
        (event,) = world.events("denial")
        expected = (shown[0], here.origin if shown[1] is None else shown[1], shown[2])
        assert (event.method, event.origin, event.path) == expected
        assert here.connections == 0


HANDLE_TEXT = "<CredentialHandle 'a'>"


@pytest.mark.parametrize(
    "changes",
    [
        {"headers": [(b"X-Key", HANDLE_TEXT.encode())]},
        {"headers": [(b"Authorization", b"Bot " + HANDLE_TEXT.encode())]},
        {"headers": [(b"Authorization", b"Basic " + b64encode(f"{HANDLE_TEXT}:".encode()))]},
        {"headers": [(b"Cookie", b"key=" + HANDLE_TEXT.encode())]},
        {"url": "{}/v1?" + str(httpx.QueryParams({"key": HANDLE_TEXT}))},
        {"url": "{}/v1?key=" + quote_plus(HANDLE_TEXT)},
        {"url": "{}/bot" + quote(HANDLE_TEXT) + "/send"},
        {"url": "{}/" + quote(quote(HANDLE_TEXT)) + "/send"},
        {"method": "POST", "body": json.dumps({"key": HANDLE_TEXT}).encode()},
        {"method": "POST", "body": json.dumps({"a": [f"Bearer {HANDLE_TEXT}"]}).encode()},
        {"method": "POST", "body": b'{"key": "\\u003CCredentialHandle \'a\'\\u003E"}'},
        {"method": "POST", "body": urlencode({"b": 1, "key": HANDLE_TEXT}).encode()},
        {"method": "POST", "body": httpx.ByteStream(f"key={HANDLE_TEXT}".encode())},
        {"method": "POST", "body": HANDLE_TEXT.encode()},
    ],
)
async def test_the_text_of_a_handle_is_no_key_anywhere(
    world: World, changes: dict[str, object]
) -> None:
    async with server() as here:
        await stored(world, here, a="bearer")
        url = str(changes.get("url", "{}/v1"))
        with pytest.raises(RequestNotAllowedError, match="a handle is no key") as caught:
            await sent(world, asked(here, **changes | {"url": url.format(here.origin)}), "a")
        assert "sdk.placeholder" in caught.value.hint
        assert world.reasons() == [("a", "request_not_allowed")]
        assert here.connections == 0


async def test_words_about_a_handle_are_sent(world: World) -> None:
    words = f"why is {HANDLE_TEXT} printed? class CredentialHandle"
    body = json.dumps({"prompt": words}).encode()
    async with server() as here:
        await stored(world, here, a="bearer")
        headers = [(b"Content-Length", str(len(body)).encode())]
        await sent(world, asked(here, method="POST", body=body, headers=headers), "a")
        assert here.connections == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_a_body_with_a_method_that_has_none_takes_the_manifest(
    world: World, method: str
) -> None:
    async with server() as here:
        await stored(world, here, a="bearer", b="header:X-B")
        headers = [(b"Content-Length", b"5")]
        request = asked(here, method=method, body=b"hello", headers=headers)
        other = [each for each in ("GET", "DELETE") if each != method]
        for bodies in ([], other):
            await world.vault.grant("demo", "a")  # of a manifest that asks for more
            with pytest.raises(RequestNotAllowedError, match="has no body") as caught:
                await sent(world, request, "a", bodies=bodies)
            assert "bodies" in caught.value.hint
        assert here.connections == 0
        await world.vault.grant("demo", "a")
        await sent(world, request, "a", bodies=[method])
        assert here.header("content-length") == ["5"]
        assert here.header("connection") == ["close"]
        await sent(world, asked(here, method=method), "a", bodies=[method])
        assert here.header("connection") == []


async def test_a_body_takes_the_manifest_for_each_credential(world: World) -> None:
    async with server() as here:
        await stored(world, here, a="bearer", b="header:X-B")
        headers = [(b"Content-Length", b"5")]
        request = asked(here, method="DELETE", body=b"hello", headers=headers)

        async def plugin(credentials):
            ids = [credentials[name].id for name in ("a", "b")]
            with pytest.raises(RequestNotAllowedError, match="has no body"):
                await exchange(ids, request)

        await world.call(plugin, needs=({"name": "a", "bodies": ["DELETE"]}, {"name": "b"}))
        assert here.connections == 0
