"""Recovery codes: for the day when the authenticator is lost.

Guarantee: a code has 120 random bits and is stored as an HMAC-SHA256 under a random key of
its set. That is enough: no stretching (Argon2id) makes up for entropy that is there
already. NIST SP 800-63B, 5.1.2.2, asks for stretching below 112 bits, and for limits on
guessing below 64; a stretched check of ten codes would also cost an attacker nothing and
this process ten seconds and 256 MiB for every wrong answer.
"""

from __future__ import annotations

from typing import Final

from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes

CODES: Final = 10
KEY_BYTES: Final = 32
LETTERS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no I, L, O and U. 32 letters, so that a byte's low bits choose."""
_LENGTH: Final = 24
RANDOM_BYTES: Final = CODES * _LENGTH
_READ_AS: Final = str.maketrans("OIL", "011")


def make_codes(random: bytes) -> list[str]:
    """Ten codes, like ``7KX0-93QF-M2RT-VB5C-Y8ZN-4DHE``, from 240 random bytes."""
    assert len(random) == RANDOM_BYTES
    letters = "".join(LETTERS[byte & 31] for byte in random)
    return [_shown(letters[at : at + _LENGTH]) for at in range(0, RANDOM_BYTES, _LENGTH)]


def normalised(answer: str) -> str:
    """The 24 letters of a code as typed; empty where it can't be one."""
    kept = answer.replace("-", "").upper()
    code = "".join(kept.split()).translate(_READ_AS)
    return code if len(code) == _LENGTH and set(code) <= set(LETTERS) else ""


def digest(key: SecretBytes, code: str) -> bytes:
    """What is stored of a code (normalised): 32 bytes."""
    return kdf.hmac_sha256(key, b"apex-creds/v1/recovery-code\0" + code.encode())


def _shown(code: str) -> str:
    return "-".join(code[at : at + 4] for at in range(0, _LENGTH, 4))
