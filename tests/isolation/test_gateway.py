"""The gateway: unmodified clients with placeholders; nothing else gets through."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import threading
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest

from apex_creds.model import ApiKey, BasicAuth
from tests.isolation.gateways import Behind, behind, client
from tests.support.vendor import SECRET, Vendor
from tests.support.worlds import World


def bearer(made: Behind) -> dict[str, str]:
    return {"Authorization": f"Bearer {made.key}"}


async def test_a_placeholder_becomes_the_key_and_each_request_is_a_redeem(
    world: World, service: Vendor
) -> None:
    await service.allow(world)
    async with behind(world) as made:

        async def plugin() -> list[object]:
            async with client(base_url=made.url(service.origin), headers=bearer(made)) as http:
                first = await http.post("/v1/chat?x=%2F", json={"n": 1})
                second = await http.get("/v1/models")
                return [first.json(), second.status_code, first.headers.get("set-cookie")]

        echo, status, cookie = await made.run(plugin)
    assert (echo, status, cookie) == ({"echo": '{"n":1}'}, 200, None)
    assert [(m, p, h["authorization"]) for m, p, h, _ in service.requests] == [
        ("POST", "/v1/chat?x=%2F", f"Bearer {SECRET}"),
        ("GET", "/v1/models", f"Bearer {SECRET}"),
    ]
    assert service.requests[0][2]["host"] == service.origin[7:]
    assert [(e.method, e.origin) for e in world.events("redeem")] == [
        ("POST", service.origin),
        ("GET", service.origin),
    ]


async def test_events_stream_as_they_come(world: World, service: Vendor) -> None:
    await service.allow(world)
    service.answer = lambda *_: ["data: 1", f"data: {SECRET}", "data: 3"]
    service.gate = threading.Event()
    async with behind(world) as made:

        async def plugin() -> str:
            url = made.url(service.origin) + "/v1/stream"
            async with client(headers=bearer(made)) as http, http.stream("GET", url) as answer:
                chunks = answer.aiter_text()
                first = await anext(chunks)
                assert service.gate is not None
                service.gate.set()
                return first + "".join([chunk async for chunk in chunks])

        said = await made.run(plugin)
    assert said == "data: 1\n\ndata: " + "*" * len(SECRET) + "\n\ndata: 3\n\n"
    assert [event.detail for event in world.events("leak")] == ["response"]


async def test_an_upload_streams(world: World, service: Vendor) -> None:
    await service.allow(world)
    service.answer = lambda method, path, body: {"length": len(body)}
    async with behind(world) as made:

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(50):
                yield b"apexCreds" * 10_000

        async def plugin() -> list[object]:
            url = made.url(service.origin) + "/upload"
            headers = {**bearer(made), "Content-Length": str(50 * 90_000)}
            async with client(headers=bearer(made)) as http:
                chunked = await http.post(url, content=parts())
                counted = await http.post(url, content=parts(), headers=headers)
                waits = {**headers, "Expect": "100-continue"}
                waited = await http.post(url, content=parts(), headers=waits)
                return [chunked.json(), counted.json(), waited.json()]

        assert await made.run(plugin) == [{"length": 4_500_000}] * 3
    framing = [
        (headers.get("content-length"), headers.get("transfer-encoding"), "expect" in headers)
        for _, _, headers, _ in service.requests
    ]
    assert framing == [(None, "chunked", False)] + [("4500000", None, False)] * 2


def spots(key: str) -> dict[str, tuple[str, str, dict[str, object]]]:
    auth = {"Authorization": f"Bearer {key}"}
    as_json = {"Content-Type": "application/json"}
    large = b"x" * 1_200_000
    return {
        "another header": ("GET", "/", {"headers": {"X-Copy": key}}),
        "a header beside it": ("GET", "/", {"headers": {**auth, "User-Agent": f"a {key}"}}),
        "a header's name": ("GET", "/", {"headers": {**auth, f"X-{key}": "1"}}),
        "a cookie": ("GET", "/", {"headers": {**auth, "Cookie": f"a={key}"}}),
        "the query": ("GET", f"/?q={key}", {"headers": auth}),
        "the query, escaped": ("GET", "/?q=" + "".join(f"%{ord(c):02x}" for c in key), {}),
        "a parameter's name": ("GET", f"/?{key}=1", {}),
        "the path": ("GET", f"/v1/{key}", {}),
        "a body": ("POST", "/", {"content": f"<{key}>".encode(), "headers": auth}),
        "a JSON body": ("POST", "/", {"json": {"a": {"b": key}}, "headers": auth}),
        "a form": ("POST", "/", {"data": {"a": key}, "headers": auth}),
        "Basic elsewhere": ("GET", "/", {"headers": {"X-Auth": _basic(key)}}),
        "a body that streams": (
            "POST",
            "/",
            {"content": large + key.encode(), "headers": auth},
        ),
        "a body in gzip": (
            "POST",
            "/",
            {
                "content": gzip.compress(f'{{"a": "{key}"}}'.encode()),
                "headers": {**auth, "Content-Encoding": "gzip", **as_json},
            },
        ),
        "a body in deflate, twice": (
            "POST",
            "/",
            {
                "content": zlib.compress(zlib.compress(key.encode())),
                "headers": {**auth, "Content-Encoding": "deflate, Deflate"},
            },
        ),
        "a body that streams, in gzip": (
            "POST",
            "/",
            {
                "content": gzip.compress(os.urandom(1_200_000) + key.encode()),
                "headers": {**auth, "Content-Encoding": "x-gzip"},
            },
        ),
    }


def _basic(key: str) -> str:
    import base64

    return "Basic " + base64.b64encode(f"user:{key}".encode()).decode()


@pytest.mark.parametrize("size", [100, 1_300_000])
async def test_a_compressed_body_goes_on_as_it_is_and_one_that_can_t_be_read_does_not(
    world: World, service: Vendor, size: int
) -> None:
    await service.allow(world)
    service.answer = lambda *_: {}
    packed = gzip.compress(os.urandom(size))
    async with behind(world) as made:

        async def plugin() -> list[int]:
            url, found = made.url(service.origin) + "/", []
            for coding, body in (
                *(("gzip", packed), ("identity", packed)),
                *(("br", packed), ("gzip", bytes(size)), ("gzip," * 9, packed)),
            ):
                headers = {**bearer(made), "Content-Encoding": coding}
                async with client() as http:
                    answer = await http.post(url, content=body, headers=headers)
                    found.append(answer.status_code)
            return found

        assert await made.run(plugin) == [200, 200, 415, 415, 415]
    # One that streams is known to be none when it has begun to go on.
    assert [body for *_, body in service.requests][:2] == [packed, packed]
    assert not world.events("leak")


@pytest.mark.parametrize("spot", list(spots("")))
async def test_a_placeholder_anywhere_else_is_a_leak(
    world: World, service: Vendor, spot: str
) -> None:
    await service.allow(world)
    async with behind(world) as made:

        async def plugin() -> tuple[int, dict[str, dict[str, str]]]:
            method, path, options = spots(made.key)[spot]
            async with client() as http:
                answer = await http.request(method, made.url(service.origin) + path, **options)
                return answer.status_code, answer.json()

        status, said = await made.run(plugin)
    assert status == 403
    assert said["error"]["code"] == "secret_leak"
    assert made.key not in json.dumps(said)
    assert [(e.credential, e.plugin) for e in world.events("leak")] == [("web", "demo")]
    assert world.reasons() == [("web", "request_not_allowed")]
    assert all(made.key.encode() not in body for *_, body in service.requests)
    if not spot.startswith("a body that streams"):
        assert not service.requests
        assert not world.events("redeem")


async def test_a_placeholder_sent_to_another_host_is_a_leak(
    world: World, service: Vendor
) -> None:
    await service.allow(world)
    await world.vault.put("other", ApiKey("else"), origins=["http://127.0.0.1:1"])
    await world.vault.grant("demo", "other")
    async with behind(world, "web", "other") as made:

        async def plugin() -> list[object]:
            async with client(headers=bearer(made)) as http:
                elsewhere = await http.get(made.url("http://127.0.0.1:1") + "/v1")
                nowhere = await http.get(made.url("https://evil.example.com") + "/v1")
                return [elsewhere.json()["error"]["code"], nowhere.json()["error"]["code"]]

        needs = (*({"name": "web"}, {"name": "other"}),)
        assert await made.run(plugin, needs) == ["secret_leak"] * 2
    assert not service.requests


async def test_each_delivery_has_its_place(world: World, service: Vendor) -> None:
    ways = {
        "bearer": {"headers": {"Authorization": "Bearer {}"}},
        "scheme:Bot": {"headers": {"Authorization": "Bot {}"}},
        "header:X-Api-Key": {"headers": {"x_api_key": "{}"}},
        "cookie:session": {"headers": {"Cookie": "a=b; session={}"}},
        "query:key": {"params": {"key": "{}", "b": "1"}},
        "json:token": {"json": {"a": 1, "token": "{}"}},
        "form:token": {"data": {"a": "1", "token": "{}"}},
    }
    found = {
        "bearer": lambda h, p, b: h["authorization"] == f"Bearer {SECRET}",
        "scheme:Bot": lambda h, p, b: h["authorization"] == f"Bot {SECRET}",
        "header:X-Api-Key": lambda h, p, b: h["x-api-key"] == SECRET and "x_api_key" not in h,
        "cookie:session": lambda h, p, b: h["cookie"] == f"a=b; session={SECRET}",
        "query:key": lambda h, p, b: p == f"/v1/x?b=1&key={SECRET}",
        "json:token": lambda h, p, b: json.loads(b) == {"a": 1, "token": SECRET},
        "form:token": lambda h, p, b: b.decode() == f"a=1&token={SECRET}",
        "path": lambda h, p, b: p == f"/bot{SECRET}/send",
        "basic": lambda h, p, b: h["authorization"] == _basic("")[:6] + _pair("me", SECRET),
    }
    for at, (delivery, options) in enumerate(ways.items()):
        name = f"c{at}"
        await world.vault.put(name, ApiKey(SECRET), origins=[service.origin], delivery=delivery)
        await world.vault.grant("demo", name)
        async with behind(world, name) as made:
            key = made.placeholders.of(name)

            async def plugin(options=options, made=made, key=key) -> int:
                given = json.loads(json.dumps(options).replace("{}", key))
                method = "POST" if {"json", "data"} & given.keys() else "GET"
                async with client() as http:
                    url = made.url(service.origin) + "/v1/x"
                    return (await http.request(method, url, **given)).status_code

            assert await made.run(plugin, ({"name": name},)) in (200, 401)
        _, path, headers, body = service.requests[-1]
        assert found[delivery](headers, path, body), delivery
        assert key not in str(service.requests[-1])


async def test_a_login_and_a_token_in_the_path(world: World, service: Vendor) -> None:
    origins = [service.origin]
    await world.vault.put("login2", BasicAuth("me", SECRET), origins=origins)
    await world.vault.put("bot", ApiKey(SECRET), origins=origins, delivery="path:bot{}")
    for name in ("login2", "bot"):
        await world.vault.grant("demo", name)
    async with behind(world, "login2", "bot") as made:
        of = made.placeholders.of

        async def plugin() -> None:
            async with client() as http:
                auth = httpx.BasicAuth("anybody", of("login2"))
                await http.get(made.url(service.origin) + "/a", auth=auth)
                await http.get(made.url(service.origin) + f"/bot{of('bot')}/send")

        await made.run(plugin, ({"name": "login2"}, {"name": "bot"}))
    (_, _, first, _), (_, path, second, _) = service.requests
    assert first["authorization"] == "Basic " + _pair("me", SECRET)
    assert path == f"/bot{SECRET}/send"
    assert "authorization" not in second


def _pair(user: str, password: str) -> str:
    import base64

    return base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_outside_of_an_invocation_nothing_is_sent(world: World, service: Vendor) -> None:
    await service.allow(world)
    async with behind(world) as made:
        url = made.url(service.origin)
        async with client(headers=bearer(made)) as http:
            early = await http.get(url)

            async def plugin() -> int:
                return (await http.get(url)).status_code

            assert await made.run(plugin) == 200
        async with client(headers=bearer(made)) as http:
            late = await http.get(url)
        assert (early.status_code, late.status_code) == (403, 403)
        assert "No invocation" in late.json()["error"]["message"]
    assert len(service.requests) == 1


async def test_a_connection_ends_with_its_invocation(world: World, service: Vendor) -> None:
    await service.allow(world)
    async with behind(world) as made:
        host, port = made.gateway.authority.split(":")
        streams = []

        async def plugin() -> bytes:
            reader, writer = await asyncio.open_connection(host, int(port))
            streams.append((reader, writer))
            writer.write(request(made, service))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            return head

        assert b" 200 " in await made.run(plugin)
        reader, writer = streams[0]
        assert await reader.read() == b""  # ended by the gateway
        writer.close()

        async def second() -> object:
            return made.gateway._serving.copy()

        assert await made.run(second) == set()
    assert len(service.requests) == 1


def request(made: Behind, service: Vendor, *lines: str, target: str = "/v1") -> bytes:
    head = [
        f"GET /{service.origin.replace('://', '/')}{target} HTTP/1.1",
        f"Host: {made.gateway.authority}",
        f"Authorization: Bearer {made.key}",
        *lines,
    ]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")


def smuggled(made: Behind, service: Vendor) -> dict[str, bytes]:
    good = request(made, service)
    post = good.replace(b"GET", b"POST", 1)
    host = f"Host: {made.gateway.authority}\r\n".encode()

    def added(lines: bytes, body: bytes = b"") -> bytes:
        return post[:-2] + lines + b"\r\n\r\n" + body

    return {
        "both lengths": added(
            b"Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\nGET /x"
        ),
        "two lengths": added(b"Content-Length: 3\r\nContent-Length: 3", b"abc"),
        "a list of lengths": added(b"Content-Length: 3, 3", b"abc"),
        "a signed length": added(b"Content-Length: +3", b"abc"),
        "two codings": added(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
        "another coding": added(b"Transfer-Encoding: gzip, chunked"),
        "a coding with a tab": added(b"Transfer-Encoding:\tchunked, x"),
        "a folded header": added(b"X-A: b\r\n c"),
        "a folded length": added(b"Content-Length:\r\n 3", b"abc"),
        "bare LF": good.replace(b"\r\n", b"\n", 1),
        "bare CR": added(b"X-A: b\rTransfer-Encoding: chunked"),
        "a line feed in a value": added(b"X-A: b\nX-B: c"),
        "a zero": added(b"X-A: b\0c"),
        "a space before the colon": added(b"Content-Length : 3", b"abc"),
        "no Host": good.replace(host, b""),
        "two Hosts": good.replace(host, host * 2),
        "another Host": good.replace(host, b"Host: evil.example.com\r\n"),
        "a Host with a path": good.replace(host, b"Host: a/b\r\n"),
        "absolute-form against Host": good.replace(b"GET /http/", b"GET http://"),
        "absolute-form with a user": good.replace(b"GET /http/", b"GET http://a@"),
        "a target with a space": good.replace(b"/v1 ", b"/v1 /v2 "),
        "an odd version": good.replace(b"HTTP/1.1", b"HTTP/1.11"),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "Expect": added(b"Expect: 200-ok"),
        "many headers": added(b"\r\n".join(b"X-%d: 1" % n for n in range(200))),
        "a long head": added(b"X-A: " + b"a" * 70_000),
        "no prefix": good.replace(b"GET /http/", b"GET /elsewhere/"),
        "chunks that are none": added(b"Transfer-Encoding: chunked", b"zz\r\nabc\r\n0\r\n\r\n"),
        "chunks with bare LF": added(b"Transfer-Encoding: chunked", b"3\nabc\n0\n\n"),
        "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    }


async def test_what_can_be_read_in_two_ways_is_refused(world: World, service: Vendor) -> None:
    await service.allow(world)
    async with behind(world) as made:

        async def plugin() -> dict[str, bytes]:
            follow = request(made, service, "X-Smuggled: 1")
            return {
                what: await made.raw(data + follow)
                for what, data in smuggled(made, service).items()
            }

        answers = await made.run(plugin)
    assert isinstance(answers, dict)
    wrong = {
        what: said[:80]
        for what, said in answers.items()
        if not said.startswith(b"HTTP/1.1 4") and not said.startswith(b"HTTP/1.1 5")
    }
    assert wrong == {}
    assert all(said.count(b"HTTP/1.1 ") == 1 for said in answers.values())  # and it is closed
    assert service.requests == []


async def test_headers_of_one_hop_and_for_proxies_go_no_further(
    world: World, service: Vendor
) -> None:
    await service.allow(world)
    async with behind(world) as made:

        async def plugin() -> bytes:
            lines = (
                "Connection: close, X-Mine, upgrade",
                "X-Mine: 1",
                "Proxy-Authorization: Basic eDp5",
                "Proxy-Connection: keep-alive",
                "TE: trailers",
                "Upgrade: h2c",
                "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
                "Keep-Alive: 5",
                "X-Kept: 1",
            )
            return await made.raw(request(made, service, *lines))

        assert await made.run(plugin)
    ((_, _, headers, _),) = service.requests
    assert headers["x-kept"] == "1"
    assert not {"x-mine", "te", "upgrade", "http2-settings", "keep-alive"} & headers.keys()
    assert not [name for name in headers if name.startswith("proxy")]


async def test_requests_that_were_sent_together_are_answered_in_turn(
    world: World, service: Vendor
) -> None:
    await service.allow(world)
    async with behind(world) as made:

        async def plugin() -> bytes:
            one = request(made, service, target="/1")
            return await made.raw(
                one + request(made, service, "Connection: close", target="/2")
            )

        said = await made.run(plugin)
    assert isinstance(said, bytes)
    assert said.count(b"HTTP/1.1 200 OK") == 2
    assert [path for _, path, *_ in service.requests] == ["/1", "/2"]


async def test_who_is_slow_or_takes_too_many_connections_is_cut(
    world: World, service: Vendor
) -> None:
    await service.allow(world)
    async with behind(world, reading=0.05, idle=0.05, connections=2) as made:

        async def plugin() -> list[bytes]:
            half = await made.raw(request(made, service)[:-2])
            body = request(made, service, "Content-Length: 9").replace(b"GET", b"POST") + b"abc"
            return [half, await made.raw(body), await made.raw(b"")]

        half, body, silent = await made.run(plugin)
        assert half.startswith(b"HTTP/1.1 408")
        assert body.startswith(b"HTTP/1.1 408")
        assert silent == b""
    async with behind(world, connections=2) as made:

        async def crowd() -> list[int]:
            async with client(headers=bearer(made)) as one, client(headers=bearer(made)) as two:
                found = [await each.get(made.url(service.origin)) for each in (one, two)]
                with contextlib.suppress(ConnectionResetError):
                    assert await made.raw(b"GET") == b""
                return [each.status_code for each in found]

        assert await made.run(crowd) == [200, 200]


async def test_a_redirect_stays_behind_the_gateway(world: World, service: Vendor) -> None:
    from tests.support.loopback import ok, server

    async with server() as upstream:
        upstream.answer = lambda head: (
            ok(b"", "302 Found", location=f"{upstream.origin}/next?a=b")
            if "/first" in head.split("\r\n")[0]
            else ok(b"there")
        )
        await world.vault.put("web", ApiKey(SECRET), origins=[upstream.origin])
        await world.vault.grant("demo", "web")
        async with behind(world) as made:

            async def plugin() -> str:
                async with client(follow_redirects=True, headers=bearer(made)) as http:
                    return (await http.get(made.url(upstream.origin) + "/first")).text

            assert await made.run(plugin) == "there"
        assert upstream.target == "/next?a=b"


async def test_a_location_that_is_no_url_goes_on_as_it_is(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.support.loopback import ok, server

    async with server() as upstream:
        upstream.answer = lambda _: ok(b"", "302 Found", location="http://[bad/")
        await world.vault.put("web", ApiKey(SECRET), origins=[upstream.origin])
        await world.vault.grant("demo", "web")
        async with behind(world) as made:

            async def plugin() -> tuple[int, str]:
                async with client(headers=bearer(made)) as http:
                    answer = await http.get(made.url(upstream.origin))
                    return answer.status_code, answer.headers["location"]

            assert await made.run(plugin) == (302, "http://[bad/")
    assert "connection of the gateway failed" not in caplog.text


@pytest.mark.parametrize(
    "header", ["X-Amz-Copy-Source", "x_ms_copy_source", "X-Copy-From", "X-Amz-Rename-Source"]
)
async def test_what_is_for_some_paths_copies_nothing_from_others(
    world: World, service: Vendor, header: str
) -> None:
    await service.allow(world)
    async with behind(world) as made:

        async def plugin() -> int:
            async with client(headers={**bearer(made), header: "/other/key"}) as http:
                answer = await http.put(made.url(service.origin) + "/mine/key", content=b"")
                return answer.status_code

        assert await made.run(plugin) == 200
        assert await made.run(plugin, ({"name": "web", "paths": ["/mine/*"]},)) == 403
    assert len(service.requests) == 1
    assert world.reasons() == [("web", "request_not_allowed")]


async def test_what_fails_upstream_is_a_502(world: World) -> None:
    await world.vault.put("web", ApiKey(SECRET), origins=["http://127.0.0.1:1"])
    await world.vault.grant("demo", "web")
    async with behind(world) as made:

        async def plugin() -> tuple[int, str]:
            async with client(headers=bearer(made)) as http:
                answer = await http.get(made.url("http://127.0.0.1:1"))
                return answer.status_code, answer.text

        status, said = await made.run(plugin)
    assert status == 502
    assert "ConnectError" in said
    assert SECRET not in said


async def test_a_client_that_goes_away_ends_what_it_asked_for(
    world: World, service: Vendor
) -> None:
    from tests.support.loopback import server

    async with server() as upstream:
        upstream.hang = asyncio.Event()
        await world.vault.put("web", ApiKey(SECRET), origins=[upstream.origin])
        await world.vault.grant("demo", "web")
        async with behind(world) as made:

            async def plugin() -> None:
                host, port = made.gateway.authority.split(":")
                _, writer = await asyncio.open_connection(host, int(port))
                target = f"/{upstream.origin.replace('://', '/')}/v1"
                writer.write(
                    request(made, service).replace(
                        f"/{service.origin.replace('://', '/')}/v1".encode(), target.encode()
                    )
                )
                assert upstream.hang is not None
                await upstream.hang.wait()
                (task,) = made.gateway._serving
                writer.close()
                await asyncio.wait([task])

            await made.run(plugin)
    assert len(upstream.requests) == 1


async def test_two_at_once_have_nothing_of_each_other(world: World, service: Vendor) -> None:
    await service.allow(world)
    await service.allow(world, plugin="inner")
    async with behind(world) as one, behind(world) as two:
        go = asyncio.Event()

        async def first() -> int:
            async with client(headers=bearer(one)) as http:
                await go.wait()
                return (await http.get(one.url(service.origin))).status_code

        async def second() -> list[object]:
            async with client(headers=bearer(one)) as http:
                stolen = await http.get(two.url(service.origin))
            async with client(headers=bearer(two)) as http:
                own = await http.get(two.url(service.origin))
            go.set()
            return [stolen.status_code, stolen.json()["error"]["code"], own.status_code]

        found = await asyncio.gather(one.run(first), two.run(second))
    assert found == [200, [403, "secret_leak", 200]]
    assert len(service.requests) == 2


def other_places(service: Vendor) -> dict[str, str]:
    host = service.origin.partition("://")[2]
    port = host.rpartition(":")[2]
    base = f"/http/{host}"
    return {
        **{path: f"{base}{path}" for path in ("/admin", "//admin", "/v1/.", "/v1/..", "?x=1")},
        "dots": f"{base}/v1/../admin",
        "escaped dots": f"{base}/v1/%2e%2e/admin",
        "dots escaped twice": f"{base}/v1/%252e%252e/admin",
        "an escaped slash": f"{base}/v1/..%2fadmin",
        "a backslash": f"{base}/v1/..\\admin",
        "an escaped backslash": f"{base}/v1/..%5cadmin",
        "a parameter": f"{base}/v1/..;/admin",
        "dots of another alphabet": f"{base}/v1/%ef%bc%8e%ef%bc%8e/admin",
        "dots of too many bytes": f"{base}/v1/%c0%ae%c0%ae/admin",
        "a zero": f"{base}/v1/%00/../../admin",
        "a space": f"{base}/v1/%09",
        "the base twice": f"{base}{base}/v1/a",
        "a user": f"/http/u:p@{host}/v1/a",
        "an escaped user": f"/http/u%40{host}/v1/a",
        "another port": "/http/127.0.0.1:1/v1/a",
        "another name": f"/http/localhost:{port}/v1/a",
        "another address": f"/http/127.0.0.2:{port}/v1/a",
        "its number": f"/http/2130706434:{port}/v1/a",
        "a zone": f"/http/[fe80::1%25eth0]:{port}/v1/a",
        "another scheme": f"/https/{host}/v1/a",
        "a scheme in capitals": f"/HTTP/{host}/v1/a",
        "a proxy's": f"http://{host}/v1/a",
        "no path": "*",
    }


async def test_no_target_leads_anywhere_but_to_what_was_granted(
    world: World, service: Vendor
) -> None:
    await service.allow(world)
    async with behind(world) as made:

        async def plugin() -> dict[str, bytes]:
            found = {}
            for what, target in other_places(service).items():
                head = f"GET {target} HTTP/1.1\r\nHost: {made.gateway.authority}\r\n"
                found[what] = await made.raw(f"{head}Connection: close\r\n\r\n".encode())
            return found

        answers = await made.run(plugin, ({"name": "web", "paths": ["/v1/*"]},))
    assert isinstance(answers, dict)
    assert {what: said[:60] for what, said in answers.items() if b" 40" not in said[:12]} == {}
    assert service.requests == []


async def test_no_header_means_another_place_or_length_to_the_server(
    world: World, service: Vendor
) -> None:
    await service.allow(world)
    lines = (
        *("Content_Length: 5", "Transfer_Encoding: chunked", "X-Original-URL: /admin"),
        *("X-Rewrite-Url: /admin", "X-HTTP-Method-Override: DELETE", "Forwarded: host=x"),
        *("X_Forwarded_Host: x", "X: \xff\xfe"),
    )
    async with behind(world) as made:

        async def plugin() -> list[bytes]:
            posted = [request(made, service, each, "Connection: close") for each in lines]
            return [await made.raw(each.replace(b"GET", b"POST", 1)) for each in posted]

        answers = await made.run(plugin)
    assert isinstance(answers, list)
    assert {said[:12] for said in answers} == {b"HTTP/1.1 403"}
    assert service.requests == []
