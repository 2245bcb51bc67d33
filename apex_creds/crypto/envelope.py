"""Envelope v1: one encrypted record that says which key opens it.

Guarantees: one canonical form, parsed strictly; an envelope opens only in its own vault,
section, record, record version, and under the key version that it names. The bytes are
specified in docs/FORMAT.md, "Envelope v1" and "AAD"; tests/vectors has examples.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from apex_creds.crypto import aead
from apex_creds.errors import (
    CorruptDocumentError,
    InvalidInputError,
    UnknownKeyError,
    UnsupportedFormatError,
)

if TYPE_CHECKING:
    from apex_creds.crypto.memory import Buffer, SecretBytes

__all__ = [
    "FORMAT",
    "HEADER_BYTES",
    "MAGIC",
    "MIN_BYTES",
    "PLAIN_AT",
    "SUITE",
    "Context",
    "FindKey",
    "Message",
    "canonical_aad",
    "decrypt",
    "decrypt_bytes",
    "decrypt_in_place",
    "decrypt_message",
    "encrypt",
    "encrypt_in_place",
    "head",
    "header",
    "reseal",
    "take_apart",
]

MAGIC: Final = b"APXC"
FORMAT: Final = 1
SUITE: Final = 1
ID_BYTES: Final = 16

_HEADER: Final = struct.Struct(">4sBB16sI")
HEADER_BYTES: Final = _HEADER.size
MIN_BYTES: Final = HEADER_BYTES + aead.OVERHEAD
"""The length of an envelope around an empty plaintext."""
PLAIN_AT: Final = HEADER_BYTES + aead.PLAIN_AT
"""Where in an envelope the ciphertext begins, which is as long as the plaintext."""

_DOMAIN: Final = b"apex-creds/v1/envelope/suite-1"
_MAX_U32: Final = 2**32 - 1
_MAX_RECORD_VERSION: Final = 2**63 - 1
_MAX_SECTION: Final = 64
_COPY_UP_TO: Final = 4096
_SECTION: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")
_SIZED: Final = struct.Struct(">I")
# After the section: each number is the length of the field that follows it.
_TAIL: Final = struct.Struct(">I16sIQI16sIIIB")
_RECORD: Final = struct.Struct(">I16sIQ")

FindKey: TypeAlias = Callable[[bytes, int], "SecretBytes"]
"""Returns the key of an id and a version, or raises ``UnknownKeyError``."""


class Context(msgspec.Struct, frozen=True):
    """The place of a record, which its ciphertext is bound to.

    Attributes:
        vault_id: 16 bytes.
        section: 1 to 64 of ``a-z``, ``0-9``, ``_``.
        record_id: 16 bytes.
        record_version: 1 or more.
    """

    vault_id: bytes
    section: str
    record_id: bytes
    record_version: int

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            InvalidInputError: A field is out of its bounds.
        """
        if len(self.vault_id) != ID_BYTES or len(self.record_id) != ID_BYTES:
            raise InvalidInputError("Vault and record ids have 16 bytes.")
        if not 0 < len(self.section) <= _MAX_SECTION or not _SECTION.issuperset(self.section):
            raise InvalidInputError("A section is 1 to 64 of a-z, 0-9 and _.")
        if not 0 < self.record_version <= _MAX_RECORD_VERSION:
            raise InvalidInputError("A record version is 1 or more.")


def canonical_aad(context: Context, *, key_id: bytes, key_version: int) -> bytes:
    """Encodes the place and the key: each field with its u32 length before it.

    Raises:
        InvalidInputError: ``key_id`` is not 16 bytes or ``key_version`` not 1..2**32-1.
    """
    if len(key_id) != ID_BYTES or not 0 < key_version <= _MAX_U32:
        raise InvalidInputError("A key has an id of 16 bytes and a version of 1 or more.")
    section = context.section.encode()
    return b"".join(
        (
            _PREFIX,
            context.vault_id,
            _SIZED.pack(len(section)),
            section,
            _TAIL.pack(
                16, context.record_id, 8, context.record_version,
                16, key_id, 4, key_version, 1, FORMAT,
            ),
        )
    )  # fmt: skip


def encrypt(
    key: SecretBytes,
    plaintext: SecretBytes | Buffer,
    *,
    context: Context,
    key_id: bytes,
    key_version: int,
) -> bytes:
    """Returns the envelope of ``plaintext``: 98 bytes longer than it.

    Raises:
        InvalidInputError: A length or a number is out of bounds.
        SecretWipedError: Key or plaintext are closed.
    """
    aad = canonical_aad(context, key_id=key_id, key_version=key_version)
    return head(key_id, key_version) + aead.seal(key, plaintext, aad=aad)


def encrypt_in_place(
    out: memoryview, key: SecretBytes, *, context: Context, key_id: bytes, key_version: int
) -> None:
    """As ``encrypt``, in a buffer ``MIN_BYTES`` longer than the plaintext at ``PLAIN_AT``.

    Raises:
        InvalidInputError: It is too short, or as for ``encrypt``.
        SecretWipedError: The key is closed.
    """
    aad = canonical_aad(context, key_id=key_id, key_version=key_version)
    out[:HEADER_BYTES] = head(key_id, key_version)
    aead.seal_in_place(out[HEADER_BYTES:], key, aad=aad)


def head(key_id: bytes, key_version: int) -> bytes:
    """The ``HEADER_BYTES`` that every envelope under that key begins with."""
    return _HEADER.pack(MAGIC, FORMAT, SUITE, key_id, key_version)


