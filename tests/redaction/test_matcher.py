"""Needles are found whole and cut, with work that grows no faster than text and needles."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes
from apex_creds.redaction import matcher as module
from apex_creds.redaction.matcher import SHORTEST, Needles, mark_of, marks

SECRETS = st.lists(st.text("xy", min_size=SHORTEST, max_size=9), min_size=1, max_size=4)
REPEATED = (b"x", b"xy", b"xxy", b"x" * 40 + b"y")


def looking_for(secrets: list[str]) -> Needles:
    needles = Needles()
    for secret in secrets:
        needles.add("n", memoryview(secret.encode()))
    return needles


def in_pieces(needles: Needles, data: bytes, size: int) -> Iterator[bytes]:
    held = b""
    for at in range(0, len(data), size):
        held += data[at : at + size]
        cut = needles.searchable(held)
        yield needles.replace(held[:cut], set())
        held = held[cut:]
    yield needles.replace(held, set())


@given(SECRETS, st.text("xy", max_size=60), st.integers(1, 9))
def test_pieces_are_searched_as_the_whole_is(secrets: list[str], text: str, size: int) -> None:
    needles, data = looking_for(secrets), text.encode()
    try:
        assert b"".join(in_pieces(needles, data, size)) == needles.replace(data, set())
    finally:
        needles.close()


@given(SECRETS, st.text("xy", max_size=80))
def test_what_is_held_back_is_at_most_two_needles_long(secrets: list[str], text: str) -> None:
    needles, data = looking_for(secrets), text.encode()
    try:
        longest = max(len(spelling.secret) for spelling in needles._needles)
        assert len(data) - needles.searchable(data) < 2 * longest
    finally:
        needles.close()


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of the module a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> object:
        nonlocal count
        if frame.f_code.co_filename != module.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("unit", REPEATED)
@pytest.mark.parametrize("end", [b"", b"y", b"xz", b"xyx"])
def test_a_secret_that_repeats_itself_costs_no_more_than_its_length(
    unit: bytes, end: bytes
) -> None:
    counts = []
    for size in (2000, 8000):
        needles = Needles()
        needles.add("n", memoryview((unit * size)[:size]))
        data = (unit * size)[: 3 * size] + end
        counts.append(lines_run(lambda data=data, n=needles: n.searchable(data)))
        needles.close()
    assert counts[1] < 6 * counts[0]


def test_of_many_needles_a_short_text_is_held_against_few() -> None:
    needles = looking_for([f"token-{number:05}-xy" for number in range(100)])
    try:
        assert len(needles._needles) > 1000
        for _ in range(20):
            found: set[str] = set()
            assert needles.replace(b"nothing", found) == b"nothing"
            assert needles.replace(b"a token-00042-xy", found) == b"a [redacted:n]"
            assert found == {"n"}
        possible = needles._possible(b"a token-00042-xy")
        assert len(possible) < len(needles._needles) / 8, "the secrets, not their spellings"
    finally:
        needles.close()


@given(
    st.binary(min_size=SHORTEST, max_size=20), st.binary(max_size=20), st.binary(max_size=20)
)
def test_a_text_has_the_marks_of_what_is_in_it(
    needle: bytes, before: bytes, after: bytes
) -> None:
    with SecretBytes.random(8) as salt:
        assert mark_of(memoryview(needle), salt) in marks(before + needle + after, salt)
