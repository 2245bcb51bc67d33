"""``sdk.grpc``: calls carry a key that no call object has, to a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import grpc.aio
import pytest

from apex_creds.errors import InvalidInputError
from apex_creds.model import ApiKey, Delivery
from apex_creds.sdk import grpc as sdk
from tests.support.canaries import holders
from tests.support.certificates import certificate
from tests.support.worlds import World, world_in

SECRET = "grpc-canary-3fd0.Zq7Wk0r3"
NEED = ({"name": "rpc"},)
ONE, MANY, TAKE, BOTH = (f"/shop.Orders/{name}" for name in ("One", "Many", "Take", "Both"))


class Orders(grpc.GenericRpcHandler):
    """Insists on the key."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def service(self, details):
        self.paths.append(details.method)
        sent = dict(details.invocation_metadata)
        known = sent.get("authorization") == f"Bearer {SECRET}" or sent.get("x-key") == SECRET

        def check(context) -> None:
            if not known:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        def one(request, context):
            check(context)
            return request

        def many(request, context):
            check(context)
            if request == b"forever":
                while context.is_active():
                    yield request
            yield from [request] * 3

        def take(requests, context):
            check(context)
            return b"".join(requests)

        def both(requests, context):
            check(context)
            yield from requests

        return {
            ONE: grpc.unary_unary_rpc_method_handler(one),
            MANY: grpc.unary_stream_rpc_method_handler(many),
            TAKE: grpc.stream_unary_rpc_method_handler(take),
            BOTH: grpc.stream_stream_rpc_method_handler(both),
        }.get(details.method)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
def target(files: tuple[Path, Path]) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Orders(),))
    pair = (files[1].read_bytes(), files[0].read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
async def world(
    tmp_path: Path, anyio_backend: str, target: str, files, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setenv("SSL_CERT_FILE", str(files[0]))
    async with world_in(tmp_path) as made:
        origin = f"https://{target}"
        await made.vault.put("rpc", ApiKey(SECRET), origins=[origin])
        await made.vault.put(
            "keyed", ApiKey(SECRET), origins=[origin], delivery=Delivery.parse("header:X-Key")
        )
        for plugin in ("demo", "inner"):
            await made.vault.grant(plugin, "rpc")
            await made.vault.grant(plugin, "keyed")
        yield made


def every_kind(channel: grpc.Channel) -> list[object]:
    return [
        channel.unary_unary(ONE)(b"a", timeout=30),
        list(channel.unary_stream(MANY)(b"b", timeout=30)),
        channel.stream_unary(TAKE)(iter([b"c", b"d"]), timeout=30),
        list(channel.stream_stream(BOTH)(iter([b"e", b"f"]), timeout=30)),
    ]


ANSWERS = [b"a", [b"b"] * 3, b"cd", [b"e", b"f"]]


async def test_one_channel_in_two_invocations_all_kinds_of_calls(
    world: World, target: str
) -> None:
    with sdk.channel(target, "rpc") as channel:

        async def plugin() -> object:
            return await asyncio.to_thread(every_kind, channel)

        for name in ("demo", "inner"):
            assert await world.call(plugin, needs=NEED, plugin=name) == ANSWERS
        redeems = world.events("redeem")
        assert [event.plugin for event in redeems] == ["demo"] * 4 + ["inner"] * 4
        assert {event.origin for event in redeems} == {f"https://{target}"}


async def test_an_asynchronous_channel_made_before(world: World, target: str) -> None:
    async with sdk.aio_channel(target, "rpc") as channel:

        async def plugin() -> object:
            return [
                await channel.unary_unary(ONE)(b"a", timeout=30),
                [one async for one in channel.unary_stream(MANY)(b"b", timeout=30)],
                await channel.stream_unary(TAKE)(iter([b"c", b"d"]), timeout=30),
                [o async for o in channel.stream_stream(BOTH)(iter([b"e", b"f"]), timeout=30)],
            ]

        for name in ("demo", "inner"):
            assert await world.call(plugin, needs=NEED, plugin=name) == ANSWERS
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(ONE)(b"a", timeout=30)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "none here" in caught.value.details()


async def test_interceptors_for_a_channel_of_another_maker(
    world: World, target: str, files: tuple[Path, Path]
) -> None:
    trust = grpc.ssl_channel_credentials(files[0].read_bytes())
    with grpc.secure_channel(target, trust) as made:
        channel = grpc.intercept_channel(made, *sdk.interceptors("keyed"))

        async def plugin() -> object:
            return await asyncio.to_thread(every_kind, channel)

        assert await world.call(plugin, needs=({"name": "keyed"},)) == ANSWERS


async def test_a_refusal_is_the_call_s_own_error(world: World, target: str) -> None:
    needs = ({"name": "rpc", "paths": [ONE]},)
    with sdk.channel(target, "rpc") as channel:
        with pytest.raises(grpc.RpcError) as outside:
            channel.unary_unary(ONE)(b"a", timeout=30)
        assert outside.value.code() is grpc.StatusCode.PERMISSION_DENIED

        def work() -> None:
            assert channel.unary_unary(ONE)(b"a", timeout=30) == b"a"
            with pytest.raises(grpc.RpcError) as path:
                channel.stream_unary(TAKE)(iter([b"a"]), timeout=30)
            assert path.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "outside what the credential" in path.value.details()

        async def plugin() -> None:
            await asyncio.to_thread(work)

        await world.call(plugin, needs=needs)
    assert world.reasons() == [("rpc", "request_not_allowed")]


async def test_to_another_server_nothing_is_sent(world: World, target: str, files) -> None:
    """Interceptors go by where the core says that a channel leads to."""
    trust = grpc.ssl_channel_credentials(files[0].read_bytes())
    port = target.rpartition(":")[2]
    with grpc.secure_channel(f"localhost:{port}", trust) as made:
        channel = grpc.intercept_channel(made, *sdk.interceptors("rpc"))

        def work() -> None:
            with pytest.raises(grpc.RpcError, match="may not be sent to https://localhost"):
                channel.unary_unary(ONE)(b"a", timeout=30)

        async def plugin() -> None:
            await asyncio.to_thread(work)

        await world.call(plugin, needs=NEED)
    assert world.events("redeem") == []


async def test_a_stream_ends_with_its_lease_and_no_call_has_the_secret(
    world: World, target: str
) -> None:
    kept: list[grpc.Call] = []
    with sdk.channel(target, "rpc") as channel:

        def work() -> None:
            call = channel.unary_stream(MANY)(b"forever")
            assert next(call) == b"forever"
            assert holders(SECRET, call, channel) == []
            kept.append(call)

        async def plugin() -> None:
            await asyncio.to_thread(work)

        await world.call(plugin, needs=NEED)

        def drain() -> None:
            for _ in kept[0]:
                pass

        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(drain)
        assert caught.value.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize(
    "option", ["grpc.ssl_target_name_override", "grpc.default_authority", "grpc.http_proxy"]
)
def test_an_option_that_says_another_server_is_refused(option: str) -> None:
    with pytest.raises(InvalidInputError, match=option):
        sdk.channel("api.example.com:443", options=[(option, "x")])
    with pytest.raises(InvalidInputError):
        sdk.aio_channel("https://api.example.com")
