"""Passwords of a user of a real Redis are replaced; both are taken at once for a while."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis

from apex_creds.errors import InvalidInputError, RotatorError, RotatorRefusedError
from apex_creds.model import BasicAuth
from apex_creds.rotators import Rotations, configure, rotator_from_uri
from tests.support.redis import ONCE, RedisServer, redis_server
from tests.support.rotators import parts_of, rotate

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
FIRST = "first-password-of-the-user"


@pytest.fixture(scope="module")
def running():
    lines = ("user default off", "user admin on >admin ~* &* +@all", "user app on ~* &* +@all")
    with redis_server(*lines) as server:
        yield server


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.admin.execute_command("ACL", "SETUSER", "app", "resetpass", f">{FIRST}")
    return running


def lets_in(server: RedisServer, password: str) -> bool:
    with contextlib.closing(
        redis.Redis(port=server.port, username="app", password=password, retry=ONCE)
    ) as client:
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return False


async def put(vault, server, *, grace=0.0, options="", admin="admin=redis-admin"):
    where = f"redis://127.0.0.1:{server.port}"
    await vault.put("redis-admin", BasicAuth("admin", "admin"), origins=[where])
    await vault.put("cache", BasicAuth("app", FIRST), origins=[where])
    query = "&".join(filter(None, [admin, options]))
    uri = f"redis-acl:{where}" + (f"?{query}" if query else "")
    await configure(vault, "cache", uri=uri, grace=grace)


@pytest.mark.parametrize("admin", ["admin=redis-admin", ""])
async def test_both_passwords_are_taken_and_then_one(vault, server, admin):
    await put(vault, server, grace=3600.0, admin=admin)
    parts = await rotate(vault, "cache")
    assert lets_in(server, parts["password"])
    assert lets_in(server, FIRST)
    again = await rotate(vault, "cache", lost=True)
    assert set(again) == {"user", "password"}
    assert lets_in(server, again["password"])
    assert not lets_in(server, FIRST)
    assert not lets_in(server, parts["password"])


async def test_what_is_lost_ends_its_connections(vault, server):
    await put(vault, server)
    with contextlib.closing(
        redis.Redis(port=server.port, username="app", password=FIRST, retry=None)
    ) as client:
        client.ping()
        number = client.client_id()
        await rotate(vault, "cache", lost=True)
        clients = {int(each["id"]) for each in server.admin.client_list()}
        assert number not in clients


async def test_commands_have_hashes_and_the_acl_is_kept(vault, server):
    server.admin.config_set("slowlog-log-slower-than", 0)
    await put(vault, server)
    parts = await rotate(vault, "cache")
    log = b" ".join(each["command"] for each in server.admin.slowlog_get(1000))
    assert parts["password"].encode() not in log
    assert FIRST.encode() not in log
    name = server.admin.config_get("dir")["dir"]
    with open(f"{name}/redis.conf") as kept:
        assert FIRST not in kept.read()


async def test_a_server_that_can_not_keep_its_acl_is_refused(vault, server):
    await put(vault, server, options="persist=acl")
    with pytest.raises(RotatorRefusedError, match="keeps no ACL"):
        await rotate(vault, "cache")
    assert lets_in(server, FIRST)


async def test_a_user_that_is_not_there_is_not_made(vault, server):
    await put(vault, server)
    await vault.put("cache", BasicAuth("nobody", FIRST))
    with pytest.raises(RotatorRefusedError, match="no such user"):
        await rotate(vault, "cache")
    assert "nobody" not in " ".join(server.admin.acl_list())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"+OK\r\n",
        b"$99999999999\r\n",
        b"*99999999999\r\n",
        b"*1\r\n" * 50,
        b"$-\r\n",
        b"x" * (1 << 19),
        b"\xff\xfe\r\n",
        b":" + b"9" * 5000 + b"\r\n",
    ],
)
async def test_a_hostile_server(vault, server, answer):
    async def serve(reader, writer):
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await reader.read(1 << 16)
            writer.write(answer if answer == b"+OK\r\n" else b"+OK\r\n" + answer)
            await writer.drain()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as hostile:
        port = hostile.sockets[0].getsockname()[1]
        where = f"redis://127.0.0.1:{port}"
        await vault.put("cache", BasicAuth("app", FIRST), origins=[where])
        await configure(vault, "cache", uri=f"redis-acl:{where}", grace=0.0)
        rotations = Rotations(vault)
        await rotations.ask("cache", by_hand=True)
        with pytest.raises(RotatorError) as caught:
            await rotations.advance("cache")
    assert FIRST not in f"{caught.value} {caught.value.hint}"
    assert (await parts_of(vault, "cache"))["password"] == FIRST


@pytest.mark.parametrize("uri", ["redis-acl:redis://h/0", "redis-acl:redis://h?persist=x"])
def test_a_uri_that_is_not_understood(uri):
    with pytest.raises(InvalidInputError):
        rotator_from_uri(uri)
