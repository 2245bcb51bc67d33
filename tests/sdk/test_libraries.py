"""One client for all: each HTTP library sends with the credentials of whoever calls."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import json
import os
import pickle
import socket
import sys
import threading

import aiohttp
import httpx
import httpx2
import pytest
import requests
import urllib3

from apex_creds import sdk
from apex_creds.errors import AccessDeniedError, RequestNotAllowedError
from apex_creds.model import ApiKey
from tests.sdk.libraries import LIBRARIES, Client
from tests.support.vendor import SECRET, has_secret
from tests.support.worlds import World

pytestmark = pytest.mark.anyio
NEED = ({"name": "web"},)


@pytest.fixture(params=LIBRARIES, ids=repr)
def library(request) -> Client:
    return request.param


async def ran(world: World, library: Client, work, *, needs=NEED, plugin="demo"):
    """What ``work`` gives, called as a plugin: a coroutine, or in a thread."""
    if library.asynchronous:

        async def action(credentials):
            return await work()

    else:

        def action(credentials):
            return work()

    return await world.call(action, needs=needs, plugin=plugin)


async def called(
    world: World, library: Client, client, *args, plugin="demo", needs=NEED, **more
):
    def work():
        return library.call(client, *args, **more)

    return await ran(world, library, work, needs=needs, plugin=plugin)


async def test_one_client_for_two_invocations_and_two_plugins(world, service, library) -> None:
    client = library.make("web")
    await service.allow(world)
    await service.allow(world, plugin="other")
    for plugin in ("demo", "other", "demo"):
        found = await called(
            world, library, client, "POST", f"{service.origin}/v1?a=b", b"hello", plugin=plugin
        )
        assert found[:2] == (200, {"echo": "hello"})
    assert [event.plugin for event in world.events("redeem")] == ["demo", "other", "demo"]
    assert [path for _, path, _, _ in service.requests] == ["/v1?a=b"] * 3
    assert not has_secret(client, found)


async def test_a_body_that_streams(world, service, library) -> None:
    client = library.make("web")
    await service.allow(world)

    def parts():
        yield b"one,"
        yield b"two"

    async def async_parts():
        for part in parts():
            yield part

    def work():
        body = async_parts() if library.asynchronous else parts()
        return library.call(client, "POST", f"{service.origin}/up", body)

    assert (await ran(world, library, work))[1] == {"echo": "one,two"}


async def test_an_answer_that_streams_is_seen_as_it_comes(world, service, library) -> None:
    client = library.make("web")
    await service.allow(world)
    service.answer = lambda *_: ["data: 1", "data: 2", "data: 3"]
    service.gate = threading.Event()

    async def in_coroutine():
        lines = []
        async for line in library.lines(client, f"{service.origin}/events"):
            lines.append(line)
            service.gate.set()
        return lines

    def in_thread():
        lines = []
        for line in library.lines(client, f"{service.origin}/events"):
            lines.append(line)
            service.gate.set()  # the rest comes only when the first was seen
        return lines

    work = in_coroutine if library.asynchronous else in_thread
    assert await ran(world, library, work) == ["data: 1", "data: 2", "data: 3"]


async def test_an_open_stream_leads_to_no_secret(world, service, library) -> None:
    """Not even by the frames of its generators, as the garbage collector sees them."""
    client = library.make("web")
    await service.allow(world)
    service.answer = lambda *_: ["data: 1", "data: 2"]
    service.gate = threading.Event()

    async def in_coroutine():
        lines = library.lines(client, f"{service.origin}/events")
        assert await anext(lines) == "data: 1"
        assert not has_secret(client, lines)
        service.gate.set()
        await lines.aclose()

    def in_thread():
        lines = library.lines(client, f"{service.origin}/events")
        assert next(lines) == "data: 1"
        assert not has_secret(client, lines)
        service.gate.set()
        lines.close()

    await ran(world, library, in_coroutine if library.asynchronous else in_thread)


async def refused(world, library, client, url, **more):
    status, said, headers = await called(world, library, client, "GET", url, **more)
    assert status == 403
    assert headers["x-should-retry"] == "false"
    assert said["error"]["type"] == "permission_error"
    return said["error"]


async def test_a_refusal_is_an_answer(world, service, library) -> None:
    client = library.make("web")
    url = f"{service.origin}/v1"
    optional = ({"name": "web", "required": False},)
    ungranted = await refused(world, library, client, url, needs=optional)
    assert ungranted["code"] == "access_denied"
    await service.allow(world)
    elsewhere = await refused(world, library, client, "http://127.0.0.1:9/")
    assert elsewhere["code"] == "request_not_allowed"
    assert (await refused(world, library, client, url, needs=()))["code"] == "access_denied"
    outside = await (
        asyncio.to_thread(library.call, client, "GET", url)
        if not library.asynchronous
        else library.call(client, "GET", url)
    )
    assert outside[0] == 403
    assert "none here" in outside[1]["error"]["message"]
    assert "audit log" not in outside[1]["error"]["message"]
    assert service.requests == []


async def test_a_refusal_is_our_error_where_that_is_wanted(world, service, library) -> None:
    client = library.make("web", refusal="raise")
    await service.allow(world)
    with pytest.raises(RequestNotAllowedError):
        await called(world, library, client, "GET", "http://127.0.0.1:9/")


async def test_a_connection_that_fails_is_the_librarys_own_error(world, library) -> None:
    client = library.make("web")
    await world.vault.put("web", ApiKey(SECRET), origins=["http://127.0.0.1:9"])
    await world.vault.grant("demo", "web")
    with pytest.raises(library.connection_error) as caught:
        await called(world, library, client, "GET", "http://127.0.0.1:9/")
    assert not has_secret(caught.value)


async def test_an_answer_that_does_not_come_is_the_librarys_own_time_out(
    world, service, library
) -> None:
    never, url = threading.Event(), service.origin
    service.answer = lambda *_: never.wait()
    await service.allow(world)
    client = library.make("web")

    async def by_aiohttp() -> None:
        async with aiohttp.ClientSession(connector=client) as session:
            await session.get(url, timeout=aiohttp.ClientTimeout(sock_read=0.2))

    timed_out, ask = {
        "aiohttp": (aiohttp.SocketTimeoutError, by_aiohttp),
        "httpx": (httpx.ReadTimeout, lambda: client.get(url, timeout=0.2)),
        "httpx2": (httpx2.ReadTimeout, lambda: client.get(url, timeout=0.2)),
        "requests": (requests.ReadTimeout, lambda: client.get(url, timeout=(5, 0.2))),
        "urllib3": (
            urllib3.exceptions.ReadTimeoutError,
            lambda: client.request("GET", url, timeout=0.2, retries=False),
        ),
    }[library.name.removesuffix("-async")]
    try:
        with pytest.raises(timed_out) as caught:
            await ran(world, library, ask)
    finally:
        never.set()
    assert not has_secret(caught.value)


async def test_a_refusal_has_a_reason_as_other_answers_have(world, service) -> None:
    session, pools = sdk.requests.session("web"), sdk.urllib3.pool_manager("web")
    assert session.get(service.origin).reason == "Forbidden"
    assert pools.request("GET", service.origin).reason == "Forbidden"
    async with aiohttp.ClientSession(connector=sdk.aiohttp.connector("web")) as client:
        assert (await client.get(service.origin)).reason == "Forbidden"


async def test_a_placeholder_is_taken_out_of_headers(world, service, library) -> None:
    key = sdk.placeholder("sk-ant-")
    client = library.make("web")
    await service.allow(world)
    headers = {"X-Api-Key": key, "Authorization": f"Bearer {key}", "X-Other": "1"}
    found = await called(world, library, client, "GET", f"{service.origin}/", headers=headers)
    assert found[0] == 200
    assert "x-api-key" not in service.requests[0][2]
    assert service.requests[0][2]["x-other"] == "1"


async def test_a_placeholder_anywhere_else_is_refused(world, service, library) -> None:
    key = sdk.placeholder("sk-")
    client = library.make("web")
    await service.allow(world)
    url = f"{service.origin}/"
    in_query = await called(world, library, client, "GET", f"{url}?key={key}")
    in_body = await called(world, library, client, "POST", url, f"key={key}".encode())
    for status, said, _ in (in_query, in_body):
        assert status == 403
        assert "placeholder" in said["error"]["message"]
    assert service.requests == []


async def test_a_handle_as_a_key_is_refused_with_the_right_line(
    world, service, library
) -> None:
    client = library.make("web")
    await service.allow(world)

    async def work(handle):
        headers = {"Authorization": f"Bearer {handle}"}
        return library.call(client, "GET", f"{service.origin}/", headers=headers)

    async def in_coroutine(credentials):
        return await (await work(credentials["web"]))

    def in_thread(credentials):
        headers = {"Authorization": f"Bearer {credentials['web']}"}
        return library.call(client, "GET", f"{service.origin}/", headers=headers)

    action = in_coroutine if library.asynchronous else in_thread
    status, said, _ = await world.call(action, needs=NEED)
    assert status == 403
    assert "sdk.placeholder" in said["error"]["message"]
    assert service.requests == []


async def test_without_names_all_that_may_go_there_goes(world, service, library) -> None:
    client = library.make()
    await service.allow(world)
    await world.vault.put("far", ApiKey("far-secret-0123456789"), origins=["https://far.test"])
    await world.vault.put(
        "more", ApiKey("more-0123456789"), origins=[service.origin], delivery="header:X-More"
    )
    for name in ("far", "more"):
        await world.vault.grant("demo", name)
    needs = tuple({"name": name} for name in ("far", "web", "more"))
    found = await called(world, library, client, "GET", f"{service.origin}/", needs=needs)
    assert found[0] == 200
    assert service.requests[0][2]["x-more"] == "more-0123456789"


async def test_many_tasks_and_threads_share_one(world, service, library) -> None:
    client = library.make("web")
    await service.allow(world)
    url = f"{service.origin}/"

    async def in_tasks(credentials):
        if library.asynchronous:
            return await asyncio.gather(*[library.call(client, "GET", url) for _ in range(8)])
        with sdk.Executor(4) as pool:
            waiting = [pool.submit(library.call, client, "GET", url) for _ in range(8)]
            return [await asyncio.wrap_future(one) for one in waiting]

    found = await world.call(in_tasks, needs=NEED)
    assert [status for status, *_ in found] == [200] * 8


async def test_a_kept_client_is_worth_nothing_when_the_invocation_is_over(
    world, service, library
) -> None:
    client = library.make("web")
    await service.allow(world)
    await called(world, library, client, "GET", f"{service.origin}/")
    raising = library.make("web", refusal="raise")

    async def again():
        found = library.call(raising, "GET", f"{service.origin}/")
        return await found if library.asynchronous else found

    with pytest.raises(AccessDeniedError, match="none here"):
        await again()
    assert len(service.requests) == 1


async def test_a_session_that_one_has_begun_is_not_anothers(world, service, library) -> None:
    client = library.make("web")
    await service.allow(world)
    await service.allow(world, plugin="other")
    for plugin in ("demo", "other"):
        _, _, headers = await called(
            world, library, client, "GET", f"{service.origin}/", plugin=plugin
        )
        assert "set-cookie" not in {name.lower() for name in headers}
    assert not any("cookie" in headers for _, _, headers, _ in service.requests)


async def test_a_stream_that_is_left_early_gives_its_place_back(
    world, service, library
) -> None:
    client = library.make("web")
    await service.allow(world)
    service.answer = lambda *_: ["data: 1"] * 50

    async def in_coroutine():
        for _ in range(40):  # more than a pool has places
            lines = library.lines(client, f"{service.origin}/events")
            assert await anext(lines) == "data: 1"
            await lines.aclose()

    def in_thread():
        for _ in range(40):
            lines = library.lines(client, f"{service.origin}/events")
            assert next(lines) == "data: 1"
            lines.close()

    await ran(world, library, in_coroutine if library.asynchronous else in_thread)


@pytest.mark.timeout(120)
async def test_a_stream_that_is_forgotten_is_closed_wherever_garbage_is_collected(
    world, service, library
) -> None:
    if library.asynchronous:
        pytest.skip("the garbage of a loop is closed by a task")
    client = library.make("web")
    await service.allow(world)
    service.answer = lambda *_: ["data: 1"] * 2

    def forget() -> None:
        lines = library.lines(client, f"{service.origin}/events")
        assert next(lines) == "data: 1"
        circle: list[object] = [lines]
        circle.append(circle)

    def collected_at(call: int) -> bool:
        """Whether one stream had that many calls, in one of which another was collected."""
        seen = 0

        def count(frame, event, _) -> None:
            nonlocal seen
            if event == "call" and frame.f_code.co_filename.endswith("connection_pool.py"):
                seen += 1  # of ours, and of httpcore
                if seen == call:
                    gc.collect()

        forget()
        sys.setprofile(count)
        try:
            list(library.lines(client, f"{service.origin}/events"))
        finally:
            sys.setprofile(None)
        return seen >= call

    def in_thread() -> int:
        gc.disable()
        gc.freeze()
        try:
            return next(call for call in itertools.count(1) if not collected_at(call))
        finally:
            gc.unfreeze()
            gc.enable()

    assert await ran(world, library, in_thread) > 20


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize(
    "made", [sdk.requests.session, sdk.httpx.transport, sdk.httpx2.transport]
)
async def test_a_copy_has_names_and_no_secret(world, service, made, copied) -> None:
    await service.allow(world)
    clients = {sdk.httpx.transport: httpx.Client, sdk.httpx2.transport: httpx2.Client}

    def use(thing) -> int:
        client = thing if made is sdk.requests.session else clients[made](transport=thing)
        return client.get(f"{service.origin}/").status_code

    original = made("web")
    assert await world.call(lambda: use(original), needs=NEED) == 200
    again = copied(original)
    assert not has_secret(again)
    assert SECRET.encode() not in pickle.dumps(original)
    assert await asyncio.to_thread(use, again) == 403
    assert await world.call(lambda: use(again), needs=NEED) == 200


async def test_a_process_that_is_forked_has_no_rights(world, service) -> None:
    client = sdk.requests.session("web")
    await service.allow(world)

    def action() -> str:
        assert client.get(f"{service.origin}/").status_code == 200
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            try:
                theirs.sendall(client.get(f"{service.origin}/").text.encode())
            finally:
                os._exit(0)
        theirs.close()
        with ours, ours.makefile() as answer:
            said = answer.read()
        os.waitpid(child, 0)
        return said

    said = json.loads(await world.call(action, needs=NEED))
    assert said["error"]["type"] == "permission_error"
    assert len(service.requests) == 1
