"""Sealing to a public key: anonymous X25519 boxes of libsodium (``crypto_box_seal``).

Guarantee: what was sealed opens with the one private key only, whole and unaltered, or not
at all. Who sealed it is not shown: the one who opens it checks what is inside. PyNaCl hands out
the plaintext as ``bytes``, which can't be wiped; it is for the rare act of recovery.
"""

from __future__ import annotations

from typing import Final

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import DecryptionError, InvalidInputError

__all__ = ["KEY_BYTES", "OVERHEAD", "open_sealed", "public_key", "seal_to"]

KEY_BYTES: Final = 32
OVERHEAD: Final = 48
"""A sealed box is that much longer than its content."""


def public_key(private: SecretBytes) -> bytes:
    """The public key, 32 bytes, of a private key of 32 random bytes (RFC 7748).

    Raises:
        InvalidInputError: The private key has another length.
    """
    return bytes(_private(private).public_key)


def seal_to(public: bytes, content: SecretBytes) -> bytes:
    """Seals ``content`` to a public key; the result is ``OVERHEAD`` longer.

    Raises:
        InvalidInputError: The public key is not 32 bytes, or is one that protects nothing.
    """
    if len(public) != KEY_BYTES:
        raise InvalidInputError(f"A public key has {KEY_BYTES} bytes.")
    try:
        sealed: bytes = SealedBox(PublicKey(public)).encrypt(content.expose_bytes())
    except CryptoError:  # of small order: the shared secret would be known to all
        sealed = b""
    if not sealed:
        raise InvalidInputError("That public key can't be sealed to.", hint="Make another.")
    return sealed


def open_sealed(private: SecretBytes, sealed: bytes) -> SecretBytes:
    """Opens what was sealed to the public key of ``private``; the caller closes it.

    Raises:
        DecryptionError: It was sealed to another key, or altered.
        InvalidInputError: The private key is not 32 bytes.
    """
    key = _private(private)
    try:
        return SecretBytes.from_bytes(SealedBox(key).decrypt(sealed))
    except (CryptoError, ValueError, TypeError):
        pass
    raise DecryptionError(
        "It was sealed to another key, or altered.", hint="Use the key that it was sealed to."
    )


def _private(private: SecretBytes) -> PrivateKey:
    if len(private) != KEY_BYTES:
        raise InvalidInputError(f"A private key has {KEY_BYTES} bytes.")
    return PrivateKey(private.expose_bytes())
