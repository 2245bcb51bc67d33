"""Credential parts: one canonical form, nothing else is read."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.records import encode_parts, layout_of, parts_layout
from apex_creds.errors import CorruptDocumentError, InvalidInputError
from tests.support.slots import open_slots

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=64)
ONE = st.fixed_dictionaries({"value": st.binary(max_size=300)})
PARTS = ONE | st.dictionaries(NAMES, st.binary(max_size=300), min_size=1, max_size=12)


def _read(encoded: SecretBytes) -> dict[str, bytes]:
    view = encoded.view()
    return {name: bytes(view[at : at + n]) for name, (at, n) in parts_layout(view).items()}


@given(PARTS)
def test_what_goes_in_comes_out_in_any_order(values: dict[str, bytes]) -> None:
    backwards = dict(reversed(values.items()))
    with encode_parts(values) as one, encode_parts(backwards) as two:
        assert _read(one) == values
        assert one.equals(two)
        assert layout_of(one) == parts_layout(one.view())


@given(st.binary(max_size=40))
def test_locked_memory_is_read_as_strictly(rest: bytes) -> None:
    """The short cut for one part takes nothing that the whole rule does not."""
    for data in (b"\x01\x05value" + rest, rest):
        with SecretBytes.from_bytes(data) as whole:
            try:
                expected = parts_layout(memoryview(data))
            except CorruptDocumentError:
                with pytest.raises(CorruptDocumentError):
                    layout_of(whole)
            else:
                assert layout_of(whole) == expected


def test_the_documented_example() -> None:
    with encode_parts({"user": b"ada", "password": b"lovelace"}) as encoded:
        assert encoded.expose_bytes() == (
            b"\x02\x08password\x00\x00\x00\x08\x04user\x00\x00\x00\x03lovelaceada"
        )
        assert parts_layout(encoded.view()) == {"password": (23, 8), "user": (31, 3)}


def test_the_largest_credential_fits_a_pooled_slot() -> None:
    before = open_slots()
    with encode_parts({"value": bytes(64 * 1024), "b" * 64: b""}) as encoded:
        assert len(_read(encoded)["value"]) == 64 * 1024
        assert open_slots() == before + 1


@pytest.mark.parametrize(
    "name", ["", "A", "a-b", "a b", "é", "a" * 65, "\0", "\ud800", "a\n", "٣"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        encode_parts({name: b"x"})


def test_none_and_too_many_parts_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        encode_parts({})
    with encode_parts({f"p{i}": b"" for i in range(255)}) as most:
        assert len(parts_layout(most.view())) == 255
    with pytest.raises(InvalidInputError):
        encode_parts({f"p{i}": b"" for i in range(256)})


BAD = {
    "empty": b"",
    "no part": b"\x00",
    "no part, trailing": b"\x00x",
    "no table": b"\x01",
    "empty name": b"\x01\x00\x00\x00\x00\x00",
    "name cut": b"\x01\x05valu",
    "length cut": b"\x01\x01a\x00\x00\x00",
    "value cut": b"\x01\x01a\x00\x00\x00\x02x",
    "trailing": b"\x01\x01a\x00\x00\x00\x01xy",
    "huge length": b"\x01\x01a\xff\xff\xff\xffx",
    "upper case": b"\x01\x01A\x00\x00\x00\x01x",
    "not ascii": b"\x01\x02\xc3\xa9\x00\x00\x00\x01x",
    "newline": b"\x01\x02a\n\x00\x00\x00\x01x",
    "long name": b"\x01\x41" + b"a" * 65 + b"\x00\x00\x00\x01x",
    "twice": b"\x02\x01a\x00\x00\x00\x01\x01a\x00\x00\x00\x01xy",
    "descending": b"\x02\x01b\x00\x00\x00\x01\x01a\x00\x00\x00\x01xy",
    "value, no length": b"\x01\x05value",
    "value, length cut": b"\x01\x05value\x00\x00\x00",
    "value, too short": b"\x01\x05value\x00\x00\x00\x02x",
    "value, trailing": b"\x01\x05value\x00\x00\x00\x01xy",
    "fewer than counted": b"\x02\x01a\x00\x00\x00\x01x",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_anything_else_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptDocumentError):
        parts_layout(memoryview(data))


@given(PARTS)
def test_every_truncation_is_corrupt(values: dict[str, bytes]) -> None:
    with encode_parts(values) as encoded:
        data = encoded.expose_bytes()
    for end in itertools.chain(range(min(len(data), 200)), (len(data) - 1,)):
        with pytest.raises(CorruptDocumentError):
            parts_layout(memoryview(data)[:end])


@given(st.binary(max_size=60))
def test_noise_is_refused_or_is_in_the_canonical_form(data: bytes) -> None:
    try:
        places = parts_layout(memoryview(data))
    except CorruptDocumentError:
        return
    with encode_parts({name: data[at : at + n] for name, (at, n) in places.items()}) as again:
        assert again.expose_bytes() == data
