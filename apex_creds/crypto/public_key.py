"""Ed25519 signatures (RFC 8032), and sealing to a public key (X25519, ``crypto_box_seal``).

Guarantees: a secret key that signs stays in locked memory; ``verify`` raises, so that a
result can't be ignored, and refuses non-canonical signatures and small-order keys. What was
sealed opens with the one private key only, whole and unaltered, or not at all. It does not
say who sealed it, so what is inside must be checked. PyNaCl hands out that plaintext as
``bytes``, which can't be wiped; it is for the rare act of recovery.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn, Self, final

from nacl.exceptions import BadSignatureError, CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox
from nacl.signing import VerifyKey

from apex_creds.crypto import sodium
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    DecryptionError,
    IntegrityError,
    InvalidInputError,
    SecretMisuseError,
)
from apex_creds.model import Closes

if TYPE_CHECKING:
    from apex_creds.crypto.memory import SecretBytes


__all__ = [
    "KEY_BYTES",
    "OVERHEAD",
    "PUBLIC_BYTES",
    "SEED_BYTES",
    "SIGNATURE_BYTES",
    "SigningKey",
    "open_sealed",
    "public_key",
    "seal_to",
    "verify",
]

SEED_BYTES: Final = 32
PUBLIC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


@final
class SigningKey(Closes):
    """Signs; ``close`` wipes the secret key, and so does ``with``."""

    __slots__ = ("_public", "_secret")

    def __init__(self, secret: SecretBytes, public: bytes) -> None:
        self._secret = secret
        self._public = public

    @classmethod
    def from_seed(cls, seed: SecretBytes) -> Self:
        """Expands a seed of 32 bytes; the seed stays the caller's to close.

        Raises:
            InvalidInputError: The seed is not 32 bytes.
            SecretWipedError: The seed is closed.
        """
        return cls(*sodium.ed25519_keypair(seed))

    @property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self._public

    def sign(self, message: bytes) -> bytes:
        """Returns the signature of ``message``: 64 bytes, always the same.

        Raises:
            SecretWipedError: The key is closed.
        """
        return sodium.ed25519_sign(self._secret, message)

    def close(self) -> None:
        """Wipes the secret key; idempotent."""
        self._secret.close()

    def __repr__(self) -> str:
        return "SigningKey(***)"

    def __reduce__(self) -> NoReturn:
        raise SecretMisuseError("A signing key can't be pickled or copied.")


def verify(public: bytes, message: bytes, signature: bytes) -> None:
    """Returns if ``signature`` is that of ``message`` under the public key.

    Raises:
        IntegrityError: It is not.
        InvalidInputError: ``public`` is not 32 bytes.
    """
    if len(public) != PUBLIC_BYTES:
        raise InvalidInputError(f"A public key has {PUBLIC_BYTES} bytes.")
    if len(signature) == SIGNATURE_BYTES:
        with suppress(BadSignatureError):
            VerifyKey(public).verify(message, signature)
            return
    raise IntegrityError(
        "The signature does not match.",
        hint="What it signs was altered, or another key signed it.",
    )


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
