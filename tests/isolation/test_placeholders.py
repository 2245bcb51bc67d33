"""Placeholders: found wherever a body is cut, and nowhere where there is none."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_creds.isolation import placeholders
from apex_creds.isolation.placeholders import MisplacedError, Placeholders
from apex_creds.model import PLACEHOLDER
from apex_creds.redaction.content_coding import UndecodableError

MADE = Placeholders({"web": "sk-"})
while not MADE.of("web").endswith("a"):  # as the beginning of another would
    MADE = Placeholders({"web": "sk-"})
KEY = MADE.of("web").encode()


async def searched(parts: list[bytes], *encodings: str) -> tuple[bytes, str | None]:
    """What went on of a body, and whose placeholder was in it."""

    async def body() -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    out = b""
    try:
        headers = [(b"Content-Encoding", each.encode()) for each in encodings]
        async for chunk in MADE.search(body(), headers):
            out += chunk
    except MisplacedError as error:
        return out, error.name
    return out, None


texts = st.one_of(st.binary(max_size=40), st.sampled_from([b"apex", b"apexCreds", KEY[3:20]]))


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@settings(deadline=None)
@given(st.lists(texts, max_size=5), st.lists(st.integers(0, 500), max_size=12))
def test_a_body_without_one_goes_on_as_it_is(parts: list[bytes], at: list[int]) -> None:
    data = b"".join(parts)
    if PLACEHOLDER.encode() not in data:
        assert _run(searched(cut(data, at))) == (data, None)


@settings(deadline=None)
@given(texts, texts, st.lists(st.integers(0, 500), max_size=12))
def test_one_is_found_however_it_is_cut(before: bytes, after: bytes, at: list[int]) -> None:
    out, name = _run(searched(cut(before + KEY + after, at)))
    assert name in ("web", "")
    assert PLACEHOLDER.encode() not in out
    if PLACEHOLDER.encode() not in before:
        assert name == "web"
        assert (before + KEY).startswith(out)


@settings(deadline=None)
@given(texts, st.lists(st.integers(0, 500), max_size=12), st.sampled_from(["gzip", "deflate"]))
def test_one_is_found_in_what_is_compressed(before: bytes, at: list[int], coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress
    _, name = _run(searched(cut(pack(before + KEY), at), coding))
    assert name in ("web", "")
    packed = pack(b"x" + before[:4])
    assert _run(searched(cut(packed, at), coding)) == (packed, None)


def test_what_decompresses_to_very_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placeholders, "_MOST_DECODED", 1 << 20)
    packed = gzip.compress(bytes(1 << 20))
    assert _run(searched([packed], "gzip")) == (packed, None)
    with pytest.raises(UndecodableError):
        _run(searched([gzip.compress(bytes((1 << 20) + 1))], "gzip"))


def _run(work):
    import asyncio

    return asyncio.run(work)


def test_shaped_like_the_key_and_another_in_each_run() -> None:
    other = Placeholders({"web": "sk-", "b": ""})
    assert other.of("web").startswith("sk-apexCreds")
    assert len({other.of("web"), other.of("b"), MADE.of("web")}) == 3
    assert other.names_in(KEY) == {""}
    assert other.names_in(other.of("b").encode() + b"f" * 40) == {"b"}


@pytest.mark.parametrize("text", [b"", b"apexCredsPlaceholderNotASecre", b"\xff" * 90])
def test_none(text: bytes) -> None:
    assert MADE.names_in(text) == set()
