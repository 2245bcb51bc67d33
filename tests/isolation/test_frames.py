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
from apex_creds.isolation.channel import Channel
from apex_creds.isolation.frames import (
    LARGEST,
    Answer,
    Codec,
    Failure,
    ProtocolError,
    error_of,
    failure_of,
)

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
    found = codec.decode(codec.encode(Answer(1, codec.plain(value))))
    assert isinstance(found, Answer)
    assert found.value == value


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
        Codec().encode(Answer(1, bytes(LARGEST + 1)))


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

    def heard(self, what: str, value: object) -> None:
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
