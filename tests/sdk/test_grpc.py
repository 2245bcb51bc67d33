"""``sdk.grpc``: calls carry a key that no call object has, to a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from apex_creds.errors import InvalidInputError
from apex_creds.model import ApiKey, Delivery
from apex_creds.sdk import grpc as sdk
from tests.support.canaries import holders, in_frames
from tests.support.certificates import certificate
from tests.support.worlds import World, world_in

SECRET = "grpc-canary-3fd0.Zq7Wk0r3"
NEED = ({"name": "rpc"},)
ONE, MANY, TAKE, BOTH = (f"/shop.Orders/{name}" for name in ("One", "Many", "Take", "Both"))


class Orders(grpc.GenericRpcHandler):
    """Insists on the key."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.busy = itertools.count()

    def service(self, details):
        self.paths.append(details.method)
        sent = dict(details.invocation_metadata)
        known = sent.get("authorization") == f"Bearer {SECRET}" or sent.get("x-key") == SECRET

        def check(context) -> None:
            if not known:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")

        def said_back(request, context) -> None:
            if request in (b"echo", b"abort"):
                context.set_trailing_metadata((("x-seen-bin", b"\xff" + SECRET.encode()),))
            if request == b"abort":
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"you sent {SECRET}")

        def first(request, context) -> None:
            if request in (b"echo", b"abort"):
                context.send_initial_metadata((("x-seen", SECRET), (SECRET.lower(), "1")))

        def one(request, context):
            check(context)
            if request == b"busy" and next(self.busy) % 3 < 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "later")
            first(request, context)
            said_back(request, context)
            if request == b"proto":
                return StringValue(value=f"ü you sent {SECRET}").SerializeToString()
            return SECRET.encode() if request == b"echo" else request

        def many(request, context):
            check(context)
            first(request, context)
            yield from [SECRET.encode()] * 2 if request in (b"echo", b"abort") else []
            said_back(request, context)
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


