"""Arguments that lie about themselves become what they are, or are refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.errors import InvalidInputError
from apex_creds.plain import plain_bytes, plain_count, plain_seconds, plain_text, plain_texts


class Equal:
    """Equals everything, is less and more than everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __lt__(self, other: object) -> bool:
        return True

    __le__ = __gt__ = __ge__ = __lt__


class EvilText(Equal, str):
    def __hash__(self) -> int:
        return hash("read")

    def __str__(self) -> str:
        return "read"

    __repr__ = __format__ = __str__

    def encode(self, *_: object) -> bytes:
        return b"read"


class EvilBytes(Equal, bytes):
    __hash__ = bytes.__hash__

    def __len__(self) -> int:
        return 0

    def __bytes__(self) -> bytes:
        return b"other"


class EvilInt(Equal, int):
    __hash__ = int.__hash__

    def __int__(self) -> int:
        return 10**9

    __index__ = __trunc__ = __int__

    def __sub__(self, other: object) -> EvilInt:
        return self


class EvilFloat(Equal, float):
    __hash__ = float.__hash__

    def __float__(self) -> float:
        return 10.0**9

    def __radd__(self, other: object) -> float:
        return math.inf


class Twice(list):
    """Answers otherwise each time."""

    looks = 0

    def __iter__(self):
        Twice.looks += 1
        return iter(["read"] if Twice.looks == 1 else ["admin"])


class Posing:
    """Says that it is of every type."""

    @property
    def __class__(self):
        return str


@given(text=st.text())
def test_text_is_what_it_is(text: str) -> None:
    found = plain_text(EvilText(text), what="x")
    assert type(found) is str
    assert found == text
    assert plain_texts([EvilText(text)], what="x") == (text,)


@given(data=st.binary())
def test_bytes_are_what_they_are(data: bytes) -> None:
    for value in (EvilBytes(data), bytearray(data), memoryview(data), data):
        found = plain_bytes(value, what="x")
        assert type(found) is bytes
        assert found == data


@given(number=st.integers(1, 2**70))
def test_a_count_is_what_it_is(number: int) -> None:
    found = plain_count(EvilInt(number), what="x")
    assert type(found) is int
    assert found == number


@given(number=st.floats(min_value=1e-9, max_value=1e300))
def test_seconds_are_what_they_are(number: float) -> None:
    found = plain_seconds(EvilFloat(number), what="x")
    assert type(found) is float
    assert found == number
    assert plain_seconds(EvilInt(7), what="x") == 7.0


def test_a_sequence_is_read_once() -> None:
    texts = plain_texts(Twice(), what="x")
    assert texts == ("read",)
    assert texts == ("read",)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (plain_text, None), (plain_text, b"x"), (plain_text, 1),
        (plain_texts, "read"), (plain_texts, b"read"), (plain_texts, None), (plain_texts, [1]),
        (plain_texts, 5), (plain_texts, ["x"] * 1001),
        (plain_bytes, "x"), (plain_bytes, None), (plain_bytes, [1]),
        (plain_count, True), (plain_count, 1.0), (plain_count, 1.5), (plain_count, 0),
        (plain_count, -1), (plain_count, "1"), (plain_count, math.inf),
        (plain_count, EvilInt(0)),
        (plain_seconds, True), (plain_seconds, math.nan), (plain_seconds, math.inf),
        (plain_seconds, -1), (plain_seconds, 0), (plain_seconds, "1"), (plain_seconds, 10**400),
        (plain_seconds, EvilFloat("nan")), (plain_seconds, EvilFloat(-1)),
    ],
)  # fmt: skip
def test_what_is_something_else_is_refused(read, value) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(value, what="max_uses")
    assert "max_uses" in str(caught.value)


def test_the_error_runs_no_code_of_the_argument() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> object:
            raise AssertionError(name)

    class Odd(metaclass=Meta):
        def __repr__(self) -> str:
            raise AssertionError("repr")

    with pytest.raises(InvalidInputError):
        plain_text(Odd(), what="x")


def test_what_says_that_it_is_text_is_refused() -> None:
    for read in (plain_text, plain_bytes, plain_count, plain_seconds):
        with pytest.raises(InvalidInputError):
            read(Posing(), what="x")
    with pytest.raises(InvalidInputError):
        plain_texts([Posing()], what="x")
