"""What the other side of a socket may send, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds import errors
from apex_creds.errors import (
    ApexCredsError,
    InvalidInputError,
    PluginRaisedError,
    WorkerEndedError,
)
from apex_creds.isolation import channel
from apex_creds.isolation.channel import Channel, Open, opened
from apex_creds.isolation.frames import (
    LARGEST,
    MOST_KEYS,
    Cancel,
    Codec,
    Failure,
    ProtocolError,
    Request,
    Response,
    Step,
    containers_in,
    error_of,
    failure_of,
)

PRIME = 2**61 - 1
"""A number and what it is beside its multiples have one hash."""
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.binary()
)
keys = st.one_of(st.text(), st.integers(), st.tuples(st.integers(), st.text()))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner), st.dictionaries(keys, inner), st.lists(inner).map(tuple)
    ),
    max_leaves=20,
)


@given(values)
def test_plain_data_is_the_same_after_it(value: object) -> None:
    codec = Codec()
    found = codec.decode(codec.encode(Response(1, codec.plain(value))))
    assert isinstance(found, Response)
    assert found.value == value


@given(values)
def test_a_large_frame_is_looked_through_first(value: object) -> None:
    codec = Codec()
    found = codec.decode(codec.encode(Response(1, codec.plain([value, bytes(100_000)]))))
    assert isinstance(found, Response)
    assert found.value == [value, bytes(100_000)]


@given(
    st.recursive(
        scalars.filter(lambda each: type(each) is not int or -(2**63) <= each < 2**64),
        lambda inner: st.one_of(
            st.lists(inner, max_size=40), st.dictionaries(st.text() | st.binary(), inner)
        ),
    )
)
def test_containers_are_counted_as_they_are(value: object) -> None:
    def count(each: object) -> int:
        inner = each.values() if isinstance(each, dict) else each
        return 1 + sum(map(count, inner)) if isinstance(each, dict | list) else 0  # type: ignore[arg-type]

    data = msgspec.msgpack.encode(value)
    assert containers_in(data) == count(value)
    assert containers_in(data + data) == count(value), "and no further"


@given(st.binary(max_size=300))
def test_whatever_bytes_are_looked_through(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        containers_in(data)


def colliding(how: str) -> bytes:
    """A frame that would take hours of a processor, or all of the memory, to make values of."""
    encode, wrapped = msgspec.msgpack.encode, msgspec.msgpack.Ext
    if how == "lists":
        return encode([2, 1, [[]] * (2 << 20)])
    if how in ("set", "pairs"):
        numbers = [wrapped(5, encode(str(PRIME * n))) for n in range(9_000)]
        pairs = [[each, None] for each in numbers] if how == "pairs" else numbers
        return encode([2, 1, wrapped({"set": 2, "pairs": 8}[how], encode(pairs))])
    if how == "sets":
        each = wrapped(2, encode([wrapped(5, encode(str(PRIME * n))) for n in range(50)]))
        return encode([2, 1, [each] * 200])
    keys = [n + PRIME * (more + 1) for n in range(3_000) for more in range(6)]
    inner = {"map": keys, "tuples": [(each, 1) for each in keys]}[how]
    value = dict.fromkeys(inner)
    return encode([2, 1, value if how == "map" else [[wrapped(1, encode([value]))]]])


@pytest.mark.parametrize("how", ["set", "sets", "pairs", "map", "tuples", "lists"])
def test_no_frame_takes_more_than_its_bytes_would(how: str) -> None:
    with pytest.raises(ProtocolError):
        Codec().decode(colliding(how))


@pytest.mark.parametrize(
    "value", [set(range(MOST_KEYS + 1)), dict.fromkeys(range(MOST_KEYS + 1)), [{1}] * 5_000]
)
def test_who_sends_too_many_keys_is_told_so(value: object) -> None:
    codec = Codec()
    with pytest.raises(InvalidInputError, match="keys"):
        codec.plain(value)
    texts = {str(each) for each in range(9_000)}
    found = codec.decode(codec.encode(Response(1, codec.plain([texts, set(range(MOST_KEYS))]))))
    assert isinstance(found, Response)
    assert found.value == [texts, set(range(MOST_KEYS))]


@given(st.binary(max_size=200))
def test_bytes_are_a_frame_or_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        Codec().decode(data)


@given(st.integers(-128, 127), st.binary(max_size=60))
def test_so_are_its_extensions(number: int, data: bytes) -> None:
    frame = msgspec.msgpack.encode([2, 1, msgspec.msgpack.Ext(number, data)])
    with contextlib.suppress(ProtocolError):
        Codec().decode(frame)


def test_what_is_nested_without_end_is_refused() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(InvalidInputError):
        Codec().plain(value)
    deep = b"\x93\x02\x01" + b"\x91" * 100_000 + b"\xc0"
    with pytest.raises(ProtocolError):
        Codec().decode(deep)


def test_what_is_too_large_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="can't cross"):
        Codec().encode(Response(1, bytes(LARGEST + 1)))


names = st.text(max_size=20)


@given(
    st.builds(
        Failure,
        name=st.one_of(names, st.sampled_from(["ValueError", "SystemExit", "StopIteration"])),
        text=st.text(max_size=50),
        bases=st.lists(
            st.sampled_from(["OSError", "KeyboardInterrupt", "object", "BaseException", "x"])
        ).map(tuple),
        ours=st.one_of(st.just(""), st.sampled_from(sorted(errors.__all__)), names),
        notes=st.lists(st.text(max_size=9), max_size=3).map(tuple),
    )
)
def test_a_failure_is_an_exception_that_stops_nothing(failure: Failure) -> None:
    made = error_of(failure)
    assert isinstance(made, Exception)
    assert not isinstance(made, StopIteration | StopAsyncIteration | asyncio.CancelledError)
    known = type(made).__module__ == "builtins" or isinstance(made, ApexCredsError)
    assert known


def test_causes_and_texts_are_bounded() -> None:
    error: BaseException = ValueError("x" * 1_000_000)
    for _ in range(50):
        outer = ValueError("y")
        outer.__cause__ = error
        error = outer
    made = error_of(failure_of(error))
    depth = 0
    while made.__cause__ is not None:
        assert isinstance(made.__cause__, Exception)
        made, depth = made.__cause__, depth + 1
    assert depth <= 4
    assert issubclass(PluginRaisedError, ApexCredsError)


class Serving:
    """Does what it is told, never ends."""

    def __init__(self) -> None:
        self.count = 0

    async def serve(self, what: str, value: object) -> object:
        self.count += 1
        await asyncio.Event().wait()
        return None

    def on_notification(self, what: str, value: object) -> None:
        pass

    def context(self, value: object) -> None:
        return None


@pytest.mark.anyio
async def test_the_other_side_has_no_more_than_so_much_done() -> None:
    ours, theirs = socket.socketpair()
    serving = Serving()
    there = await Channel.over(theirs, serving, Codec())
    here = await Channel.over(ours, Serving(), Codec())
    asked = [asyncio.ensure_future(here.ask("x")) for _ in range(channel.MOST_OPEN + 1)]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in ended} == {WorkerEndedError}
    assert serving.count <= channel.MOST_OPEN
    assert "too much" in there.why


class Generous:
    """Answers whatever is asked, at once."""

    def context(self, _: object) -> None:
        return None

    def on_notification(self, *_: object) -> None:
        pass

    async def serve(self, what: str, _: object) -> bytes | Open:
        async def pieces():
            while True:
                yield bytes(10_000)

        return opened(pieces(), "async") if what == "stream" else bytes(10_000)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["asks", "cancels", "steps"])
async def test_who_reads_no_answer_does_not_have_them_held_without_end(how: str) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    here, codec = await Channel.over(ours, Generous(), Codec()), Codec()  # type: ignore[arg-type]

    def frames(number: int) -> list[Request | Cancel | Step]:
        if how == "steps":
            return [Step(1, "next")] if number > 1 else [Request(1, "stream")]
        return [Request(number, "x"), *([Cancel(number)] if how == "cancels" else [])]

    held = 0
    with theirs:
        for number in range(1, 6_000):
            for frame in frames(number):
                data = codec.encode(frame)
                with contextlib.suppress(ConnectionError):
                    sent = len(data).to_bytes(4, "big") + data
                    await asyncio.get_running_loop().sock_sendall(theirs, sent)
            for _ in range(6):  # it is read, served and answered
                await asyncio.sleep(0)
            held = max(held, here._writer.transport.get_write_buffer_size())
            if here.ended.done():
                break
    assert here.ended.done(), "it is not served any more"
    assert held < 1_000_000


@pytest.mark.anyio
async def test_what_is_asked_for_is_not_held_without_end(monkeypatch) -> None:
    monkeypatch.setattr(channel, "MOST_HELD", 100_000)
    ours, theirs = socket.socketpair()
    serving = Serving()
    there = await Channel.over(theirs, serving, Codec())
    here = await Channel.over(ours, Serving(), Codec())
    asked = [asyncio.ensure_future(here.ask("x", bytes(40_000))) for _ in range(3)]
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(each) for each in ended} == {WorkerEndedError}
    assert serving.count <= 2
    assert "too much" in there.why
