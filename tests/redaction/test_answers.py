"""An answer goes on without the secret, as it comes; what can't be searched does not go on."""

from __future__ import annotations

import base64
import gzip
import zlib
from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apex_creds.errors import AnswerWithheldError
from apex_creds.redaction.answers import (
    SearchedAnswer,
    SearchedMessages,
    ask,
    clean_headers,
)
from apex_creds.redaction.content_coding import WINDOW
from apex_creds.redaction.masks import Mask
from apex_creds.redaction.spellings import spellings

SECRET = b"s3cr3t/key+with==signs 0123456789"


@pytest.fixture(scope="module")
def mask() -> Iterator[Mask]:
    made = Mask("key", [memoryview(SECRET)])
    yield made
    made.close()


def searched(mask: Mask, *headers: tuple[bytes, bytes], found: list[str] | None = None,
             status: int = 200, method: str = "GET") -> SearchedAnswer:  # fmt: skip
    report = ([] if found is None else found).append
    return SearchedAnswer(
        [mask], status=status, headers=list(headers), method=method, on_found=report
    )


def read(answer: SearchedAnswer, chunks: list[bytes]) -> bytes:
    return b"".join([*(piece for chunk in chunks for piece in answer.feed(chunk)),
                     answer.finish()])  # fmt: skip


def deflated(data: bytes, *, wbits: int) -> bytes:
    making = zlib.compressobj(wbits=wbits)
    return making.compress(data) + making.flush()


AROUND = st.text("xyz. -\n\u20ac", max_size=300).map(str.encode)
"""Nothing that makes another spelling of what it is beside, as a zero byte beside UTF-16."""
CODINGS = {
    b"identity": lambda data: data,
    b"gzip": gzip.compress,
    b"X-GZIP": lambda data: (
        gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])
    ),
    b"deflate": lambda data: deflated(data, wbits=zlib.MAX_WBITS),
    b"Deflate": lambda data: deflated(data, wbits=-zlib.MAX_WBITS),
    b"deflate, gzip": lambda data: gzip.compress(deflated(data, wbits=zlib.MAX_WBITS)),
}


@settings(max_examples=200)
@given(
    number=st.integers(0, 1000),
    coding=st.sampled_from(list(CODINGS)),
    before=AROUND,
    after=AROUND,
    cuts=st.lists(st.integers(0, 2000), max_size=10),
)
def test_every_spelling_under_every_coding_in_all_pieces(
    mask: Mask, number: int, coding: bytes, before: bytes, after: bytes, cuts: list[int]
) -> None:
    secrets = spellings(memoryview(SECRET))
    spelled = secrets[number % len(secrets)].expose_bytes()
    for each in secrets:
        each.close()
    body = CODINGS[coding](before + spelled + after)
    places = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    found: list[str] = []
    headers = (b"Content-Encoding", coding), (b"Content-Length", b"%d" % len(body))
    answer = searched(mask, *headers, (b"X", b"1"), found=found)
    came = read(answer, [body[a:b] for a, b in pairwise(places)])
    assert came == before + b"*" * len(spelled) + after
    assert found == ["key"]
    changed = coding != b"identity"
    assert answer.headers == ([(b"X", b"1")] if changed else [*headers, (b"X", b"1")])


def test_what_has_no_secret_is_the_same_object(mask: Mask) -> None:
    headers = [(b"date", b"Mon, 30 Nov 2026 06:48:24 GMT"), (b"content-length", b"5")]
    answer = SearchedAnswer(
        [mask], status=200, headers=headers, method="GET", on_found=lambda name: 1 / 0
    )
    assert answer.headers is headers
    chunk = b"data: {}\n\n"
    assert next(iter(answer.feed(chunk))) is chunk


def test_events_come_one_by_one(mask: Mask) -> None:
    """Each goes on before the next is there; only what could begin a secret waits."""
    answer = searched(mask, (b"content-type", b"text/event-stream"))
    for number in range(100):
        event = b'data: {"n": %d, "text": "s3cr"}\n\n' % number
        assert b"".join(answer.feed(event)) == event
    assert b"".join(answer.feed(b"data: s3cr")) == b"data: "
    assert b"".join(answer.feed(b"3t is not it\n\n")) == b"s3cr3t is not it\n\n"
    assert answer.finish() == b""