def reseal(
    envelopes: Iterable[tuple[bytes, bytes, int]],
    old: SecretBytes,
    new: SecretBytes,
    *,
    vault_id: bytes,
    section: str,
    key_id: bytes,
    versions: tuple[int, int],
) -> list[bytes | None]:
    """The same plaintexts in the same places, under another version of their key.

    Args:
        envelopes: Each with its record's id (16 bytes) and version; all of one section.
        old: The key that opens them; 32 bytes.
        new: The key that they are sealed under; 32 bytes.
        vault_id: 16 bytes.
        section: Theirs.
        key_id: Of both keys; 16 bytes.
        versions: Of the old and of the new key.

    Returns:
        Of each what was made, or None: it does not open.

    Raises:
        InvalidInputError: A length or a number is out of bounds.
        UnknownKeyError: One is not under the old key.
        SecretWipedError: A key is closed.
    """
    place = Context(vault_id, section, bytes(ID_BYTES), 1)
    aads = [canonical_aad(place, key_id=key_id, key_version=v) for v in versions]
    front = aads[0][: -_TAIL.size]
    old_end, new_end = (aad[-_TAIL.size + _RECORD.size :] for aad in aads)
    heads, pack = [head(key_id, version) for version in versions], _RECORD.pack
    messages: list[tuple[bytes, bytes, bytes]] = []
    for envelope, record_id, record_version in envelopes:
        if not envelope.startswith(heads[0]):
            raise UnknownKeyError("The envelope is under another key.")
        record = front + pack(ID_BYTES, record_id, 8, record_version)
        messages.append((envelope, record + old_end, record + new_end))
    return aead.reseal(messages, old, new, start=HEADER_BYTES, head=heads[1])


def header(envelope: Buffer) -> tuple[bytes, int]:
    """Returns the key id (16 bytes) and the key version that an envelope names.

    Raises:
        CorruptDocumentError: Not an envelope, or truncated, or key version 0.
        UnsupportedFormatError: A format or suite that this program does not know.
    """
    if len(envelope) < HEADER_BYTES:
        raise _corrupt("is truncated")
    magic, version, suite, key_id, key_version = _HEADER.unpack_from(envelope)
    if magic != MAGIC:
        raise _corrupt("does not begin as one")
    if version != FORMAT or suite != SUITE:
        raise UnsupportedFormatError(
            f"The envelope has format {version}, suite {suite}; only 1, 1 is known.",
            hint="Use the version of apex-creds that wrote it, or a newer one.",
        )
    if len(envelope) < MIN_BYTES:
        raise _corrupt("is truncated")
    if not key_version:
        raise _corrupt("names key version 0")
    return key_id, key_version


class Message(NamedTuple):
    """An envelope that was taken apart, with the place that it is bound to."""

    key_id: bytes
    key_version: int
    aad: bytes
    sealed: aead.Sealed


def take_apart(envelope: Buffer, *, context: Context) -> Message:
    """What ``decrypt_message`` opens: the same each time.

    Raises:
        CorruptDocumentError: See ``header``, as for UnsupportedFormatError.
        UnsupportedFormatError: A format or suite that is not known.
    """
    key_id, key_version = header(envelope)
    aad = canonical_aad(context, key_id=key_id, key_version=key_version)
    return Message(key_id, key_version, aad, aead.take_apart(_body(envelope)))


def decrypt(find_key: FindKey, envelope: Buffer, *, context: Context) -> SecretBytes:
    """Opens an envelope straight into locked memory.

    Raises:
        CorruptDocumentError: See ``header``, as for UnsupportedFormatError.
        IntegrityError: As ``decrypt_message``.
    """
    key_id, key_version = header(envelope)
    aad = canonical_aad(context, key_id=key_id, key_version=key_version)
    return aead.open_into(find_key(key_id, key_version), _body(envelope), aad=aad)


def decrypt_message(find_key: FindKey, message: Message) -> SecretBytes:
    """As ``decrypt``, for an envelope that is taken apart once and opened often.

    Raises:
        UnknownKeyError: From ``find_key``.
        CommitmentError: It was sealed under another key than the one it names.
        DecryptionError: It was altered, or belongs to another place.
    """
    key_id, key_version, aad, sealed = message
    return aead.open_parts(find_key(key_id, key_version), sealed, aad)


def decrypt_bytes(find_key: FindKey, envelope: Buffer, *, context: Context) -> bytes:
    """As ``decrypt``, for plaintexts that are not secret.

    Raises:
        IntegrityError: One of the subclasses that ``decrypt`` lists.
    """
    key_id, key_version = header(envelope)
    aad = canonical_aad(context, key_id=key_id, key_version=key_version)
    key = find_key(key_id, key_version)
    return aead.open_bytes(key, _body(envelope), aad=aad)


def decrypt_in_place(
    find_key: FindKey, envelope: memoryview, *, context: Context
) -> memoryview:
    """As ``decrypt_bytes``; the plaintext takes the place of its ciphertext.

    Raises:
        IntegrityError: One of the subclasses that ``decrypt`` lists.
    """
    key_id, key_version = header(envelope)
    aad = canonical_aad(context, key_id=key_id, key_version=key_version)
    key = find_key(key_id, key_version)
    return aead.open_in_place(key, envelope[HEADER_BYTES:], aad=aad)


def _body(envelope: Buffer) -> Buffer:
    # A small copy of a ciphertext is quicker than a view of it.
    small = len(envelope) <= _COPY_UP_TO
    return (envelope if small else memoryview(envelope))[HEADER_BYTES:]


def _corrupt(how: str) -> CorruptDocumentError:
    return CorruptDocumentError(
        f"The envelope {how}.", hint="It was damaged: restore it from a backup."
    )


_PREFIX: Final = _SIZED.pack(len(_DOMAIN)) + _DOMAIN + _SIZED.pack(ID_BYTES)
