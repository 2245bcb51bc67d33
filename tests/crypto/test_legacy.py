"""Legacy ciphertexts open; whatever does not open is one kind of error."""

from __future__ import annotations

import pytest
from nacl.secret import SecretBox

from apex_creds.crypto import legacy
from apex_creds.errors import DecryptionError

SPEC_KEY = b"cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4="
SPEC_TOKEN = (  # from the Fernet specification, verify.json
    b"gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64"
    b"jVmpU4IwqDA=="
)


def test_the_fernet_specification_vector_opens() -> None:
    assert legacy.fernet_decrypt(SPEC_KEY, SPEC_TOKEN) == b"hello"


def test_a_secret_box_opens() -> None:
    key = bytes(range(32))
    box = bytes(SecretBox(key).encrypt(b"an old secret"))
    assert legacy.secretbox_decrypt(key, box) == b"an old secret"


def test_every_altered_byte_is_refused() -> None:
    key = bytes(32)
    box = bytes(SecretBox(key).encrypt(b"s"))
    for at in range(len(box)):
        with pytest.raises(DecryptionError):
            legacy.secretbox_decrypt(key, box[:at] + bytes([box[at] ^ 1]) + box[at + 1 :])


@pytest.mark.parametrize("key", [b"", b"short", b"\xff" * 44, b"QUJD" * 10 + b"QUI="])
@pytest.mark.parametrize("token", [b"", b"not base64 !", b"\xff", SPEC_TOKEN, SPEC_TOKEN[:-8]])
def test_fernet_failures_are_one_error_without_a_cause(key: bytes, token: bytes) -> None:
    with pytest.raises(DecryptionError) as caught:
        legacy.fernet_decrypt(key, token)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert str(SPEC_TOKEN) not in str(caught.value)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), bytes(33)])
@pytest.mark.parametrize("box", [b"", bytes(23), bytes(39), bytes(40), bytes(60)])
def test_secret_box_failures_are_one_error_without_a_cause(key: bytes, box: bytes) -> None:
    with pytest.raises(DecryptionError) as caught:
        legacy.secretbox_decrypt(key, box)
    assert caught.value.__context__ is None
