"""Keys from keys, and keys from passphrases.

Guarantees: every purpose has its own HKDF-SHA256 ``info`` string, so that no two uses
share a key; a passphrase is never stretched by less than libsodium's ``MODERATE``; keys
stay in ``SecretBytes`` from end to end. The bytes are in docs/FORMAT.md, "KDF".
"""

from __future__ import annotations

import hmac as _hmac
from enum import StrEnum
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from apex_creds.crypto import sodium
from apex_creds.crypto.memory import Buffer, SecretBytes
from apex_creds.errors import InvalidInputError

__all__ = [
    "ARGON2_MEMLIMIT_MAX",
    "ARGON2_MEMLIMIT_MIN",
    "ARGON2_OPSLIMIT_MAX",
    "ARGON2_OPSLIMIT_MIN",
    "ARGON2_SALT_BYTES",
    "Purpose",
    "argon2id",
    "constant_time_equal",
    "derive",
    "hkdf",
    "hmac_sha256",
]

ARGON2_OPSLIMIT_MIN: Final = 3
"""libsodium's ``MODERATE``, as is ``ARGON2_MEMLIMIT_MIN``."""
ARGON2_MEMLIMIT_MIN: Final = 256 * 1024 * 1024
ARGON2_OPSLIMIT_MAX: Final = 64
"""Above it and ``ARGON2_MEMLIMIT_MAX``, stored parameters are an attack, not a choice."""
ARGON2_MEMLIMIT_MAX: Final = 1024 * 1024 * 1024
ARGON2_SALT_BYTES: Final = 16

_KEY_BYTES: Final = 32
_MIN_KEY_BYTES: Final = 16
_MAX_OUTPUT_BYTES: Final = 255 * 32
_DOMAIN: Final = b"apex-creds/v1/"


class Purpose(StrEnum):
    """What a derived key is for."""

    KEK = "kek"
    KEK_WRAP = "kek-wrap"
    FILE_BODY = "file-body"
    FILE_MAC = "file-mac"
    NAME_INDEX = "name-index"
    AUDIT_PSEUDONYM = "audit-pseudonym"
    AUDIT_COPY = "audit-copy"
    SIGNING = "signing"
    MASTER_CHECK = "master-check"


def derive(
    key: SecretBytes, purpose: Purpose, *, context: bytes = b"", salt: bytes = b""
) -> SecretBytes:
    """Returns the 32-byte key of ``purpose``; ``context`` separates keys of one purpose.

    Raises:
        InvalidInputError: ``key`` is not 32 bytes.
        SecretWipedError: ``key`` is closed.
    """
    if len(key) != _KEY_BYTES:
        raise InvalidInputError(f"A key has {_KEY_BYTES} bytes.")
    # No purpose holds a NUL byte, so no two (purpose, context) give the same info.
    info = _DOMAIN + purpose.value.encode() + (b"\0" + context if context else b"")
    return hkdf(key, info=info, salt=salt)


def hkdf(
    key: SecretBytes, *, info: bytes, salt: bytes = b"", length: int = _KEY_BYTES
) -> SecretBytes:
    """HKDF-SHA256 (RFC 5869), extract and expand.

    Raises:
        InvalidInputError: ``key`` has less than 16 bytes, ``info`` is empty, or
            ``length`` is not in 1..8160.
        SecretWipedError: ``key`` is closed, or was closed meanwhile.
    """
    if len(key) < _MIN_KEY_BYTES or not info:
        raise InvalidInputError(f"HKDF needs {_MIN_KEY_BYTES} bytes of key, and an info.")
    if not 1 <= length <= _MAX_OUTPUT_BYTES:
        raise InvalidInputError(f"HKDF-SHA256 gives 1 to {_MAX_OUTPUT_BYTES} bytes.")
    out = SecretBytes.allocate(length)
    function = HKDF(hashes.SHA256(), length, salt or None, info)
    # A copy, since another thread may close the key and release its views meanwhile.
    with SecretBytes.copy_of(key) as own, own.view() as source, out._mutable() as target:
        function.derive_into(source, target)
    return out


def argon2id(
    passphrase: SecretBytes, *, salt: bytes, opslimit: int, memlimit: int
) -> SecretBytes:
    """Argon2id (RFC 9106, version 1.3, one lane): 32 bytes. Takes a second or more.

    Args:
        passphrase: At least one byte.
        salt: 16 bytes.
        opslimit: Passes, ``ARGON2_OPSLIMIT_MIN`` to ``ARGON2_OPSLIMIT_MAX``.
        memlimit: Bytes, ``ARGON2_MEMLIMIT_MIN`` to ``ARGON2_MEMLIMIT_MAX``.

    Raises:
        InvalidInputError: A parameter is out of these bounds, or memory is short.
        SecretWipedError: ``passphrase`` is closed, or was closed meanwhile.
    """
    if not len(passphrase):
        raise InvalidInputError("The passphrase is empty.", hint="Choose a long one.")
    weak = opslimit < ARGON2_OPSLIMIT_MIN or memlimit < ARGON2_MEMLIMIT_MIN
    if weak or opslimit > ARGON2_OPSLIMIT_MAX or memlimit > ARGON2_MEMLIMIT_MAX:
        raise InvalidInputError(
            f"The Argon2id parameters are too {'weak' if weak else 'large'}.",
            hint="Use 3 to 64 passes over 256 MiB to 1 GiB.",
        )
    return sodium.argon2id(passphrase, salt, opslimit, memlimit)


def hmac_sha256(key: SecretBytes, data: Buffer) -> bytes:
    """HMAC-SHA256 (RFC 2104) of ``data``: 32 bytes.

    Raises:
        InvalidInputError: ``key`` has less than 16 bytes.
        SecretWipedError: ``key`` is closed, or was closed meanwhile.
    """
    mac = HmacSha256(key)
    mac.update(data)
    return mac.finalize()


class HmacSha256:
    """As ``hmac_sha256``, over data that comes in pieces.

    Args:
        key: At least 16 bytes.

    Raises:
        InvalidInputError: ``key`` has less.
        SecretWipedError: ``key`` is closed, or was closed meanwhile.
    """

    def __init__(self, key: SecretBytes) -> None:
        if len(key) < _MIN_KEY_BYTES:
            raise InvalidInputError(f"HMAC needs {_MIN_KEY_BYTES} bytes of key.")
        with SecretBytes.copy_of(key) as own, own.view() as source:
            self._mac = HMAC(source, hashes.SHA256())

    def update(self, data: Buffer) -> None:
        """Adds a piece."""
        self._mac.update(data)

    def finalize(self) -> bytes:
        """The 32 bytes; nothing can be added after."""
        return self._mac.finalize()


def constant_time_equal(left: Buffer, right: Buffer) -> bool:
    """Whether two byte strings are equal, in a time that depends only on their lengths."""
    return _hmac.compare_digest(left, right)
