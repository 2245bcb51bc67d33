"""Ed25519 as RFC 8032 has it; verify raises."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import SigningKey, verify
from apex_creds.errors import (
    IntegrityError,
    InvalidInputError,
    SecretMisuseError,
    SecretWipedError,
)
from tests.support.slots import open_slots

RFC_8032 = [  # section 7.1, tests 1 to 3: seed, public key, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39"
            "701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f36"
            "13d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f7"
            "60984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    with (
        SecretBytes.from_bytes(bytes.fromhex(seed)) as secret,
        SigningKey.from_seed(secret) as key,
    ):
        assert key.public.hex() == public
        assert key.sign(bytes.fromhex(message)).hex() == signature
    verify(bytes.fromhex(public), bytes.fromhex(message), bytes.fromhex(signature))


@given(st.binary(max_size=500), st.integers(0, 63), st.integers(0, 7))
def test_any_changed_bit_is_refused(message: bytes, at: int, bit: int) -> None:
    with SecretBytes.random(32) as seed, SigningKey.from_seed(seed) as key:
        good = key.sign(message)
        verify(key.public, message, good)
        bad = bytearray(good)
        bad[at] ^= 1 << bit
        for text, signature in ((message, bytes(bad)), (message + b"!", good)):
            with pytest.raises(IntegrityError):
                verify(key.public, text, signature)


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_malformed_signatures_are_refused(signature: bytes) -> None:
    with SecretBytes.random(32) as seed, SigningKey.from_seed(seed) as key:
        public = key.public
    with pytest.raises(IntegrityError):
        verify(public, b"message", signature)


@pytest.mark.parametrize("low", ["00" * 32, "01" + "00" * 31, "ff" * 32])
def test_small_order_keys_verify_nothing(low: str) -> None:
    with pytest.raises(IntegrityError):
        verify(bytes.fromhex(low), b"message", bytes.fromhex(low) + bytes(32))


def test_wrong_lengths_and_misuse() -> None:
    before = open_slots()
    with SecretBytes.random(31) as seed, pytest.raises(InvalidInputError):
        SigningKey.from_seed(seed)
    with pytest.raises(InvalidInputError):
        verify(bytes(31), b"", bytes(64))
    with SecretBytes.random(32) as seed:
        key = SigningKey.from_seed(seed)
    for misuse in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(SecretMisuseError):
            misuse(key)
    assert repr(key) == "SigningKey(***)"
    key.close()
    with pytest.raises(SecretWipedError):
        key.sign(b"x")
    assert open_slots() == before