RETRIES = {
    "name": [{}],
    "retryPolicy": {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",  # with a millisecond gRPC itself waits for its deadline
        "maxBackoff": "0.05s",
        "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
}


async def test_what_a_server_can_not_do_now_is_tried_again(world: World, target: str) -> None:
    options = [("grpc.service_config", json.dumps({"methodConfig": [RETRIES]}))]
    with sdk.channel(target, "rpc", options=options) as channel:

        async def plugin() -> bytes:
            return await asyncio.to_thread(channel.unary_unary(ONE), b"busy", timeout=30)

        assert await world.call(plugin, needs=NEED) == b"busy"
    async with sdk.aio_channel(target, "rpc", options=options) as aio:

        async def other() -> bytes:
            return await aio.unary_unary(ONE)(b"busy", timeout=30)

        assert await world.call(other, needs=NEED) == b"busy"


@pytest.mark.parametrize(
    "config",
    ["", "[]", '{"loadBalancingConfig": [{"xds": {}}]}', '{"methodConfig": [], "x": 1}', None],
)
def test_a_service_config_that_says_more_than_retries_is_refused(config: object) -> None:
    for make in (sdk.channel, sdk.aio_channel):
        with pytest.raises(InvalidInputError, match="service_config"):
            make("api.example.com:443", options=[("grpc.service_config", config)])


STARS = "*" * len(SECRET)
COVERED = STARS.encode()


def clean(call: object, first: object, last: object, *more: object) -> None:
    """Nothing of a call that is over has the secret, and what it says is as long as it was."""
    assert dict(first) == {"x-seen": STARS, STARS: "1"}
    assert dict(last) == {"x-seen-bin": b"\xff" + COVERED}
    assert holders(SECRET, call, first, last, *more) == []


def leaks(world: World) -> list[tuple[str, str]]:
    return [(event.credential, event.detail) for event in world.events("leak")]


async def test_what_a_server_says_back_is_covered_everywhere(world: World, target: str) -> None:
    with sdk.channel(target, "rpc") as channel:
        one, many = channel.unary_unary(ONE), channel.unary_stream(MANY)

        def work() -> None:
            answer, call = one.with_call(b"echo", timeout=30)
            assert answer == COVERED
            clean(call, call.initial_metadata(), call.trailing_metadata(), answer)
            later = one.future(b"echo", timeout=30)
            assert later.result() == COVERED
            clean(later, later.initial_metadata(), later.trailing_metadata())
            stream = many(b"echo", timeout=30)
            assert list(stream) == [COVERED, COVERED, *[b"echo"] * 3]
            clean(stream, stream.initial_metadata(), stream.trailing_metadata())

        await world.call(work, needs=NEED)
        assert set(leaks(world)) == {("rpc", "response")}


async def test_an_error_has_no_secret_either(world: World, target: str) -> None:
    with sdk.channel(target, "rpc") as channel:
        one, many = channel.unary_unary(ONE), channel.unary_stream(MANY)

        def check(error: grpc.RpcError, *more: object) -> None:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.details() == f"you sent {STARS}"
            assert error.__context__ is error.__cause__ is None
            assert SECRET not in f"{error!r} {error} {error.debug_error_string()}"
            clean(error, error.initial_metadata(), error.trailing_metadata(), *more)
            assert SECRET not in repr(in_frames(error))

        def work() -> None:
            with pytest.raises(grpc.RpcError) as unary:
                one(b"abort", timeout=30)
            check(unary.value)
            later = one.future(b"abort", timeout=30)
            check(later.exception(), later)
            stream, got = many(b"abort", timeout=30), []
            with pytest.raises(grpc.RpcError) as streamed:
                got.extend(each for each in stream)
            check(streamed.value, stream)

        await world.call(work, needs=NEED)


async def test_the_same_of_an_asynchronous_channel(world: World, target: str) -> None:
    async with sdk.aio_channel(target, "rpc") as channel:
        one, many = channel.unary_unary(ONE), channel.unary_stream(MANY)

        async def plugin() -> None:
            call = one(b"echo", timeout=30)
            assert await call == COVERED
            # Not of the call: its task has the context, which leads to the invocation.
            clean(None, await call.initial_metadata(), await call.trailing_metadata())
            stream = many(b"echo", timeout=30)
            assert [each async for each in stream] == [COVERED, COVERED, *[b"echo"] * 3]
            clean(None, await stream.initial_metadata(), await stream.trailing_metadata())
            read = many(b"echo", timeout=30)
            assert [await read.read(), await read.read()] == [COVERED, COVERED]
            for method in (one, many):
                failing = method(b"abort", timeout=30)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await failing if method is one else [each async for each in failing]
                error = caught.value
                assert error.details() == f"you sent {STARS}"
                assert SECRET not in f"{error!r} {error}"
                clean(error, error.initial_metadata(), error.trailing_metadata())
                assert SECRET not in repr(in_frames(error))
                assert await failing.details() == f"you sent {STARS}"

        await world.call(plugin, needs=NEED)
        assert set(leaks(world)) == {("rpc", "response")}


async def test_a_message_is_covered_and_what_can_not_be_searched_withheld(
    world: World, target: str
) -> None:
    with sdk.channel(target, "rpc") as channel:
        proto = channel.unary_unary(ONE, response_deserializer=StringValue.FromString)
        pair = channel.unary_unary(ONE, response_deserializer=lambda data: (data, 1))

        def work() -> None:
            assert proto(b"proto", timeout=30).value == f"ü you sent {STARS}"
            with pytest.raises(grpc.RpcError) as caught:
                pair(b"echo", timeout=30)
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert "can't be searched" in caught.value.details()
            assert holders(SECRET, caught.value) == []

        await world.call(work, needs=NEED)


async def test_where_echoes_are_allowed_they_come(world: World, target: str) -> None:
    await world.vault.grant("demo", "rpc", echoes=True)
    with sdk.channel(target, "rpc") as channel:
        pair = channel.unary_unary(ONE, response_deserializer=lambda data: (data, 1))

        async def plugin() -> object:
            return await asyncio.to_thread(pair, b"hello", timeout=30)

        assert await world.call(plugin, needs=({"name": "rpc", "echoes": "allowed"},)) == (
            b"hello",
            1,
        )
        assert leaks(world) == []
