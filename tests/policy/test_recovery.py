"""Recovery codes: how they look, how they may be typed, what is stored of them."""

from __future__ import annotations

import os
import re

from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes
from apex_creds.policy import recovery

SHAPE = re.compile(r"([0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}")


@given(st.binary(min_size=recovery.RANDOM_BYTES, max_size=recovery.RANDOM_BYTES))
def test_a_code_has_one_shape_and_reads_back(random):
    codes = recovery.make_codes(random)
    assert len(codes) == recovery.CODES
    for code in codes:
        assert SHAPE.fullmatch(code)
        assert recovery.normalised(code) == code.replace("-", "")
        assert recovery.normalised(f" {code.lower().replace('-', ' ')}\n") == code.replace(
            "-", ""
        )


def test_codes_differ():
    assert len({c for _ in range(20) for c in recovery.make_codes(os.urandom(240))}) == 200


def test_a_code_uses_all_of_its_120_bits():
    zero = recovery.make_codes(bytes(240))[0]
    seen = set()
    for at in range(24):
        for bit in range(5):
            random = bytearray(240)
            random[at] = 1 << bit
            seen.add(recovery.make_codes(bytes(random))[0])
    assert len(seen - {zero}) == 120


def test_letters_that_look_alike_are_one():
    assert recovery.normalised("OIL0-" + "0000-" * 4 + "0000") == "0110" + "0" * 20


@given(st.text())
def test_any_text_may_be_typed(text):
    assert len(recovery.normalised(text)) in (0, 24)


def test_what_is_stored_depends_on_the_key_and_tells_nothing_of_the_code():
    code = recovery.normalised(recovery.make_codes(os.urandom(240))[0])
    with SecretBytes.random(32) as one, SecretBytes.random(32) as two:
        assert recovery.digest(one, code) == recovery.digest(one, code)
        assert recovery.digest(one, code) != recovery.digest(two, code)
        assert code.encode() not in recovery.digest(one, code)
