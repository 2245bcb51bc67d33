"""Opens what older programs wrote: Fernet and libsodium secret boxes. Never writes them.

Guarantee: one error, without the plaintext or the key, for everything that does not open.
Results are ordinary ``bytes``: these secrets lay in ordinary memory before.
"""

from __future__ import annotations

from nacl.exceptions import CryptoError
from nacl.secret import SecretBox

from apex_creds.errors import DecryptionError

__all__ = [
    "fernet_decrypt",
    "secretbox_decrypt",
]


def fernet_decrypt(key: bytes, token: bytes) -> bytes:
    """Opens a Fernet token; its time stamp is not checked.

    Args:
        key: 32 bytes in URL-safe base64, as ``Fernet.generate_key`` gives it.
        token: In URL-safe base64.

    Raises:
        DecryptionError: Not such a key, or the token does not open under it.
    """
    from cryptography.fernet import Fernet, InvalidToken

    try:
        return Fernet(key).decrypt(token)
    except (InvalidToken, ValueError, TypeError):
        failure = _failure("Fernet token")
    raise failure


def secretbox_decrypt(key: bytes, box: bytes) -> bytes:
    """Opens nonce(24) ‖ tag(16) ‖ ciphertext: XSalsa20-Poly1305.

    Args:
        key: 32 bytes.
        box: As PyNaCl's ``SecretBox.encrypt`` gives it.

    Raises:
        DecryptionError: Not such a key, or the box does not open under it.
    """
    try:
        return bytes(SecretBox(key).decrypt(box))
    except (CryptoError, ValueError, TypeError):
        failure = _failure("secret box")
    raise failure


def _failure(what: str) -> DecryptionError:
    return DecryptionError(
        f"The {what} does not open.", hint="Give the key that the old program used."
    )
