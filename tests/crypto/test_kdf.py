"""Derivations agree with the RFCs; weak parameters are refused."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto import kdf
from apex_creds.crypto.kdf import Purpose
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import InvalidInputError, SecretWipedError
from tests.support.slots import open_slots

RFC_5869 = [  # key, salt, info, length, output: test cases 1 and 2 of appendix A
    (
        "0b" * 22,
        "000102030405060708090a0b0c",
        "f0f1f2f3f4f5f6f7f8f9",
        42,
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)).hex(),
        bytes(range(0x60, 0xB0)).hex(),
        bytes(range(0xB0, 0x100)).hex(),
        82,
        (
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41"
            "c65e590e09da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87"
        ),
    ),
]


@pytest.mark.parametrize(("key", "salt", "info", "length", "output"), RFC_5869)
def test_hkdf_is_rfc_5869(key: str, salt: str, info: str, length: int, output: str) -> None:
    with SecretBytes.from_bytes(bytes.fromhex(key)) as secret:
        made = kdf.hkdf(
            secret, salt=bytes.fromhex(salt), info=bytes.fromhex(info), length=length
        )
    assert made.expose_bytes().hex() == output


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    middle = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(middle, info + b"\x01", "sha256")


@given(st.sampled_from(Purpose), st.binary(max_size=64), st.binary(max_size=64))
def test_derive_is_hkdf_with_the_documented_info(
    purpose: Purpose, context: bytes, salt: bytes
) -> None:
    raw = hashlib.sha256(b"key").digest()
    info = b"apex-creds/v1/" + purpose.encode() + (b"\0" + context if context else b"")
    with SecretBytes.from_bytes(raw) as key:
        made = kdf.derive(key, purpose, context=context, salt=salt)
    assert made.expose_bytes() == _hkdf(raw, salt, info)


def test_no_two_purposes_share_a_key() -> None:
    with SecretBytes.random(32) as key:
        made = {kdf.derive(key, each).expose_bytes() for each in Purpose}
        made |= {kdf.derive(key, each, context=b"c").expose_bytes() for each in Purpose}
    assert len(made) == 2 * len(Purpose)
    assert not any("\0" in purpose for purpose in Purpose)


def test_bad_inputs_are_refused() -> None:
    with SecretBytes.random(31) as short, SecretBytes.random(15) as tiny:
        with pytest.raises(InvalidInputError):
            kdf.derive(short, Purpose.KEK)
        with pytest.raises(InvalidInputError):
            kdf.hkdf(tiny, info=b"x")
        with pytest.raises(InvalidInputError):
            kdf.hkdf(short, info=b"")
        with pytest.raises(InvalidInputError):
            kdf.hmac_sha256(tiny, b"x")
        for length in (0, -1, 255 * 32 + 1):
            with pytest.raises(InvalidInputError):
                kdf.hkdf(short, info=b"x", length=length)


def test_a_wiped_key_is_refused() -> None:
    key = SecretBytes.random(32)
    key.close()
    for use in (
        lambda: kdf.derive(key, Purpose.KEK),
        lambda: kdf.hkdf(key, info=b"x"),
        lambda: kdf.hmac_sha256(key, b"x"),
        lambda: kdf.argon2id(key, salt=bytes(16), opslimit=3, memlimit=2**28),
    ):
        with pytest.raises(SecretWipedError):
            use()


def test_hmac_is_rfc_4231() -> None:
    with SecretBytes.from_bytes(b"\x0b" * 20) as key:
        made = kdf.hmac_sha256(key, b"Hi There")
    assert made.hex() == "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"


@given(st.binary(min_size=16, max_size=200), st.binary(max_size=200))
def test_hmac_agrees_with_the_standard_library(raw: bytes, data: bytes) -> None:
    before = open_slots()
    with SecretBytes.from_bytes(raw) as key:
        for shape in (data, bytearray(data), memoryview(data)):
            assert kdf.hmac_sha256(key, shape) == hmac.digest(raw, data, "sha256")
    assert open_slots() == before


def test_constant_time_equal() -> None:
    assert kdf.constant_time_equal(b"same", bytearray(b"same"))
    assert not kdf.constant_time_equal(b"same", b"sane")
    assert not kdf.constant_time_equal(b"same", b"sam")


@pytest.mark.real_kdf
def test_argon2id_is_rfc_9106_at_the_weakest_that_is_accepted() -> None:
    limits = {"opslimit": kdf.ARGON2_OPSLIMIT_MIN, "memlimit": kdf.ARGON2_MEMLIMIT_MIN}
    with SecretBytes.from_bytes(b"correct horse") as passphrase:
        made = kdf.argon2id(passphrase, salt=b"0123456789abcdef", **limits)
    other = Argon2id(
        salt=b"0123456789abcdef", length=32, iterations=3, lanes=1, memory_cost=256 * 1024
    )
    assert made.expose_bytes() == other.derive(b"correct horse")


@pytest.mark.parametrize(
    ("text", "salt", "opslimit", "memlimit"),
    [
        (b"", 16, 3, 2**28),
        (b"x", 15, 3, 2**28),
        (b"x", 17, 3, 2**28),
        (b"x", 16, 2, 2**28),
        (b"x", 16, 3, 2**28 - 1),
        (b"x", 16, 65, 2**28),
        (b"x", 16, 3, 2**30 + 1),
        (b"x", 16, -1, -1),
    ],
)
def test_argon2id_refuses_weak_and_absurd_parameters(
    text: bytes, salt: int, opslimit: int, memlimit: int
) -> None:
    with SecretBytes.from_bytes(text) as passphrase, pytest.raises(InvalidInputError):
        kdf.argon2id(passphrase, salt=bytes(salt), opslimit=opslimit, memlimit=memlimit)
