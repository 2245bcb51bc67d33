"""Documents: what a storage backend holds, sealed and checked.

Guarantee: ``unpack`` returns a body only if every byte of the document is one that this
vault wrote for this section; anything else is a specific ``IntegrityError``. No I/O.
The format is specified in docs/FORMAT.md, "Document v2"; version 1 is still read.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
from itertools import chain
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from apex_creds.crypto import envelope, kdf
from apex_creds.crypto.envelope import Context
from apex_creds.errors import (
    CorruptDocumentError,
    ForeignDocumentError,
    IntegrityError,
    UnsupportedFormatError,
)
from apex_creds.keys.hierarchy import DocumentKeys
from apex_creds.keys.keyset import Keyset
from apex_creds.storage.base import Data

FORMAT: Final = "apex-creds/document"
VERSION: Final = 2
OWNED_VERSION: Final = 3
"""As 2, with records that belong to principals: a program that knows none refuses it."""
KEK_VERSION: Final = 1
"""The version whose keys are derived from a KEK, not from a key of the key store."""

_MAC_FIELD: Final = b',"mac":"'
_BODY_START: Final = b',"body":"'
_BODY_END: Final = b'"' + _MAC_FIELD + b'"}'
_PIECE: Final = 3 << 17
"""Of 3 and of 4, so that pieces of base64 can be put in a row."""
_LARGE: Final = 1 << 20
_MAC_TAIL: Final = len(_MAC_FIELD) + 64 + len(b'"}')
Hex16 = Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
"""16 bytes in hexadecimal."""
Count = Annotated[int, Meta(ge=1, le=2**53)]
KeyName = tuple[str, int]
"""A key version: the id of its keyset, and its number."""

_WHOLE: Final = bytes(16)
"""The record id of a document's body: no record has it."""


class MasterRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which master key opens the vault.

    Attributes:
        version: The provider's version of it, from 1.
        uri: Names the provider, ``keyring:`` or like it.
        params: What the provider needs to find or derive it again; nothing secret.
        check: 16 bytes that tell whether a master key is the right one.
    """

    version: int
    uri: str
    params: dict[str, str]
    check: bytes


class RootHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """In the key store's document only: how to get from the master key to the KEKs."""

    master: MasterRecord
    keks: Keyset


class Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a document says in clear. Nothing here names a service or a credential.

    Attributes:
        generation: Grows by one with each write.
        key_id: 32 hexadecimal digits; with ``key_version`` the key from which those of body
            and MAC are derived: of the key store a KEK, of others a document key. A document
            of version 1 has both fields under the names of a KEK.
        written: Unix seconds.
        keys_used: Ids and versions of the DEKs that the body refers to, sorted.
    """

    format: str = FORMAT
    version: int = VERSION
    vault_id: Hex16
    section: str
    generation: Count
    key_id: Hex16
    key_version: Count
    written: float
    keys_used: tuple[KeyName, ...] = ()
    root: RootHeader | None = None

    @property
    def key(self) -> KeyName:
        """The key that it is under."""
        return self.key_id, self.key_version


class _Document(Header, frozen=True, kw_only=True, forbid_unknown_fields=True):
    body: bytes
    mac: str


class _UnderKek(_Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Version 1."""

    key_id: Hex16 = msgspec.field(name="kek_id")
    key_version: Count = msgspec.field(name="kek_version")


_SHAPES: Final[dict[int, type[_Document]]] = {
    KEK_VERSION: _UnderKek,
    VERSION: _Document,
    OWNED_VERSION: _Document,
}


class _Probe(msgspec.Struct):
    format: str
    version: int


class Packed(msgspec.Struct, frozen=True):
    """A document that was parsed but not yet checked.

    ``encoded`` is the body of a large one, still in base64: it is decoded in pieces, when
    its MAC is known to be right.
    """

    header: Header
    body: bytes
    mac: str
    signed: memoryview
    encoded: memoryview | None = None