def test_a_leak_is_reported_before_it_goes_on(mask: Mask) -> None:
    answer = SearchedAnswer(
        [mask], status=200, headers=[], method="GET", on_found=lambda name: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        read(answer, [b"." + SECRET])
    with pytest.raises(ZeroDivisionError):
        SearchedAnswer(
            [mask], status=200, headers=[(b"x", SECRET)], method="GET",
            on_found=lambda name: 1 / 0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "headers", "chunks"),
    [
        (200, [(b"content-encoding", b"br")], [b"?"]),
        (200, [(b"content-encoding", b"zstd")], [b"?"]),
        (200, [(b"content-encoding", b"gzip, br")], [b"?"]),
        (200, [(b"content-encoding", b"gzip")] * 9, [b"?"]),
        (200, [(b"content-encoding", b"aes128gcm")], [b"?"]),
        (200, [(b"content-encoding", b"gzip")], [b"nonsense"]),
        (200, [(b"content-encoding", b"gzip")], [gzip.compress(SECRET)[:-9] + b"nonsense!"]),
        (200, [(b"content-encoding", b"gzip")], [gzip.compress(SECRET)[:-5]]),
        (200, [(b"content-encoding", b"deflate")], [b"x"]),
        (206, [(b"content-encoding", b"gzip")], [b"?"]),
        (200, [(b"content-range", b"bytes 0-5/9"), (b"content-encoding", b"gzip")], [b"?"]),
        (206, [(b"content-type", b"multipart/byteranges; boundary=x")], [b"?"]),
    ],
)
def test_what_can_not_be_searched_goes_no_further(
    mask: Mask, status: int, headers: list[tuple[bytes, bytes]], chunks: list[bytes]
) -> None:
    with pytest.raises(AnswerWithheldError) as caught:
        read(searched(mask, *headers, status=status), chunks)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304), ("GET", 204)])
def test_an_answer_without_a_body_keeps_its_headers(
    mask: Mask, method: str, status: int
) -> None:
    headers = [(b"content-encoding", b"br"), (b"content-length", b"9")]
    answer = searched(mask, *headers, method=method, status=status)
    assert answer.headers == headers
    assert read(answer, []) == b""


def test_a_compressed_body_of_nothing_is_nothing(mask: Mask) -> None:
    assert read(searched(mask, (b"content-encoding", b"gzip")), [b"", b""]) == b""
    trailing = gzip.compress(b"text") + b"\0\0\0"
    assert read(searched(mask, (b"content-encoding", b"gzip")), [trailing]) == b"text"


def test_a_bomb_comes_in_windows(mask: Mask) -> None:
    size = 1 << 24
    bomb = gzip.compress(gzip.compress(bytes(size) + SECRET))
    answer = searched(mask, (b"content-encoding", b"gzip, gzip"))
    came = 0
    for piece in answer.feed(bomb):
        assert len(piece) <= WINDOW + mask.longest
        assert SECRET not in piece
        came += len(piece)
    assert came + len(answer.finish()) == size + len(SECRET)


@pytest.mark.parametrize("coding", [b"identity", b"gzip"])
@pytest.mark.parametrize("begin", [b"", SECRET[:9]])
def test_what_is_searched_for_is_wiped_while_the_answer_comes(
    coding: bytes, begin: bytes
) -> None:
    """By a lockdown, in another thread: what comes then goes no further."""
    mask = Mask("key", [memoryview(SECRET)])
    answer = searched(mask, (b"content-encoding", coding))
    body = CODINGS[coding](SECRET)
    if coding == b"identity":
        assert not any(answer.feed(begin))
    mask.close()
    with pytest.raises(AnswerWithheldError, match="ended"):
        read(answer, [body])


