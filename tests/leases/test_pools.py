"""Connection pools: one for each plugin, credential and loop, none outlives its loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import anyio
import httpx
import pytest

from apex_creds.concurrency import run_at_once
from apex_creds.leases import connection_pool
from apex_creds.leases.connection_pool import _IDLE, _MOST, ConnectionPools, Key
from apex_creds.leases.outgoing_requests import Outgoing
from apex_creds.model import ApiKey, Origin
from tests.support.http_servers import Reply, serving
from tests.support.loopback import server
from tests.support.worlds import World

KEY, OTHER = Key("demo", "1" * 32), Key("inner", "1" * 32)


@dataclass
class Origins:
    """A server that no event loop belongs to, and the ports that it was called from."""

    origin: Origin
    peers: list[int] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.origin}/"


@pytest.fixture
def origin() -> Iterator[Origins]:
    def answer(asked: BaseHTTPRequestHandler, _: bytes) -> Reply:
        made.peers.append(asked.client_address[1])
        return 200, b"ok", {}

    with serving(answer) as server:
        made = Origins(Origin("http", "127.0.0.1", server.server_port))
        yield made


def asked(origin: Origins) -> Outgoing:
    host = (b"Host", str(origin.origin).partition("//")[2].encode())
    return Outgoing("GET", httpx.URL(origin.url), [host], httpx.ByteStream(b""), {})


async def get(pools: ConnectionPools, origin: Origins, key: Key = KEY) -> int:
    pool = await pools.here(key)
    turn = await pool.permit(origin.origin, patience=None)
    try:
        answer = await pool.transport.send(asked(origin))
        assert [chunk async for chunk in answer.stream] == [b"ok"]
        await answer.stream.aclose()
        return answer.status
    finally:
        turn.done()


def get_blocking(pools: ConnectionPools, origin: Origins, key: Key = KEY) -> int:
    pool = pools.entered(key)
    turn = pool.permit(origin.origin, patience=None)
    try:
        answer = run_at_once(pool.transport.send(asked(origin)))
        assert list(answer.stream) == [b"ok"]
        answer.stream.close()
        return answer.status
    finally:
        turn.done()


@pytest.mark.anyio
async def test_plugins_and_credentials_have_connections_of_their_own(world: World) -> None:
    async with server() as here:
        for name in ("web", "other"):
            await world.vault.put(name, ApiKey(f"s3cr3t-of-{name}"), origins=[here.origin])
            for plugin in ("demo", "inner"):
                await world.vault.grant(plugin, name)

        async def plugin(name, credentials):
            async with credentials[name].client() as http:
                return (await http.get(f"{here.origin}/")).status_code

        def in_thread(name, credentials):
            with credentials[name].sync_client() as http:
                return http.get(f"{here.origin}/").status_code

        for _ in range(3):
            for function in (plugin, in_thread):
                for who in ("demo", "inner"):
                    for name in ("web", "other"):
                        needs = ({"name": "web"}, {"name": "other"})
                        call = world.call(function, name, needs=needs, plugin=who)
                        assert await call == 200
        assert here.connections == 8


@pytest.mark.anyio
async def test_a_handle_that_was_passed_on_does_not_share_its_givers_connection(
    world: World,
) -> None:
    async with server() as here:
        await world.vault.put("web", ApiKey("s3cr3t-of-web"), origins=[here.origin])
        await world.vault.grant("demo", "web")

        async def inner(handle, credentials):
            async with handle.client() as http:
                await http.get(f"{here.origin}/inner")

        async def outer(credentials):
            async with credentials["web"].client() as http:
                await http.get(f"{here.origin}/outer")
            passed = credentials["web"].attenuate()
            await world.call(inner, passed, needs=(), plugin="inner")

        await world.call(outer, needs=({"name": "web"},))
        assert here.connections == 2


def test_loops_in_a_row_have_pools_of_their_own(origin: Origins) -> None:
    """Each ended loop closed its connections itself: no socket waits for the collector."""
    pools = ConnectionPools(None, None)
    for _ in range(4):
        assert asyncio.run(get(pools, origin)) == 200
        gc.collect()
    assert len(set(origin.peers)) == 4
    assert len(pools._loops) <= 1
    asyncio.run(pools.close())
    assert not pools._loops


def test_loops_side_by_side_have_pools_of_their_own(origin: Origins) -> None:
    pools, begin, done = ConnectionPools(None, None), threading.Barrier(8), []

    async def twice() -> list[int]:
        begin.wait()
        return [await get(pools, origin), await get(pools, origin)]

    threads = [
        threading.Thread(target=lambda: done.append(asyncio.run(twice()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(pools.close())
    assert done == [[200, 200]] * 8
    assert len(set(origin.peers)) == 8


def test_a_loop_that_was_closed_without_its_last_steps_is_dropped(origin: Origins) -> None:
    pools = ConnectionPools(None, None)
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(get(pools, origin)) == 200
    pool = loop.run_until_complete(pools.here(KEY))
    loop.run_until_complete(pool.transport.aclose())  # its sockets; not what knows of them
    loop.close()
    asyncio.run(pools.close())
    assert asyncio.run(get(pools, origin)) == 200
    assert loop not in pools._loops


def test_one_loop_closes_what_another_still_uses(origin: Origins) -> None:
    """The other loop closes its own connections, without being waited for."""
    pools, made, closed = ConnectionPools(None, None), threading.Event(), threading.Event()
    left: list[int] = []

    async def elsewhere() -> None:
        pool = await pools.here(KEY)
        await get(pools, origin)
        made.set()
        await asyncio.to_thread(closed.wait)
        while pool.transport._pool.connections:
            await asyncio.sleep(0)
        left.append(len(pool.transport._pool.connections))

    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    made.wait()
    asyncio.run(pools.close())
    closed.set()
    thread.join()
    assert left == [0]


@pytest.mark.anyio
async def test_pools_that_are_idle_are_closed(
    origin: Origins, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(connection_pool.time, "monotonic", lambda: now[0])
    pools = ConnectionPools(None, None)
    busy = await (await pools.here(OTHER)).permit(None, patience=None)
    await get(pools, origin)
    await anyio.to_thread.run_sync(get_blocking, pools, origin)
    first = await pools.here(KEY)
    now[0] += _IDLE
    pools._loops[asyncio.get_running_loop()].sweep()
    assert await pools.here(KEY) is not first
    while first.transport._pool.connections:
        await asyncio.sleep(0)
    assert OTHER in pools._loops[asyncio.get_running_loop()].by_key
    busy.done()
    now[0] += _IDLE
    pools._loops[asyncio.get_running_loop()].sweep()
    assert not pools._loops[asyncio.get_running_loop()].by_key
    await pools.close()


@pytest.mark.anyio
async def test_there_are_not_more_pools_than_that(origin: Origins) -> None:
    pools = ConnectionPools(None, None)
    held = await (await pools.here(KEY)).permit(None, patience=None)
    for number in range(_MOST + 5):
        await pools.here(Key(f"plugin-{number}", "1" * 32))
        pools.entered(Key(f"plugin-{number}", "1" * 32)).leave(None)
    kept = pools._loops[asyncio.get_running_loop()].by_key
    assert (len(kept), len(pools._threads.by_key)) == (_MOST, _MOST)
    assert KEY in kept
    assert Key("plugin-0", "1" * 32) not in kept
    held.done()
    await pools.close()


@pytest.mark.anyio
async def test_a_pool_that_was_given_is_used_for_all_and_not_closed() -> None:
    closed = []

    class Given(httpx.MockTransport):
        async def aclose(self) -> None:
            closed.append(self)

    given = Given(lambda request: httpx.Response(200))
    pools = ConnectionPools(given, None)
    assert (await pools.here(KEY)).transport is (await pools.here(OTHER)).transport is given
    await pools.close()
    assert closed == []
