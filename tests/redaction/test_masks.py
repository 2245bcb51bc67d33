"""Every byte of every occurrence is covered, however the text comes; nothing else changes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes, arena
from apex_creds.redaction.escapes import DEPTH, begun, unescaped
from apex_creds.redaction.masks import Mask, MaskedStream, _Level, masked
from apex_creds.redaction.spellings import spellings

# Few letters, so that occurrences overlap, repeat, and begin in one another.
SECRETS = st.text("abA/ ", min_size=4, max_size=14).map(str.encode)
KEY = b'sk-live_0123456789 "quoted"/+abcdefghij'


def spelled(secret: bytes) -> list[bytes]:
    found = spellings(memoryview(secret))
    texts = [each.expose_bytes() for each in found]
    for each in found:
        each.close()
    return texts


def expected(text: bytes, mask: Mask) -> bytes:
    """Searched byte by byte, all at once; also without its escapes."""
    clean = bytearray(text)
    needles = [needle.expose_bytes() for needle in mask._needles.secrets]
    whole = _Level(text, ())
    for level in (whole, *mask._levels(text)):
        for needle in needles:
            for at in range(len(level.text) - len(needle) + 1):
                if level.text[at : at + len(needle)] == needle:
                    start, end = level(at), level(at + len(needle))
                    clean[start:end] = b"*" * (end - start)
    return bytes(clean)


def in_pieces(text: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


@given(secret=SECRETS, data=st.data(), cuts=st.lists(st.integers(0, 400), max_size=12))
def test_a_stream_is_covered_as_its_whole_text_would_be(
    secret: bytes, data: st.DataObject, cuts: list[int]
) -> None:
    mask = Mask("key", [memoryview(secret)])
    needles = [needle.expose_bytes() for needle in mask._needles.secrets]
    pieces = st.one_of(
        st.sampled_from(needles),
        st.sampled_from(needles).flatmap(
            lambda n: st.integers(0, len(n)).flatmap(lambda k: st.sampled_from([n[:k], n[k:]]))
        ),
        st.text("abA/ %7", max_size=6).map(str.encode),
    )
    text = b"".join(data.draw(st.lists(pieces, max_size=6)))
    found: set[str] = set()
    stream = MaskedStream([mask], found)
    came = b"".join([*(stream.feed(piece) for piece in in_pieces(text, cuts)), stream.finish()])
    clean = expected(text, mask)
    assert came == clean
    assert masked(text, [mask], set()) == clean
    assert bool(found) == (clean != text)
    mask.close()


def test_what_is_held_twice_stays_covered() -> None:
    needle = rb"\u0041" * 4
    mask = Mask("key", [memoryview(b"AAAA")])
    stream = MaskedStream([mask], set())
    came = stream.feed(needle) + stream.feed(b"\\") + stream.feed(b"!") + stream.finish()
    assert came == b"*" * len(needle) + b"\\!"
    mask.close()


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_every_spelling_is_covered_wherever_it_is_cut(size: int) -> None:
    with_runs = Mask("key", [memoryview(KEY)])
    assert any(len(members) > 1 for _, members in with_runs._runs)
    for needle in spelled(KEY):
        text = b"x" * 997 + needle + b"y" * 501
        stream = MaskedStream([with_runs], set())
        came = [stream.feed(text[at : at + size]) for at in range(0, len(text), size)]
        whole = b"".join([*came, stream.finish()])
        assert whole == b"x" * 997 + b"*" * len(needle) + b"y" * 501
    with_runs.close()


def test_a_run_that_is_everywhere_is_no_hiding_place() -> None:
    mask = Mask("key", [memoryview(KEY)])
    for run, members in mask._runs:
        if len(members) > 1:
            text = bytes(run) * 500 + KEY + bytes(run) * 3
            assert KEY not in masked(text, [mask], set())
    mask.close()


def test_two_secrets_that_overlap_are_both_covered() -> None:
    masks = [Mask("one", [memoryview(b"abcdefgh")]), Mask("two", [memoryview(b"fghijklm")])]
    found: set[str] = set()
    assert masked(b"-abcdefghijklm-", masks, found) == b"-*************-"
    assert found == {"one", "two"}


@given(before=st.binary(max_size=20), after=st.binary(max_size=20))
@example(before=b"data: {}\n\n", after=b"")
def test_only_an_end_that_could_begin_a_secret_waits(before: bytes, after: bytes) -> None:
    mask = Mask("key", [memoryview(KEY)])
    needles = [needle.expose_bytes() for needle in mask._needles.secrets]
    stream = MaskedStream([mask], set())
    passed = stream.feed(before + after)
    held = (before + after)[len(passed) :]
    assert passed == (before + after)[: len(passed)]
    texts = [held]  # as it is, or without escapes, of which the last may not be all there
    for _ in range(DEPTH):
        whole = texts[-1][: begun(texts[-1])]
        found = unescaped(whole)
        texts += [whole, found.text if found else whole]
    assert not held or any(needle.startswith(text) for needle in needles for text in texts)
    mask.close()


@given(start=st.integers(0, len(KEY)), end=st.integers(0, len(KEY)), around=st.booleans())
def test_a_piece_of_a_text_shows_no_part_of_a_secret_at_its_ends(
    start: int, end: int, around: bool
) -> None:
    """A range of bytes that a service sends may cut an echo in two."""
    mask = Mask("key", [memoryview(KEY)])
    text = b"." * 300 + KEY + b"." * 300
    begin = 300 + start if around else 0
    stop = 300 + end
    piece = text[begin : max(begin, stop)]
    stream = MaskedStream([mask], set(), piece=True)
    came = stream.feed(piece) + stream.finish()
    assert len(came) == len(piece)
    shown = came.replace(b"*", b"").replace(b".", b"")
    assert len(shown) < 4
    mask.close()


def test_what_was_searched_for_is_wiped() -> None:
    before, given_up = arena().open_slots, arena().quarantined
    mask = Mask("key", [memoryview(KEY)])
    secrets: list[SecretBytes] = mask._needles.secrets
    masked(KEY * 3, [mask], set())
    mask.close()
    assert all(secret.closed for secret in secrets)
    assert (arena().open_slots, arena().quarantined) == (before, given_up)


def test_short_secrets_are_not_searched_for() -> None:
    mask = Mask("key", [memoryview(b"abc")])
    stream = MaskedStream([mask], set())
    assert stream.feed(b"abcabc") == b"abcabc"
    assert mask.longest == 0


MIXED = b"s3cr3t/key+with==~(s)'and-0123"
FORMS = [
    "%%%02X", "%%%02x", "\\u%04x", "\\u%04X", "\\\\u%04x", "\\x%02x", "&#%d;",
    "&#x%x;", "&#x%04X;", "&amp;#%d;", "%%25%02x", "\\u0025%02x", "%%u%04x",
]  # fmt: skip


@given(
    forms=st.lists(st.sampled_from(["", "", *FORMS]), min_size=1, max_size=len(MIXED)),
    around=st.tuples(st.text("xyz%\\&\n ", max_size=30), st.text("xyz \n", max_size=30)),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_escapes_of_all_kinds_in_one_secret(
    forms: list[str], around: tuple[str, str], cuts: list[int]
) -> None:
    """Each byte by another encoder, or by one that nobody knows; wherever it is cut."""
    mask = Mask("key", [memoryview(MIXED)])
    spelled = "".join(
        form % byte if (form := forms[at % len(forms)]) else chr(byte)
        for at, byte in enumerate(MIXED)
    ).encode()
    before, after = around[0].encode() + b".", around[1].encode()
    found: set[str] = set()
    stream = MaskedStream([mask], found)
    pieces = in_pieces(before + spelled + after, cuts)
    came = b"".join([*map(stream.feed, pieces), stream.finish()])
    assert came == before + b"*" * len(spelled) + after
    assert found == {"key"}
    mask.close()


@pytest.mark.parametrize(
    "text",
    [
        rb'{"a": "C:\\new\n\"x\" \u00e9\u0026 %2F%7e &amp; &#47;&quot;"}',
        b'data: {"text": "100% of it\\\\"}\n\n',
        b"%" * 100 + b"\\" * 101 + b"&" * 100 + b"&#" * 9 + b"\\u00" * 9 + b"\n",
    ],
)
def test_escapes_of_other_text_go_on_at_once(text: bytes) -> None:
    mask = Mask("key", [memoryview(MIXED)])
    stream = MaskedStream([mask], set())
    assert stream.feed(text) == text
    assert masked(text, [mask], set()) is text
    mask.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"x %7", b"3"),
        (b"x \\u00", b"73"),
        (b"x &#1", b"15;"),
        (b"x s3c%", b"72"),
        (b"x %733", b"c"),
    ],
)
def test_an_escape_that_is_not_all_there_waits(first: bytes, second: bytes) -> None:
    mask = Mask("key", [memoryview(MIXED)])
    stream = MaskedStream([mask], set())
    assert stream.feed(first) == b"x "
    assert stream.feed(second) == b""
    assert stream.finish() == first[2:] + second
    mask.close()
