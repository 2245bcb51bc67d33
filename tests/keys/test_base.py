"""The text form of a master key has one canonical form."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes
from apex_creds.keys.provider import decode_key, encode_key


@given(st.binary(min_size=32, max_size=32))
def test_reading_and_writing_agree_with_the_standard(data):
    text = base64.b64encode(data)
    with SecretBytes.from_bytes(data) as key:
        assert encode_key(key) == text
    for form in (text, text.decode(), bytearray(text), memoryview(text)):
        with decode_key(form) as key:
            assert key.equals(data)


GOOD = base64.b64encode(bytes(range(32))).decode()


@pytest.mark.parametrize(
    "text",
    ["", "A", GOOD[:-1], GOOD + "=", GOOD + "\n", " " + GOOD[1:], GOOD[:-2] + "==", "=" * 44,
     GOOD[:-2] + "9=", "-" + GOOD[1:], "_" + GOOD[1:], "é" + GOOD[1:], "\x00" * 44,
     base64.b64encode(bytes(31)).decode(), base64.b64encode(bytes(33)).decode()],
)  # fmt: skip
def test_anything_else_is_no_key(text):
    assert decode_key(text) is None
    assert decode_key(text.encode()) is None


@given(st.text(min_size=44, max_size=44))
def test_noise_is_no_key_and_no_crash(text):
    key = decode_key(text)
    if key is not None:
        assert encode_key(key).decode() == text