def pack(header: Header, body: Data | list[bytes], keys: DocumentKeys) -> Data:
    """Encrypts ``body`` and returns the whole document.

    The body may come in pieces, which are taken out of their list.

    A large one is made piece by piece, and in two pieces of memory, since to touch fresh
    memory costs as much as to encrypt it: no call holds the interpreter for long.
    """
    pieces: list[bytes] | list[Data] = body if isinstance(body, list) else [body]
    sealed = _room(sum(map(len, pieces)) + envelope.MIN_BYTES)
    at = envelope.PLAIN_AT  # the plaintext, in the place of its ciphertext
    pieces.reverse()
    while pieces:  # each is freed by itself: all at once would take milliseconds
        whole = pieces.pop()
        for start in range(0, len(whole), _PIECE):
            part = whole[start : start + _PIECE]
            sealed[at : at + len(part)] = part
            at += len(part)
    envelope.encrypt_in_place(
        sealed,
        keys.body,
        context=_context(header),
        key_id=bytes.fromhex(header.key_id),
        key_version=header.key_version,
    )
    fields = {name: getattr(header, name) for name in Header.__struct_fields__}
    empty = msgspec.json.encode(_SHAPES[header.version](**fields, body=b"", mac=""))
    front = empty[: -len(_BODY_END)]
    out = _room(len(front) + -(-len(sealed) // 3) * 4 + len(b'"') + _MAC_TAIL)
    mac, at = kdf.HmacSha256(keys.mac), 0
    encoded = (  # some times as fast as ``binascii``
        memoryview(msgspec.json.encode(sealed[start : start + _PIECE]))[1:-1]
        for start in range(0, len(sealed), _PIECE)
    )
    for piece in chain([memoryview(front)], encoded, [memoryview(b'"')]):
        mac.update(piece)
        out[at : at + len(piece)] = piece
        at += len(piece)
    out[at:] = b"".join((_MAC_FIELD, mac.finalize().hex().encode(), b'"}'))
    return out if len(out) >= _LARGE else bytes(out)


def _room(size: int) -> memoryview:
    """Zeros; a large piece of them costs nothing before it is written to.

    It is in huge pages where there are any: to touch 45 MB in small ones takes 60 ms more; to
    give them back, 10 ms in one call.
    """
    if size < _LARGE:
        return memoryview(bytearray(size))
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(mmap.mmap(-1, size))
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        made.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(made)


def give_back() -> None:
    """Has the C library return memory that was freed between what was made of documents.

    glibc returns by itself only what is free at the end: it kept a fifth on top of the records.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def without_body(data: bytes) -> bytes:
    """The document, but a large body is left out: JSON that is quick to read."""
    return _cut(data, *_large_body(data))


def _cut(data: bytes, start: int, end: int) -> bytes:
    return data if start == end else data[:start] + data[end:]


def parse(data: bytes, *, section: str, vault_id: str | None) -> Packed:
    """Reads a document without checking its MAC.

    Args:
        data: The stored bytes.
        section: The section it must be for.
        vault_id: The vault it must be of; None when that is not known yet.

    Raises:
        CorruptDocumentError: It is not a document.
        UnsupportedFormatError: It has a version that this program does not know.
        ForeignDocumentError: It is of another vault or section.
    """
    start, end = _large_body(data)
    text = _cut(data, start, end)
    try:
        probe = msgspec.json.decode(text, type=_Probe)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _corrupt(section, "is truncated or malformed") from None
    if probe.format != FORMAT:
        raise _corrupt(section, "is not a document of apex-creds")
    if probe.version not in _SHAPES:
        raise UnsupportedFormatError(
            f"The document for {section!r} has format version {probe.version}.",
            hint=f"This program reads versions up to {max(_SHAPES)}: upgrade apex-creds.",
        )
    try:
        document = msgspec.json.decode(text, type=_SHAPES[probe.version])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IntegrityError):
        raise _corrupt(section, "is malformed") from None
    if document.section != section or vault_id not in (None, document.vault_id):
        raise ForeignDocumentError(
            f"The document for {section!r} belongs to another vault or section.",
            hint="Put the right file back from a backup; nothing was changed.",
        )
    fields = {name: getattr(document, name) for name in Header.__struct_fields__}
    tail = b"".join((_MAC_FIELD, document.mac.encode(), b'"}'))
    if len(tail) != _MAC_TAIL or not data.endswith(tail):
        raise _corrupt(section, "is not in its canonical form")
    signed = memoryview(data)[:-_MAC_TAIL]
    encoded = None if start == end else memoryview(data)[start:end]
    return Packed(Header(**fields), document.body, document.mac, signed, encoded)


def _large_body(data: bytes) -> tuple[int, int]:
    """Where the body of a large document in its canonical form begins and ends.

    To have it decoded with the rest would hold the interpreter for too long. What is left
    without it is as strictly read as any document; the MAC is of all of it.
    """
    start = data.find(_BODY_START, 0, _LARGE) if len(data) >= _LARGE else -1
    end = len(data) - _MAC_TAIL - len(b'"')
    if start < 0 or not data.startswith(_BODY_END[: -len(b'"}')], end):
        return 0, 0
    return start + len(_BODY_START), end


def mac_of(data: Data) -> str:
    """The MAC at the end of a document that ``pack`` made."""
    return bytes(data[-66:-2]).decode()


def check_mac(packed: Packed, keys: DocumentKeys) -> None:
    """Returns if every byte of a document is one that this vault wrote.

    Raises:
        CorruptDocumentError: A byte was changed, or the keys are not the document's.
    """
    mac = kdf.HmacSha256(keys.mac)
    for at in range(0, len(packed.signed), _PIECE):
        mac.update(packed.signed[at : at + _PIECE])
    expected = mac.finalize().hex()
    if not kdf.constant_time_equal(expected.encode(), packed.mac.encode()):
        raise _corrupt(packed.header.section, "does not match its MAC")


def unpack(packed: Packed, keys: DocumentKeys) -> Data:
    """Checks the MAC, then decrypts the body; that of a large document in pieces.

    Raises:
        CorruptDocumentError: A byte was changed, or the keys are not the document's.
    """
    check_mac(packed, keys)
    header = packed.header
    context = _context(header)
    if packed.encoded is None:
        return envelope.decrypt_bytes(lambda *_: keys.body, packed.body, context=context)
    text = packed.encoded
    sealed, filled = _room(len(text) // 4 * 3), 0
    decode = msgspec.json.Decoder(bytes).decode
    try:
        for at in range(0, len(text), _PIECE):
            piece = decode(b"".join((b'"', text[at : at + _PIECE], b'"')))
            sealed[filled : filled + len(piece)] = piece
            filled += len(piece)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _corrupt(header.section, "has a body that is no base64") from None
    return envelope.decrypt_in_place(lambda *_: keys.body, sealed[:filled], context=context)


def _context(header: Header) -> Context:
    return Context(
        vault_id=bytes.fromhex(header.vault_id),
        section=header.section,
        record_id=_WHOLE,
        record_version=header.generation,
    )


def _corrupt(section: str, what: str) -> CorruptDocumentError:
    return CorruptDocumentError(
        f"The document for {section!r} {what}.",
        hint="Restore it from a backup; nothing was changed or overwritten.",
    )
