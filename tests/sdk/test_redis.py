"""``sdk.redis``: clients of redis-py log in with a password that they never have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from apex_creds.errors import InvalidInputError
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.sdk import redis as sdk
from tests.support.canaries import holders
from tests.support.certificates import certificate
from tests.support.redis import RedisServer, redis_server
from tests.support.worlds import World, world_in

PASSWORD = "redis-canary-51bd/Zq+7"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def server(files: tuple[Path, Path]) -> Iterator[RedisServer]:
    users = ["user default off", "user admin on >admin ~* &* +@all"]
    users += [f"user {name} on >{PASSWORD} ~* &* +@all" for name in ("app", "other")]
    with redis_server(*users, tls=files) as made:
        yield made


@pytest.fixture
async def world(
    tmp_path: Path, anyio_backend: str, server: RedisServer
) -> AsyncIterator[World]:
    async with world_in(tmp_path) as made:
        plain = f"redis://127.0.0.1:{server.port}"
        for name, secret, origin in [
            ("cache", BasicAuth("app", PASSWORD), plain),
            ("bare", ApiKey(PASSWORD), plain),
            ("safe", BasicAuth("app", PASSWORD), f"rediss://127.0.0.1:{server.tls_port}"),
            ("wrong", BasicAuth("app", "not-it"), plain),
        ]:
            await made.vault.put(name, secret, origins=[origin])
            for plugin in ("demo", "inner"):
                await made.vault.grant(plugin, name)
        yield made


def need(name: str = "cache") -> dict[str, object]:
    return {"name": name}


@pytest.mark.parametrize("protocol", [2, 3])
async def test_one_client_in_two_invocations_and_a_thread(world: World, protocol: int) -> None:
    client = sdk.client("cache", protocol=protocol)
    other = sdk.async_client("cache", protocol=protocol)

    def work() -> object:
        client.set("a", "1")
        return client.get("a"), client.acl_whoami()

    async def plugin() -> object:
        threaded = await asyncio.to_thread(work)
        async with other.pipeline() as pipe:
            got = await pipe.set("b", "2").get("b").execute()
        return threaded, got[1]

    for name in ("demo", "inner"):
        found = await world.call(plugin, needs=(need(),), plugin=name)
        assert found in [((b"1", b"app"), b"2"), ((b"1", "app"), b"2")]
    assert [event.method for event in world.events("redeem")] == ["LOGIN"] * 4
    client.close()
    await other.aclose()


async def test_of_two_at_once_none_gets_the_other_s_connection(world: World) -> None:
    client = sdk.async_client("cache", max_connections=1)
    released, done = asyncio.Event(), asyncio.Event()

    async def first() -> object:
        found = await client.client_id()
        released.set()
        await done.wait()  # its lease is still alive
        return found

    async def second() -> object:
        await released.wait()
        try:
            return await client.client_id()
        finally:
            done.set()

    one, two = await asyncio.gather(
        world.call(first, needs=(need(),)), world.call(second, needs=(need(),), plugin="inner")
    )
    assert one != two
    assert [event.plugin for event in world.events("redeem")] == ["demo", "inner"]
    await client.aclose()


async def test_a_connection_that_is_kept_carries_nothing_of_another_invocation(
    world: World,
) -> None:
    client = sdk.client("cache")
    kept: list[redis.Connection] = []
    go, end = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        kept.append(client.connection_pool.get_connection())
        go.set()
        await end.wait()

    async def second() -> None:
        await go.wait()
        with pytest.raises(NoPermissionError, match="another invocation"):
            kept[0].send_command("PING")
        end.set()

    await asyncio.gather(
        world.call(first, needs=(need(),)), world.call(second, needs=(need(),), plugin="inner")
    )
    client.close()


async def test_a_connection_ends_with_its_lease(world: World, server: RedisServer) -> None:
    blocking, client = sdk.client("cache"), sdk.async_client("cache")

    def ours() -> int:
        return sum(one["user"] == "app" for one in server.admin.client_list())

    async def plugin() -> None:
        blocking.ping()
        await client.ping()
        assert ours() == 2

    await world.call(plugin, needs=(need(),))
    while ours():
        await asyncio.sleep(0)
    with pytest.raises(NoPermissionError, match="outside of any invocation"):
        await client.ping()
    with pytest.raises(NoPermissionError, match="outside of any invocation"):
        blocking.ping()
    await client.aclose()
    blocking.close()


async def test_what_is_not_allowed_is_refused_once_as_the_client_s_own_error(
    world: World, server: RedisServer
) -> None:
    undeclared = sdk.async_client("cache")
    elsewhere = sdk.async_client("cache", origin="redis://127.0.0.1:1")
    wrong = sdk.client("wrong")

    async def plugin() -> None:
        with pytest.raises(NoPermissionError, match="refused"):
            await undeclared.ping()

    await world.call(plugin)
    assert world.reasons() == [("cache", "undeclared")]

    async def lost() -> None:
        with pytest.raises(NoPermissionError, match="may not be sent to"):
            await elsewhere.ping()
        with pytest.raises(AuthenticationError, match="invalid username"):
            wrong.ping()

    await world.call(lost, needs=(need(), need("wrong")))


async def test_by_tls_with_a_certificate_that_is_trusted_only(
    world: World, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, blocking = sdk.async_client("safe"), sdk.client("safe")

    async def untrusted() -> None:
        with pytest.raises(redis.ConnectionError):
            await client.ping()
        with pytest.raises(redis.ConnectionError):
            blocking.ping()

    async def trusted() -> object:
        return await client.acl_whoami(), blocking.ping()

    await world.call(untrusted, needs=(need("safe"),))
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    found = await world.call(trusted, needs=(need("safe"),))
    assert found in [(b"app", True), ("app", True)]
    await client.aclose()
    blocking.close()


async def test_a_credential_without_a_user_takes_the_one_of_the_client(world: World) -> None:
    client = sdk.client("bare", user="other", db=3)

    async def plugin() -> object:
        return client.acl_whoami(), client.client_info()["db"]

    found = await world.call(plugin, needs=(need("bare"),))
    assert found in [(b"other", 3), ("other", 3)]
    client.close()


async def test_the_password_is_in_nothing_that_a_plugin_can_walk_to(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    client, other, wrong = sdk.client("cache"), sdk.async_client("cache"), sdk.client("wrong")

    async def plugin() -> None:
        client.ping()
        await other.ping()
        with pytest.raises(AuthenticationError) as caught:
            wrong.ping()
        assert (
            holders("not-it", caught.value, wrong.connection_pool._available_connections) == []
        )
        for pool in (client.connection_pool, other.connection_pool):
            assert holders(PASSWORD, pool._available_connections, vars(pool)) == []

    await world.call(plugin, needs=(need(), need("wrong")))
    assert PASSWORD not in caplog.text
    for one in (client, wrong):
        one.close()
    await other.aclose()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_no_reply_brings_the_password_back(
    world: World, server: RedisServer, protocol: int
) -> None:
    """As ``CONFIG GET requirepass`` would of a server whose users have one."""
    server.admin.config_set("requirepass", PASSWORD)
    server.admin.hset("echo", mapping={"a": f"={PASSWORD}=", PASSWORD: "1"})
    server.admin.rpush("list", PASSWORD, "text")
    client = sdk.client("cache", protocol=protocol)
    other = sdk.async_client("cache", protocol=protocol, decode_responses=True)
    covered = "*" * len(PASSWORD)

    async def plugin() -> None:
        with client.pipeline() as pipe:
            found = pipe.config_get("requirepass").lrange("list", 0, -1).execute()
        assert covered in str(found[0])
        assert found[1] == [covered.encode(), b"text"]
        assert await other.hgetall("echo") == {"a": f"={covered}=", covered: "1"}
        with pytest.raises(redis.ResponseError) as caught:
            client.eval(f"return redis.error_reply('no {PASSWORD}')", 0)
        with pytest.raises(redis.ResponseError) as later:
            await other.eval(f"return redis.error_reply('no {PASSWORD}')", 0)
        for error in (caught.value, later.value):
            assert covered in str(error)
            assert PASSWORD not in repr((error, error.__context__, error.__cause__))

    await world.call(plugin, needs=(need(),))
    leaks = [(event.credential, event.detail) for event in world.events("leak")]
    assert set(leaks) == {("cache", "response")}
    client.close()
    await other.aclose()
    server.admin.config_set("requirepass", "")
    server.admin.delete("echo", "list")


def test_what_a_client_does_not_know_is_refused_when_it_is_made() -> None:
    for make in (sdk.client, sdk.async_client):
        with pytest.raises(InvalidInputError, match=r"startup_nodes.*Sentinel"):
            make("cache", startup_nodes=[])
        make("cache", socket_timeout=1, health_check_interval=1, max_connections=9)


@pytest.mark.parametrize(
    "option", ["host", "password", "connection_class", "ssl_cert_reqs", "credential_provider"]
)
def test_what_the_credential_says_is_not_taken(option: str) -> None:
    with pytest.raises(InvalidInputError, match=option):
        sdk.client("cache", **{option: "x"})
    with pytest.raises(InvalidInputError):
        sdk.async_client("cache", origin="https://cache.example.com")
