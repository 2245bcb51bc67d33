"""Authenticated encryption with key commitment: XChaCha20-Poly1305 under a subkey.

Guarantees: every message has a fresh random nonce that no caller can pass; associated
data is required; a ciphertext opens under exactly one key, which is checked first and in
constant time. The bytes are specified in docs/FORMAT.md, "AEAD with key commitment".
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from apex_creds.crypto import sodium
from apex_creds.errors import CommitmentError, DecryptionError, InvalidInputError
from apex_creds.model import Closes

if TYPE_CHECKING:
    from apex_creds.crypto.memory import Buffer, SecretBytes

__all__ = [
    "KEY_BYTES",
    "OVERHEAD",
    "PLAIN_AT",
    "Resealer",
    "open_bytes",
    "open_in_place",
    "open_into",
    "seal",
    "seal_in_place",
]

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 24
COMMITMENT_BYTES: Final = 32
TAG_BYTES: Final = 16
OVERHEAD: Final = NONCE_BYTES + COMMITMENT_BYTES + TAG_BYTES
"""How many bytes a sealed message is longer than its plaintext."""

PLAIN_AT: Final = NONCE_BYTES + COMMITMENT_BYTES
"""Where in a sealed message the ciphertext begins, which is as long as the plaintext."""

_PERSONAL: Final = b"apex-creds aead1"


def seal(key: SecretBytes, plaintext: SecretBytes | Buffer, *, aad: bytes) -> bytes:
    """Encrypts: nonce(24) ‖ commitment(32) ‖ ciphertext ‖ tag(16).

    Args:
        key: 32 bytes.
        plaintext: Read where it lies; a secret is never turned into ``bytes``.
        aad: What the ciphertext is bound to; at least one byte.

    Raises:
        InvalidInputError: The key is not 32 bytes, or ``aad`` is empty.
        SecretWipedError: Key or plaintext are closed, or were closed meanwhile.
    """
    _require_aad(aad)
    nonce = os.urandom(NONCE_BYTES)
    return sodium.seal_committed(key, nonce, plaintext, aad=aad, personal=_PERSONAL)


def seal_in_place(message: memoryview, key: SecretBytes, *, aad: bytes) -> None:
    """As ``seal``, in a buffer ``OVERHEAD`` longer than the plaintext.

    That lies at ``PLAIN_AT`` in it. For large bodies: no second piece of memory is touched.

    Raises:
        InvalidInputError: It is too short, or as for ``seal``.
        SecretWipedError: The key is closed, or was closed meanwhile.
    """
    _require_aad(aad)
    nonce = os.urandom(NONCE_BYTES)
    sodium.seal_committed_in_place(message, key, nonce, aad=aad, personal=_PERSONAL)


def open_into(key: SecretBytes, sealed: Buffer, *, aad: bytes) -> SecretBytes:
    """Decrypts straight into locked memory.

    Raises:
        CommitmentError: The message was sealed under another key, or its nonce or
            commitment were altered.
        DecryptionError: The message is too short, or was altered, or ``aad`` differs.
        InvalidInputError: The key is not 32 bytes, or ``aad`` is empty.
        SecretWipedError: The key is closed, or was closed meanwhile.
    """
    if not aad:
        _require_aad(aad)
    opened = sodium.open_committed(key, sealed, aad=aad, personal=_PERSONAL)
    if isinstance(opened, bool):
        raise _failure(committed=opened)
    return opened


def open_bytes(key: SecretBytes, sealed: Buffer, *, aad: bytes) -> bytes:
    """As ``open_into``, for plaintexts that are not secret (document bodies).

    Raises:
        CommitmentError: See ``open_into``, as for the others.
        DecryptionError: The message does not open.
        InvalidInputError: The key is not 32 bytes, or ``aad`` is empty.
        SecretWipedError: The key is closed.
    """
    _require_aad(aad)
    opened = sodium.open_committed_bytes(key, sealed, aad=aad, personal=_PERSONAL)
    if isinstance(opened, bool):
        raise _failure(committed=opened)
    return opened


def open_in_place(key: SecretBytes, sealed: memoryview, *, aad: bytes) -> memoryview:
    """As ``open_bytes``; the plaintext takes the place of its ciphertext.

    Raises:
        CommitmentError: See ``open_into``, as for the others.
        DecryptionError: The message does not open.
        InvalidInputError: The key is not 32 bytes, or ``aad`` is empty.
        SecretWipedError: The key is closed.
    """
    _require_aad(aad)
    opened = sodium.open_committed_in_place(key, sealed, aad=aad, personal=_PERSONAL)
    if isinstance(opened, bool):
        raise _failure(committed=opened)
    return opened


class Resealer(Closes):
    """Opens messages under one key and seals them under another, many in a row.

    A context manager that wipes what passed through; not for several threads at once.

    Args:
        old: 32 bytes.
        new: 32 bytes.

    Raises:
        InvalidInputError: A key is not 32 bytes.
    """

    def __init__(self, old: SecretBytes, new: SecretBytes) -> None:
        self._inner = sodium.Resealer(old, new, personal=_PERSONAL)
        self._nonces, self._at = b"", 0

    def reseal(self, sealed: bytes, *, old_aad: bytes, new_aad: bytes) -> bytes:
        """The same plaintext under the new key and a fresh nonce.

        Raises:
            CommitmentError: See ``open_into``, as for the others.
            DecryptionError: The message does not open.
            SecretWipedError: A key is closed.
        """
        at = self._at
        nonce = self._nonces[at : at + NONCE_BYTES]
        if len(nonce) < NONCE_BYTES:
            self._nonces, at = os.urandom(NONCE_BYTES * 128), 0
            nonce = self._nonces[:NONCE_BYTES]
        self._at = at + NONCE_BYTES
        made = self._inner.reseal(sealed, old_aad=old_aad, new_aad=new_aad, nonce=nonce)
        if isinstance(made, bool):
            raise _failure(committed=made)
        return made

    def close(self) -> None:
        """Wipes what passed through; idempotent."""
        self._inner.close()


def _failure(*, committed: bool) -> DecryptionError:
    if committed:
        return DecryptionError(
            "The ciphertext does not open here.",
            hint="It was altered, or moved from another place: restore it from a backup.",
        )
    return CommitmentError(
        "The ciphertext was made under another key.",
        hint="It was altered, or it belongs to another vault: restore it from a backup.",
    )


def _require_aad(aad: bytes) -> None:
    if not aad:
        raise InvalidInputError("Encryption needs associated data.")
