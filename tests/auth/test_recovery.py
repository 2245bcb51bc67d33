"""Recovery codes: how they look, how they may be typed, what is stored of them."""

from __future__ import annotations

import os
import re

from hypothesis import given
from hypothesis import strategies as st

from apex_creds.auth import totp
from apex_creds.crypto.memory import SecretBytes

SHAPE = re.compile(r"([0-9A-HJKMNP-TV-Z]{4}-){5}[0-9A-HJKMNP-TV-Z]{4}")


@given(st.binary(min_size=totp.RECOVERY_RANDOM_BYTES, max_size=totp.RECOVERY_RANDOM_BYTES))
def test_a_code_has_one_shape_and_reads_back(random):
    codes = totp.make_recovery_codes(random)
    assert len(codes) == totp.RECOVERY_CODES
    for code in codes:
        assert SHAPE.fullmatch(code)
        assert totp.normalised(code) == code.replace("-", "")
        assert totp.normalised(f" {code.lower().replace('-', ' ')}\n") == code.replace("-", "")


def test_codes_differ():
    assert len({c for _ in range(20) for c in totp.make_recovery_codes(os.urandom(240))}) == 200


def test_a_code_uses_all_of_its_120_bits():
    zero = totp.make_recovery_codes(bytes(240))[0]
    seen = set()
    for at in range(24):
        for bit in range(5):
            random = bytearray(240)
            random[at] = 1 << bit
            seen.add(totp.make_recovery_codes(bytes(random))[0])
    assert len(seen - {zero}) == 120


def test_letters_that_look_alike_are_one():
    assert totp.normalised("OIL0-" + "0000-" * 4 + "0000") == "0110" + "0" * 20


@given(st.text())
def test_any_text_may_be_typed(text):
    assert len(totp.normalised(text)) in (0, 24)


def test_what_is_stored_depends_on_the_key_and_tells_nothing_of_the_code():
    code = totp.normalised(totp.make_recovery_codes(os.urandom(240))[0])
    with SecretBytes.random(32) as one, SecretBytes.random(32) as two:
        assert totp.recovery_digest(one, code) == totp.recovery_digest(one, code)
        assert totp.recovery_digest(one, code) != totp.recovery_digest(two, code)
        assert code.encode() not in totp.recovery_digest(one, code)
