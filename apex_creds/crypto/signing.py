"""Ed25519 signatures (RFC 8032), for checkpoints and challenges.

Guarantees: the secret key stays in locked memory; ``verify`` raises, so that a result
can't be ignored, and refuses non-canonical signatures and small-order keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn, Self, final

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from apex_creds.crypto import sodium
from apex_creds.errors import IntegrityError, InvalidInputError, SecretMisuseError

if TYPE_CHECKING:
    from apex_creds.crypto.memory import SecretBytes

__all__ = ["PUBLIC_BYTES", "SEED_BYTES", "SIGNATURE_BYTES", "SigningKey", "verify"]

SEED_BYTES: Final = 32
PUBLIC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64


@final
class SigningKey:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
    if len(signature) != SIGNATURE_BYTES or not _verifies(public, message, signature):
        raise IntegrityError(
            "The signature does not match.",
            hint="What it signs was altered, or another key signed it.",
        )


def _verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    try:
        VerifyKey(public).verify(message, signature)
    except BadSignatureError:
        return False
    return True
