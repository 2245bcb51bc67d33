"""Writes tests/vectors/envelope, from docs/FORMAT.md and without apex_creds.

Only hashlib and PyNaCl's public bindings are used, so that the vectors check the
implementation instead of repeating it. ``python -m tests.vectors.make_envelope``, by hand: the
files are part of the format and do not change. In each, ``key`` is known under the key ids and
versions of ``known_as``.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

from nacl import bindings

from tests.vectors import flat

KEY = bytes(range(32))
OTHER_KEY = bytes(range(1, 33))
PLACE: dict[str, Any] = {
    "vault_id": bytes(range(0x10, 0x20)),
    "section": "api_keys",
    "record_id": bytes(range(0x20, 0x30)),
    "record_version": 7,
}
KEY_ID = bytes(range(0x30, 0x40))
KEY_VERSION = 3
NONCE = bytes(range(0x40, 0x58))
PLAINTEXT = b"\x01\x05value\x00\x00\x00\x0bsk-test-123"
OTHER_PLACE: dict[str, Any] = {
    "vault_id": bytes(16),
    "section": "oauth_tokens",
    "record_id": bytes(16),
    "record_version": 8,
}
BOUNDARIES = {
    "magic": 4, "format": 5, "suite": 6, "key id": 22, "key version": 26,
    "nonce": 50, "commitment": 82,
}  # fmt: skip


def aad(place: dict[str, Any], *, key_id: bytes, key_version: int) -> bytes:
    """The associated data of FORMAT.md, "AAD"."""
    fields = (
        b"apex-creds/v1/envelope/suite-1",
        place["vault_id"],
        place["section"].encode(),
        place["record_id"],
        struct.pack(">Q", place["record_version"]),
        key_id,
        struct.pack(">I", key_version),
        b"\x01",
    )
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def seal(key: bytes, plaintext: bytes, nonce: bytes, data: bytes) -> bytes:
    """FORMAT.md, "AEAD with key commitment"."""
    person = b"apex-creds aead1"
    pair = hashlib.blake2b(nonce, key=key, digest_size=64, person=person).digest()
    encrypt = bindings.crypto_aead_xchacha20poly1305_ietf_encrypt
    return nonce + pair[32:] + encrypt(plaintext, data, nonce, pair[:32])


def envelope(
    *,
    key: bytes = KEY,
    plaintext: bytes = PLAINTEXT,
    key_id: bytes = KEY_ID,
    key_version: int = KEY_VERSION,
) -> bytes:
    """A whole envelope of the place ``PLACE``."""
    head = b"APXC\x01\x01" + key_id + struct.pack(">I", key_version)
    data = aad(PLACE, key_id=key_id, key_version=key_version)
    return head + seal(key, plaintext, NONCE, data)


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x01]) + data[at + 1 :]


def _set(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def cases() -> dict[str, str]:
    """Every file, by the name of its case."""
    good = envelope()
    opened = {
        "one part": PLAINTEXT,
        "empty plaintext": b"",
        "a block": bytes(64),
        "1000 bytes": b"x" * 1000,
    }
    found = {
        name: _case("success", envelope(plaintext=data), plaintext=data)
        for name, data in opened.items()
    }
    refused = [
        ("empty", b"", "CorruptDocumentError"),
        ("wrong magic", _set(good, 0, b"APXD"), "CorruptDocumentError"),
        ("lower-case magic", _set(good, 0, b"apxc"), "CorruptDocumentError"),
        ("unknown format 0", _set(good, 4, b"\x00"), "UnsupportedFormatError"),
        ("unknown format 2", _set(good, 4, b"\x02"), "UnsupportedFormatError"),
        ("unknown suite 0", _set(good, 5, b"\x00"), "UnsupportedFormatError"),
        ("unknown suite 2", _set(good, 5, b"\x02"), "UnsupportedFormatError"),
        ("key version 0", _set(good, 22, bytes(4)), "CorruptDocumentError"),
        ("unknown key id", _flip(good, 6), "UnknownKeyError"),
        ("unknown key version", _set(good, 22, b"\x00\x00\x00\x09"), "UnknownKeyError"),
        ("altered nonce", _flip(good, 26), "CommitmentError"),
        ("bad commitment", _flip(good, 50), "CommitmentError"),
        ("sealed under another key", envelope(key=OTHER_KEY), "CommitmentError"),
        ("altered ciphertext", _flip(good, 82), "DecryptionError"),
        ("bad tag", _flip(good, len(good) - 1), "DecryptionError"),
        ("one byte trailing", good + b"\x00", "DecryptionError"),
        ("tag cut", good[:-1], "DecryptionError"),
        ("truncated below the shortest", good[:97], "CorruptDocumentError"),
        ("truncated to the shortest", good[:98], "DecryptionError"),
        # The same key is filed under these too, so that only the AAD tells them apart.
        ("another key id", _set(good, 6, bytes(16)), "DecryptionError"),
        ("another key version", _set(good, 22, b"\0\0\0\4"), "DecryptionError"),
    ]
    refused += [
        (f"truncated {how} the {name}", good[: end - less], "CorruptDocumentError")
        for name, end in BOUNDARIES.items()
        for how, less in (("inside", 1), ("after", 0))
    ]
    found |= {name: _case(error, sealed) for name, sealed, error in refused}
    for field, other in OTHER_PLACE.items():
        place = {**PLACE, field: other}
        found[f"another {field}"] = _case("DecryptionError", good, place=place)
    return found


def _case(expect: str, sealed: bytes, *, place: dict[str, Any] = PLACE, **more: bytes) -> str:
    keys = [(KEY_ID, KEY_VERSION), (bytes(16), KEY_VERSION), (KEY_ID, 4)]
    known = " ".join(f"{key_id.hex()}/{version}" for key_id, version in keys)
    return flat.text_of(
        expect, {**place, "key": KEY, "known_as": known, "envelope": sealed, **more}
    )


if __name__ == "__main__":
    flat.write("envelope", cases())
