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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apex_creds.crypto.memory import Buffer, SecretBytes

__all__ = [
    "KEY_BYTES",
    "OVERHEAD",
    "PLAIN_AT",
    "Sealed",
    "open_bytes",
    "open_in_place",
    "open_into",
    "open_parts",
    "reseal",
    "seal",
    "seal_in_place",
    "take_apart",
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

Sealed = sodium.Sealed
take_apart: Final = sodium.take_apart


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
    return open_parts(key, take_apart(sealed), aad, again=False)


def open_parts(
    key: SecretBytes, sealed: Sealed, aad: bytes, *, again: bool = True
) -> SecretBytes:
    """As ``open_into``, for what is taken apart once and opened often."""
    if not aad:
        _require_aad(aad)
    opened = sodium.open_committed(key, sealed, aad=aad, personal=_PERSONAL, again=again)
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


def reseal(
    messages: Sequence[tuple[bytes, bytes, bytes]],
    old: SecretBytes,
    new: SecretBytes,
    *,
    start: int,
    head: bytes,
) -> list[bytes | None]:
    """The same plaintexts under another key and fresh nonces.

    Args:
        messages: Each with its additional data under the old key, and under the new one.
        old: 32 bytes.
        new: 32 bytes.
        start: Where each begins in its bytes.
        head: Put before each that is made.

    Returns:
        Of each what was made, or None: it does not open.

    Raises:
        InvalidInputError: A key is not 32 bytes, or additional data is empty.
        SecretWipedError: A key is closed.
    """
    for _, old_aad, new_aad in messages[:1]:
        _require_aad(old_aad)
        _require_aad(new_aad)
    return sodium.reseal_committed(
        messages, old, new,
        start=start, head=head, nonces=os.urandom(NONCE_BYTES * len(messages)),
        personal=_PERSONAL,
    )  # fmt: skip


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