def test_messages_end_with_what_they_are_searched_for() -> None:
    mask = Mask("key", [memoryview(SECRET)])
    messages = SearchedMessages([mask], on_found=lambda name: None)
    assert messages.whole("text") == "text"
    mask.close()
    for search in (messages.whole, messages.feed, messages.finish):
        with pytest.raises(AnswerWithheldError, match="ended"):
            search(SECRET)


def test_ranges_of_an_echo_do_not_add_up_to_the_secret(mask: Mask) -> None:
    echo = b"." * 200 + SECRET + b"." * 200
    for size in (4, 5, 9, 16, 64):
        for begin in range(0, len(echo), size):
            piece = echo[begin : begin + size]
            answer = searched(mask, (b"content-range", b"bytes 0-1/2"), status=206)
            came = read(answer, [piece])
            assert len(came) == len(piece)
            assert len(came.replace(b"*", b"").replace(b".", b"")) < 4
    for begin in range(len(echo)):
        answer = searched(mask, status=206)
        assert read(answer, [echo[begin : begin + 1]]) in (b".", b"*")


@given(
    secret=st.text(
        st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=8, max_size=40
    ),
    before=st.text("abc", max_size=4),
    form=st.sampled_from(["plain", "upper", "hex", "base64", "quoted", "twice", "title"]),
)
@example(secret="0%30%30%", before="", form="twice")
def test_no_form_of_the_secret_comes_back_in_a_header(
    secret: str, before: str, form: str
) -> None:
    encoded = base64.b64encode((before + secret).encode()).decode()
    text = {
        "plain": secret,
        "upper": secret.upper(),
        "title": secret.title(),
        "hex": secret.encode().hex(),
        "base64": encoded,
        "quoted": quote(secret, safe=""),
        "twice": quote(quote(secret, safe=""), safe=""),
    }[form].encode()
    mask = Mask("key", [memoryview(secret.encode())])
    headers = [(b"location", b"/?k=" + text), (b"x", b"1"), (text, b"2")]
    found: set[str] = set()
    clean = clean_headers(headers, [mask], found)
    mask.close()
    assert (b"x", b"1") in clean
    assert all(text not in value for _, value in clean)
    assert form in ("quoted", "twice") or all(text not in name for name, _ in clean)
    assert [len(value) for _, value in clean] == [len(value) for _, value in headers]
    assert found == {"key"}


def test_a_secret_in_two_headers_is_covered(mask: Mask) -> None:
    headers = [(b"a", SECRET[:9]), (b"b", SECRET[9:]), (b"c", b"1")]
    assert clean_headers(headers, [mask], set()) == [
        (b"a", b"*" * 9), (b"b", b"*" * (len(SECRET) - 9)), (b"c", b"1"),
    ]  # fmt: skip


def test_nothing_is_asked_for_that_can_not_be_searched() -> None:
    def asked(*headers: tuple[bytes, bytes]) -> list[bytes]:
        made = [(name.lower(), name, value) for name, value in headers]
        ask(made)
        return [value for _, _, value in made]

    assert asked((b"Accept-Encoding", b"gzip, deflate, br;q=0.9, zstd")) == [b"gzip, deflate"]
    assert asked((b"Accept-Encoding", b"br")) == [b"identity"]
    assert asked((b"Accept-Encoding", b"*")) == [b"identity"]
    ranged = asked((b"Accept-Encoding", b"gzip"), (b"Range", b"bytes=0-"))
    assert ranged == [b"identity", b"bytes=0-"]


def test_messages_are_as_long_as_they_were(mask: Mask) -> None:
    found: list[str] = []
    messages = SearchedMessages([mask], on_found=found.append)
    text = "é" + SECRET.decode() + "€"
    assert messages.whole(text) == "é" + "*" * len(SECRET) + "€"
    assert found == ["key"]
    same = "nothing"
    assert messages.whole(same) is same
    assert messages.whole(b"." + SECRET) == b"." + b"*" * len(SECRET)
    first = messages.feed(b"." + SECRET[:5])
    assert first == b"."
    assert first + messages.finish(SECRET[5:] + b"!") == b"." + b"*" * len(SECRET) + b"!"
    assert messages.finish(SECRET[:5]) == SECRET[:5]  # the next message: no secret after all
