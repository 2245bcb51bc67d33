"""What is sealed to a public key opens with its private key only, and unaltered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_creds.crypto.memory import SecretBytes
from apex_creds.crypto.public_key import OVERHEAD, open_sealed, public_key, seal_to
from apex_creds.errors import DecryptionError, InvalidInputError


@given(st.binary(min_size=1, max_size=300), st.integers(0, 10**6))
def test_it_opens_with_its_key_alone_and_unaltered(content: bytes, place: int) -> None:
    with SecretBytes.random(32) as private, SecretBytes.random(32) as other:
        with SecretBytes.from_bytes(content) as secret:
            sealed = seal_to(public_key(private), secret)
        assert len(sealed) == len(content) + OVERHEAD
        with open_sealed(private, sealed) as opened:
            assert opened.equals(content)
        altered = bytearray(sealed)
        altered[place % len(sealed)] ^= 1
        for key, box in ((other, sealed), (private, bytes(altered)), (private, sealed[:-1])):
            with pytest.raises(DecryptionError):
                open_sealed(key, box)


def test_it_is_libsodiums_sealed_box() -> None:
    from nacl.public import PrivateKey, SealedBox

    key = PrivateKey.generate()
    with SecretBytes.from_bytes(bytes(key)) as private:
        assert public_key(private) == bytes(key.public_key)
        with open_sealed(private, SealedBox(key.public_key).encrypt(b"theirs")) as opened:
            assert opened.equals(b"theirs")


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32), b"\1" + bytes(31), bytes(33)])
def test_a_public_key_that_protects_nothing_is_refused(public: bytes) -> None:
    with SecretBytes.from_bytes(b"secret") as secret, pytest.raises(InvalidInputError):
        seal_to(public, secret)


def test_lengths_are_checked() -> None:
    with SecretBytes.random(31) as short:
        with pytest.raises(InvalidInputError):
            public_key(short)
        with pytest.raises(InvalidInputError):
            open_sealed(short, bytes(80))
    with SecretBytes.random(32) as private:
        for length in (0, 1, OVERHEAD - 1, OVERHEAD):
            with pytest.raises(DecryptionError):
                open_sealed(private, bytes(length))
