"""No error of a request that carried a secret in its URL shows it, not to the plugin either."""

from __future__ import annotations

import gzip
import traceback
from urllib.parse import quote, unquote, unquote_plus

import httpx
import pytest

from apex_creds.errors import AnswerWithheldError
from apex_creds.leases.handle import current_credentials
from apex_creds.model import ApiKey
from tests.leases.test_http import found_from, frames_of, here  # noqa: F401
from tests.support.loopback import Server, ok
from tests.support.worlds import World

pytestmark = pytest.mark.anyio

CANARY = "cn/9+y ~=&%canary"
NEED = ({"name": "web"},)
ECHO = {
    "as it came": lambda sent: sent,
    "in small letters": lambda sent: sent.replace("%2F", "%2f").replace("%26", "%26"),
    "half decoded": lambda sent: sent.replace("%2F", "/").replace("%3D", "="),
    "with %20": lambda sent: sent.replace("+", "%20"),
    "twice": lambda sent: quote(sent, safe=""),
    "within another": lambda sent: "/login?next=" + quote(quote(sent), safe=""),
}


def shown(value: object) -> str:
    """A value as handlers and debuggers show it, and what its escapes stand for."""
    text = f"{value!r} {value!s} {getattr(value, '__dict__', '')!r}"
    for _ in range(3):
        text += unquote(text) + unquote_plus(text)
    return text


@pytest.fixture
async def web(world: World, here: Server) -> Server:  # noqa: F811
    await world.vault.put("web", ApiKey(CANARY), delivery="query:key", origins=[here.origin])
    return here


def check(error: BaseException | None, *others: object) -> None:
    assert error is not None
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    found = [*told.format(), frames_of(error), *map(shown, (error, *others))]
    for name in ("request", "response"):
        part = getattr(error, f"_{name}", None) or getattr(error, name, None)
        if part is None:
            continue
        assert found_from(part) == set()
        found += [shown(part), shown(part.headers.raw)]
        found += [shown(getattr(part, "url", "")), shown(getattr(part, "history", ""))]
        found.append(shown(getattr(part, "next_request", None)))
    assert CANARY not in " ".join(found)


async def fails(world: World, url: str, **options: object) -> BaseException:
    """The error of a request, as an async plugin and as one in a thread get it."""

    async def plugin() -> None:
        async with current_credentials()["web"].client(**options) as http:
            try:
                (await http.get(url)).raise_for_status()
            except Exception as error:
                check(error)
                errors.append(error)

    def in_thread() -> None:
        with current_credentials()["web"].sync_client(**options) as http:
            try:
                http.get(url).raise_for_status()
            except Exception as error:
                check(error)
                errors.append(error)

    errors: list[BaseException] = []
    await world.call(plugin, needs=NEED)
    await world.call(in_thread, needs=NEED)
    assert type(errors[0]) is type(errors[1])
    return errors[0]


async def test_a_status(world: World, web: Server) -> None:
    web.answer = lambda head: ok(b"", "404 Not Found")
    error = await fails(world, f"{web.origin}/")
    assert isinstance(error, httpx.HTTPStatusError)
    assert "key=" in web.target


@pytest.mark.parametrize("how", ECHO)
async def test_a_redirect_that_repeats_it(world: World, web: Server, how: str) -> None:
    web.answer = lambda head: ok(b"", "302 Found", location=ECHO[how](head.split(" ")[1]))
    assert isinstance(await fails(world, f"{web.origin}/"), httpx.HTTPStatusError)
    error = await fails(world, f"{web.origin}/", follow_redirects=True, max_redirects=2)
    assert isinstance(error, httpx.TooManyRedirects)


async def test_a_broken_answer(world: World, web: Server) -> None:
    web.last_words = b"nonsense\r\n\r\n"
    assert isinstance(await fails(world, f"{web.origin}/"), httpx.RemoteProtocolError)


async def test_a_body_that_can_not_be_decoded(world: World, web: Server) -> None:
    body = gzip.compress(b"hello")[:-9] + b"nonsense!"
    web.answer = lambda head: ok(body, content_encoding="gzip")
    assert isinstance(await fails(world, f"{web.origin}/"), AnswerWithheldError)


async def test_a_redirect_to_nowhere(world: World, web: Server) -> None:
    web.answer = lambda head: ok(b"", "302 Found", location=f"nowhere:{head.split(' ')[1]}")
    error = await fails(world, f"{web.origin}/", follow_redirects=True)
    assert isinstance(error, Exception)


async def test_a_refused_connection(world: World, web: Server) -> None:
    await world.vault.put("web", ApiKey(CANARY), origins=["http://127.0.0.1:1"])
    assert isinstance(await fails(world, "http://127.0.0.1:1/"), httpx.ConnectError)
