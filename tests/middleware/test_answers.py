"""What a service repeats of a request comes to an inject-only plugin without the secret."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from apex_creds.errors import AnswerWithheldError
from apex_creds.middleware.call import OnLeak
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.redaction.answers import SearchedAnswer
from apex_creds.redaction.masks import Mask
from apex_creds.telemetry import instruments
from tests.support.canaries import holders, in_frames, reachable
from tests.support.loopback import Server, ok, server
from tests.support.worlds import World, world_in

pytestmark = pytest.mark.anyio

SECRET = "s3cr3t/echo+canary==0123456789"
COVERED = "*" * len(SECRET)
NEED = {"name": "web"}


@pytest.fixture
async def here(world: World):
    async with server() as made:
        await world.vault.put("web", ApiKey(SECRET), origins=[made.origin])
        await world.vault.grant("demo", "web", reveal=True)
        yield made


def sent(head: str) -> str:
    """The secret as it came."""
    return next(line for line in head.split("\r\n") if line.startswith("Auth")).split(" ", 2)[2]


def chunked(*chunks: bytes, trailer: str = "", **headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", "transfer-encoding: chunked"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body + f"0\r\n{trailer}\r\n".encode()


ECHOES: dict[str, Callable[[str], bytes]] = {
    "body": lambda head: ok(head.encode()),
    "error page": lambda head: ok(head.encode(), "401 Unauthorized"),
    "gzip": lambda head: ok(gzip.compress(head.encode()), content_encoding="gzip"),
    "deflate": lambda head: ok(zlib.compress(head.encode()), content_encoding="deflate"),
    "in chunks": lambda head: chunked(*(bytes([byte]) for byte in head.encode())),
    "gzip in chunks": lambda head: chunked(
        *(bytes([byte]) for byte in gzip.compress(head.encode())), content_encoding="gzip"
    ),
    "base64": lambda head: ok(base64.b64encode(b"." + head.encode())),
    "hex": lambda head: ok(head.encode().hex().encode()),
    "header": lambda head: ok(b"", x_echo=sent(head)),
    "header in upper case": lambda head: ok(b"", x_echo=sent(head).upper()),
    "two headers": lambda head: ok(b"", x_a=sent(head)[:10], x_b=sent(head)[10:]),
    "cookie": lambda head: ok(b"", set_cookie=f"t={sent(head)}"),
    "location": lambda head: ok(b"", "302 Found", location=f"/?k={sent(head)}"),
    "trailer": lambda head: chunked(b"text", trailer=f"x-echo: {sent(head)}\r\n"),
    "reason": lambda head: ok(b"", f"401 no {sent(head)}"),
    "a range": lambda head: ok(sent(head)[:20].encode(), "206 Partial"),
}  # fmt: skip
SHOWS = (
    SECRET,
    SECRET.upper(),
    SECRET[:10],
    SECRET.encode().hex(),
    base64.b64encode(SECRET.encode())[:16].decode(),
    base64.b64encode(b"." + SECRET.encode())[4:20].decode(),
    base64.b64encode(b".." + SECRET.encode())[4:20].decode(),
)


def all_of(answer: httpx.Response) -> str:
    return " ".join([answer.text, answer.reason_phrase, repr(answer.headers.raw)])


async def got(world: World, url: str, *, blocking: bool, need: dict = NEED) -> str:
    async def plugin(credentials):
        async with credentials["web"].client() as http:
            return all_of(await http.get(url))

    def in_thread(credentials):
        with credentials["web"].sync_client() as http:
            return all_of(http.get(url))

    return await world.call(in_thread if blocking else plugin, needs=(need,))


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("how", ECHOES)
async def test_an_echo_is_covered_and_audited(
    world: World, here: Server, how: str, blocking: bool
) -> None:
    here.answer = ECHOES[how]
    world.middleware.broker.recent.close()  # the result is not cleaned a second time
    text = await got(world, here.origin, blocking=blocking)
    assert not [each for each in SHOWS if each in text]
    leaks = [(event.credential, event.detail) for event in world.events("leak")]
    assert leaks == ([] if how in ("trailer", "reason") else [("web", "response")])


async def test_the_server_does_echo(world: World, here: Server) -> None:
    """What the tests above would see, if nothing searched."""
    world.middleware.broker.search = None
    seen = {}
    for how, answer in ECHOES.items():
        here.answer = answer

        async def plugin(credentials):
            async with credentials["web"].client() as http:
                seen[how] = all_of(await http.get(here.origin))  # noqa: B023 - called here

        await world.call(plugin, needs=(NEED,))
    missed = {how for how, text in seen.items() if not any(each in text for each in SHOWS)}
    assert missed == {"trailer", "reason"}  # they are never handed on


async def test_a_password_is_covered_as_it_was_sent(world: World, here: Server) -> None:
    await world.vault.delete("web")
    await world.vault.put("web", BasicAuth("alice", "pass-word-0123"), origins=[here.origin])
    await world.vault.grant("demo", "web")
    here.answer = lambda head: ok(f"{sent(head)} {sent(head).encode().hex()}".encode())
    text = await got(world, here.origin, blocking=False)
    assert base64.b64encode(b"alice:pass-word-0123").decode().rstrip("=") not in text
    assert text.startswith("*" * 26)
    assert "616c696365" not in text and b"YWxp".hex() not in text  # noqa: PT018


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "aes128gcm"])
@pytest.mark.parametrize("blocking", [False, True])
async def test_what_can_not_be_searched_is_withheld(
    world: World, here: Server, coding: str, blocking: bool
) -> None:
    here.answer = lambda head: ok(head.encode(), content_encoding=coding)
    for _ in range(40):  # more than a pool has places
        with pytest.raises(AnswerWithheldError, match="withheld"):
            await got(world, here.origin, blocking=blocking)
    assert here.header("accept-encoding") == ["gzip, deflate"]


async def test_a_plugin_that_may_read_the_secret_gets_the_answer_as_it_came(
    world: World, here: Server
) -> None:
    here.answer = lambda head: ok(b"?", content_encoding="unheard-of", x_echo=sent(head))
    text = {}

    async def plugin(credentials):
        http = credentials["web"].client(headers={"Accept-Encoding": "br"})
        async with http, http.stream("GET", here.origin) as answer:
            text["raw"] = [chunk async for chunk in answer.aiter_raw()]
            text["echo"] = answer.headers["x-echo"]

    await world.call(plugin, needs=({"name": "web", "access": "reveal"},))
    assert text == {"raw": [b"?"], "echo": SECRET}
    assert here.header("accept-encoding") == ["br"]


async def test_echoes_are_allowed_by_manifest_and_grant_together(
    world: World, here: Server
) -> None:
    here.answer = lambda head: ok(head.encode())
    asking = {**NEED, "echoes": "allowed"}
    seen: list[bool] = []

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            seen.append(SECRET in (await http.get(here.origin)).text)

    await world.call(plugin, needs=(asking,))
    await world.vault.grant("demo", "web", echoes=True)
    await world.call(plugin, needs=(NEED,))
    await world.vault.grant("demo", "web", echoes=True)
    await world.call(plugin, needs=(asking,))
    assert seen == [False, False, True]


async def test_events_are_not_held(world: World) -> None:
    """The service sends the next event only when the one before has been seen."""
    seen, told = asyncio.Queue[str](), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for number in range(20):
            writer.write(f"data: {number}\n\n".encode())
            await writer.drain()
            assert await seen.get() == f"data: {number}"
        writer.write(f"data: {sent(head)[:9]}".encode())
        await writer.drain()
        assert await seen.get() == ""
        writer.write(f"{sent(head)[9:]}\n\n".encode())
        await told.wait()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    origin = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    await world.vault.put("web", ApiKey(SECRET), origins=[origin])
    await world.vault.grant("demo", "web")
    lines: list[str] = []

    async def plugin(credentials):
        async with credentials["web"].client() as http, http.stream("GET", origin) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if line.startswith("data"):
                    seen.put_nowait(line)
                    if line == "data: 19":
                        seen.put_nowait("")
                    if COVERED in line:
                        told.set()

    await world.call(plugin, needs=(NEED,))
    listening.close()
    assert lines[-2:] == [f"data: {COVERED}", ""]


async def test_a_service_that_leaks_does_not_fail_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    monkeypatch.setattr(instruments, "leaked", counted.append)
    async with (
        server() as here,
        world_in(tmp_path / "strict", on_leak=OnLeak.ERROR) as strict,
    ):
        await strict.vault.put("web", ApiKey(SECRET), origins=[here.origin])
        await strict.vault.grant("demo", "web")
        here.answer = ECHOES["body"]
        assert COVERED in await got(strict, here.origin, blocking=False)
        assert counted == ["response"]
        assert len(strict.events("leak")) == 1


async def test_masks_are_wiped_by_a_lockdown_and_at_the_end(world: World, here: Server) -> None:
    masks = world.middleware.broker.search._masks
    await got(world, here.origin, blocking=False)
    assert len(masks._by_key) == 1
    (kept,) = masks._by_key.values()
    await world.vault.revoke(plugin="somebody")
    assert not masks._by_key
    assert kept.mask.longest == 0
    await got(world, here.origin, blocking=False)
    (kept,) = masks._by_key.values()
    await world.middleware.close()
    assert kept.mask.longest == 0
    with contextlib.suppress(Exception):
        await world.vault.lock("test")


BROKEN: dict[str, Callable[[str], bytes]] = {
    "a head that can't be searched": lambda head: ok(
        b"?", "302 Found", location=f"/?k={sent(head)}", content_encoding="br"
    ),
    "a body that is not compressed": lambda head: ok(head.encode(), content_encoding="gzip"),
    "a body that is cut off": lambda head: ok(
        gzip.compress(head.encode())[:-9], content_encoding="gzip"
    ),
    "a body that goes wrong": lambda head: (
        ok(head.encode(), content_length="9999") + b"x" * 9 + b"\r\n\r\n"
    ),
}


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("how", BROKEN)
async def test_what_fails_leads_to_nothing_that_came(
    world: World, here: Server, how: str, blocking: bool
) -> None:
    """Not by the frames that a reporter of errors prints either."""
    here.answer = BROKEN[how]
    failures: list[str] = []

    def seen(error: Exception) -> None:
        failures.append(type(error).__name__)
        assert not holders(SECRET, *in_frames(error))

    async def plugin(credentials):
        async with credentials["web"].client() as http:
            try:
                await http.get(here.origin)
            except (AnswerWithheldError, httpx.HTTPError) as error:
                seen(error)

    def in_thread(credentials):
        with credentials["web"].sync_client() as http:
            try:
                http.get(here.origin)
            except (AnswerWithheldError, httpx.HTTPError) as error:
                seen(error)

    await world.call(in_thread if blocking else plugin, needs=(NEED,))
    assert failures


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("coding", [{}, {"content_encoding": "gzip"}])
async def test_a_body_that_is_stepped_leads_to_nothing_that_came(
    world: World, here: Server, coding: dict[str, str], blocking: bool
) -> None:
    """Nor to what it is searched for: generators of the plugin show their frames."""

    def echoed(head: str) -> bytes:
        body = gzip.compress(head.encode() * 9) if coding else head.encode() * 9
        return chunked(body[:60], body[60:], **coding)

    here.answer = echoed

    def seen(steps: object) -> None:
        found = list(reachable(steps))
        assert not holders(SECRET, *found)
        assert not [each for each in found if isinstance(each, Mask | SearchedAnswer)]

    async def plugin(credentials):
        http = credentials["web"].client()
        async with http, http.stream("GET", here.origin) as answer:
            steps = answer.stream._stream.__aiter__()
            await anext(steps)
            seen(steps)
            await steps.aclose()

    def in_thread(credentials):
        http = credentials["web"].sync_client()
        with http, http.stream("GET", here.origin) as answer:
            steps = answer.stream._stream.__iter__()
            next(steps)
            seen(steps)
            steps.close()

    await world.call(in_thread if blocking else plugin, needs=(NEED,))
