"""A section's records: metadata and the sealed secret of each credential; and their bytes.

Guarantee: a record's secret opens only as the record and version it was sealed for, with
the DEK version it names. The secret's parts have one canonical form, parsed strictly, and
no value is turned into ``bytes``: ``parts_layout`` returns where it lies. What
``decode_body`` returns is what one call over the whole body would; but no call into C goes
over more than some hundred kilobytes, because it holds the interpreter, and with it the
event loop, until it returns. Values are immutable. No I/O. Specified in docs/FORMAT.md.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from typing import Any, Final

import msgspec

from apex_creds.concurrency import BoundedCache
from apex_creds.crypto import envelope
from apex_creds.crypto.envelope import Context, Message
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import Header, Packed, pack, unpack
from apex_creds.errors import (
    CorruptDocumentError,
    IntegrityError,
    InvalidInputError,
)
from apex_creds.keys.hierarchy import DocumentKeys
from apex_creds.keys.keyset import Keyset
from apex_creds.model import SECTIONS, CredentialInfo, Secret, Sensitivity
from apex_creds.storage.base import Data, Token

FindKey = Callable[[bytes, int], SecretBytes]
Layout = Mapping[str, tuple[int, int]]
"""Where the parts of a secret lie: offset and length, by name."""
_REMEMBERED: Final = (1024, 4096)
"""Messages at once, and bytes of the longest envelope among them."""


class Messages(BoundedCache[int, tuple["Record", Message]]):
    """Records of one vault that were taken apart, by identity; ciphertext only."""

    __slots__ = ("_layouts",)

    def __init__(self) -> None:
        super().__init__(_REMEMBERED[0])
        self._layouts: BoundedCache[bytes, Layout] = BoundedCache(_REMEMBERED[0])

    def layout(self, record: Record, whole: SecretBytes) -> Layout:
        """Where the parts of a record lie that was opened; in one ciphertext, always there.

        Raises:
            CorruptDocumentError: It is not in the canonical form.
        """
        found = self._layouts.get(record.sealed)
        if found is None:
            found = layout_of(whole)
            if len(record.sealed) <= _REMEMBERED[1]:
                self._layouts.remember(record.sealed, found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One document of a section, as of one change token; no ``header``: it does not exist.

    ``uses`` counts the messages that were sealed under each DEK version in use.
    """

    name: str
    token: Token | None
    header: Header | None
    mac: str
    records: Mapping[str, Record]
    uses: Mapping[tuple[str, int], int] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """Of the last write; 0 before the first."""
        return self.header.generation if self.header else 0

    @property
    def keys_used(self) -> tuple[tuple[str, int], ...]:
        """Id and version of every DEK that the records name."""
        return self.header.keys_used if self.header else ()


class Resealed(msgspec.Struct, frozen=True, gc=False):
    """A record under a new key, beside the one that it takes the place of.

    The garbage collector does not see it: tens of thousands of tuples at a time would have
    it search the whole heap, and hold the event loop meanwhile.
    """

    old: Record
    new: Record


def narrows(shards: Iterable[Shard], changes: Mapping[str, Record | None]) -> bool:
    """Whether less is allowed of a credential than was, so that it must not come back."""
    levels = list(Sensitivity)
    for shard in shards:
        there = shard.records
        pairs = (
            (there[name].info, changed.info)
            for name in changes.keys() & there.keys()
            if (changed := changes[name]) is not None
            and changed.info is not there[name].info  # a re-encrypted one has the same
        )
        for old, new in pairs:
            if (
                not set(old.origins) <= set(new.origins)
                or (old.delivery, old.service) != (new.delivery, new.service)
                or levels.index(old.sensitivity) < levels.index(new.sensitivity)
                or (new.challenge and not old.challenge)
                or (
                    new.expires is not None
                    and (old.expires is None or new.expires < old.expires)
                )
            ):
                return True
    return False


def seal_record(
    info: CredentialInfo, secret: Secret, *, vault_id: bytes, keyset: Keyset, key: SecretBytes
) -> Record:
    """Encrypts a secret under ``key``, the primary of ``keyset``."""
    with encode_parts(secret.parts) as plaintext:
        return _seal(info, plaintext, vault_id=vault_id, keyset=keyset, key=key)


def open_record(
    record: Record, *, vault_id: bytes, find_key: FindKey, known: Messages | None = None
) -> SecretBytes:
    """Decrypts a record's parts into locked memory; the caller closes it.

    Args:
        record: What to open.
        vault_id: 16 bytes.
        find_key: Finds its DEK.
        known: Where records of this vault that were taken apart are remembered.

    Raises:
        DecryptionError: It does not open as this record.
        UnknownKeyError: Its key is not to be had.
    """
    found = None if known is None else known.get(id(record))
    if found is not None and found[0] is record:
        return envelope.decrypt_message(find_key, found[1])
    context = _context(record.info, vault_id)
    if known is None or len(record.sealed) > _REMEMBERED[1]:
        return envelope.decrypt(find_key, record.sealed, context=context)
    message = envelope.take_apart(record.sealed, context=context)
    known.remember(id(record), (record, message))
    return envelope.decrypt_message(find_key, message)


def reseal_record(
    record: Record, *, vault_id: bytes, find_key: FindKey, keyset: Keyset, key: SecretBytes
) -> Record:
    """The same secret and version under another DEK version."""
    with open_record(record, vault_id=vault_id, find_key=find_key) as plaintext:
        return _seal(record.info, plaintext, vault_id=vault_id, keyset=keyset, key=key)


def reseal_records(
    records: Mapping[str, Record],
    *,
    section: str,
    vault_id: bytes,
    find_key: FindKey,
    keyset: Keyset,
    key: SecretBytes,
) -> tuple[dict[str, Resealed], list[Record]]:
    """As ``reseal_record``, for many of a section that are all under one version.

    Returns:
        Each record and its new form, by name, and the records that do not open.

    Raises:
        UnknownKeyError: Their key is not to be had.
        SecretWipedError: A key was destroyed meanwhile.
    """
    if not records:
        return {}, []
    key_id, version = next(iter(records.values())).key
    sealed = envelope.reseal(
        [(each.sealed, _record_id(each.info), each.info.version) for each in records.values()],
        find_key(key_id, version),
        key,
        vault_id=vault_id,
        section=section,
        key_id=key_id,
        versions=(version, keyset.primary.version),
    )
    done: dict[str, Resealed] = {}
    failed: list[Record] = []
    for (name, record), made in zip(records.items(), sealed, strict=True):
        if made is None:
            failed.append(record)
        else:
            done[name] = Resealed(record, Record(record.info, made))
    return done, failed


def heads(records: Iterable[Record]) -> Iterator[bytes]:
    """The ``head`` of each."""
    return map(_HEAD, map(_SEALED, records))


def any_owned(records: Iterable[Record]) -> bool:
    """Whether some of them belong to a principal."""
    return any(map(_PRINCIPAL, records))


def keys_used(records: Iterable[Record]) -> tuple[tuple[str, int], ...]:
    """Every DEK id and version that the records name, sorted."""
    sealed = list(map(_SEALED, records))
    examples = dict(zip(map(_HEAD, sealed), sealed, strict=True))
    keys = map(envelope.header, examples.values())
    return tuple(sorted({(key.hex(), version) for key, version in keys}))


def count_uses(
    before: Shard, records: Mapping[str, Record], used: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    """``before.uses``, with the records that are new counted; keys out of use left out."""
    known = before.records
    new = [record for name, record in records.items() if known.get(name) is not record]
    counted = Counter(heads(new))
    counts = dict.fromkeys(used, 0)
    for key in counts:
        head = envelope.head(bytes.fromhex(key[0]), key[1])
        counts[key] = before.uses.get(key, 0) + counted[head]
    return counts


def seal_shard_body(
    header: Header,
    records: Iterable[Record],
    keys: DocumentKeys,
    *,
    uses: Mapping[tuple[str, int], int],
) -> Data:
    """The document for ``header`` and ``records``."""
    counts = tuple((key, version, count) for (key, version), count in sorted(uses.items()))
    return pack(header, encode_body(list(records), counts), keys)


def open_shard(
    packed: Packed, token: Token, keys: DocumentKeys, *, shared: dict[Any, Any]
) -> Shard:
    """Checks and decrypts a section; the secrets in it stay sealed.

    Args:
        packed: The document.
        token: Its token.
        keys: Its keys.
        shared: What records of the section have in common, so that each value is there once:
            takes in those that are new.

    Raises:
        IntegrityError: It is not what this vault wrote.
    """
    header = packed.header
    plaintext = unpack(packed, keys)
    try:
        pieces, uses = decode_body(plaintext)
        records: dict[str, Record] = {}
        for piece in pieces:
            for record in piece:
                _share(record.info, shared)
                info = record.info
                records[info.key if info.principal else info.name] = record
    except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError):
        raise CorruptDocumentError(
            f"The body of {header.section!r} is malformed.",
            hint="Restore it from a backup; nothing was changed or overwritten.",
        ) from None
    return Shard(
        name=header.section,
        token=token,
        header=header,
        mac=packed.mac,
        records=records,
        uses={(key, version): count for key, version, count in uses},
    )


def _share(info: CredentialInfo, shared: dict[Any, Any]) -> None:
    """Has a credential refer to values that are there already: a third of its memory."""
    same, put = shared.setdefault, msgspec.structs.force_setattr
    own = info.service, info.delivery, info.origins
    there = same(own, own)
    if there is not own:
        service, delivery, origins = there
        put(info, "service", service)
        put(info, "delivery", delivery)
        put(info, "origins", origins)
    created = same(info.created, info.created)
    put(info, "created", created)
    put(info, "updated", created if info.updated == created else info.updated)


def _seal(
    info: CredentialInfo,
    plaintext: SecretBytes,
    *,
    vault_id: bytes,
    keyset: Keyset,
    key: SecretBytes,
) -> Record:
    sealed = envelope.encrypt(
        key,
        plaintext,
        context=_context(info, vault_id),
        key_id=bytes.fromhex(keyset.id),
        key_version=keyset.primary.version,
    )
    return Record(info, sealed)


def _context(info: CredentialInfo, vault_id: bytes) -> Context:
    return Context(
        vault_id=vault_id,
        section=SECTIONS[info.kind],
        record_id=_record_id(info),
        record_version=info.version,
    )


def _record_id(info: CredentialInfo) -> bytes:
    """The record id that the ciphertext is bound to, and to whom it belongs with it."""
    own = bytes.fromhex(info.id)
    if not info.principal:
        return own
    whose = own + info.principal.encode()
    return hashlib.blake2b(whose, digest_size=16, person=b"apex-principal").digest()


Counts = tuple[tuple[str, int, int], ...]
"""How many messages were sealed under a key: its id, its version, the number."""

_PIECE: Final = 1024
_WINDOW: Final = 1 << 18
_FRONT: Final = b"\x82" + msgspec.msgpack.encode("records") + b"\xdd"
_MARK: Final = envelope.MAGIC + bytes([envelope.FORMAT, envelope.SUITE])
# In C: what goes over all records of a section costs a rotation less so.
_SEALED: Final = attrgetter("sealed")
_PRINCIPAL: Final = attrgetter("info.principal")
_HEAD: Final = itemgetter(slice(envelope.HEADER_BYTES))
_BINARY: Final = ((0xC4, 1), (0xC5, 2), (0xC6, 4))
"""What MessagePack puts before bytes, and how many bytes of length come after it."""


class Record(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True, gc=False
):
    """A credential at rest: what may be known of it, and its envelope."""

    info: CredentialInfo
    sealed: bytes

    @property
    def key(self) -> tuple[bytes, int]:
        """Id (16 bytes) and version of the DEK that sealed it."""
        return envelope.header(self.sealed)

    @property
    def head(self) -> bytes:
        """The same, as the bytes that the envelope begins with; not checked."""
        return self.sealed[: envelope.HEADER_BYTES]


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    records: list[Record]
    uses: Counts = ()


class _Tail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    uses: Counts


def encode_body(records: Sequence[Record], uses: Counts) -> list[bytes]:
    """The body, in pieces to be put in a row."""
    pack = msgspec.msgpack.encode
    parts = [_FRONT, len(records).to_bytes(4)]
    for start in range(0, len(records), _PIECE):
        piece = records[start : start + _PIECE]
        parts.append(pack(piece)[1 if len(piece) < 16 else 3 :])  # without its own length
    parts += [pack("uses"), pack(uses)]
    return parts


def decode_body(plaintext: Data) -> tuple[list[list[Record]], Counts]:
    """The records, in pieces, and the counts.

    Raises:
        msgspec.DecodeError: It is no such body; or a ``UnicodeDecodeError``, or what a
            record refuses.
    """
    if len(plaintext) > _WINDOW and plaintext[: len(_FRONT)] == _FRONT:
        try:
            return _in_pieces(memoryview(plaintext))
        except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError, IndexError):
            pass  # a mark where none was meant, or damage: one call over all of it decides
    body = msgspec.msgpack.decode(plaintext, type=_Body)
    return [body.records], body.uses


def _in_pieces(plaintext: memoryview) -> tuple[list[list[Record]], Counts]:
    """Cuts where a record seems to end.

    No item of MessagePack is the beginning of another one, so pieces that are each a whole
    number of records are the records, wherever the cuts came from.
    """
    at = len(_FRONT) + 4
    left, pieces = int.from_bytes(plaintext[len(_FRONT) : at]), list[list[Record]]()
    while left:
        window = bytes(plaintext[at : at + _WINDOW])
        last, count = window.rfind(_MARK), window.count(_MARK)
        if not 0 < count <= left:
            raise msgspec.DecodeError
        end = at + last + _length(window[:last])
        whole = b"".join((b"\xdd", count.to_bytes(4), plaintext[at:end]))
        pieces.append(msgspec.msgpack.decode(whole, type=list[Record]))
        left, at = left - count, end
    tail = b"\x81" + bytes(plaintext[at:])
    return pieces, msgspec.msgpack.decode(tail, type=_Tail).uses


def _length(before: bytes) -> int:
    """How long the bytes are that begin behind ``before``."""
    for kind, digits in _BINARY:
        if before[-digits - 1] == kind:
            return int.from_bytes(before[-digits:])
    raise msgspec.DecodeError


MAX_PARTS: Final = 255
_PART_NAME: Final = re.compile(rb"[a-z0-9_]{1,64}")
_PART_SIZE: Final = struct.Struct(">I")
# The commonest credential has a short cut, and the usual names need no check.
_SINGLE: Final = b"\x01\x05value"
_SINGLE_START: Final = len(_SINGLE) + _PART_SIZE.size
_USUAL: Final = {n.encode(): n for n in ("value", "access", "refresh", "user", "password")}


def encode_parts(parts: Mapping[str, bytes]) -> SecretBytes:
    """Lays the parts out in locked memory: the count, the table, then the values.

    Raises:
        InvalidInputError: No part, too many, or a name that is not 1 to 64 of ``a-z``,
            ``0-9`` and ``_``.
    """
    if not 0 < len(parts) <= MAX_PARTS:
        raise InvalidInputError("A credential has 1 to 255 parts.")
    ordered = sorted((name.encode("utf-8", "replace"), value) for name, value in parts.items())
    if not all(_PART_NAME.fullmatch(name) for name, _ in ordered):
        raise InvalidInputError("A part's name is 1 to 64 of a-z, 0-9 and _.")
    table = bytes([len(ordered)]) + b"".join(
        bytes([len(name)]) + name + _PART_SIZE.pack(len(value)) for name, value in ordered
    )
    secret = SecretBytes.allocate(len(table) + sum(len(value) for _, value in ordered))
    with secret._mutable() as target:
        end = len(table)
        target[:end] = table
        for _, value in ordered:
            start, end = end, end + len(value)
            target[start:end] = value
    return secret


def layout_of(whole: SecretBytes) -> Layout:
    """As ``parts_layout``, for what lies in locked memory."""
    size = whole._length - _SINGLE_START
    if size >= 0 and whole.begins_with(_SINGLE + _PART_SIZE.pack(size)):
        return {"value": (_SINGLE_START, size)}
    return parts_layout(whole._export(readonly=True))


def parts_layout(view: memoryview) -> Layout:
    """Returns where each part lies: name to (offset, length).

    Raises:
        CorruptDocumentError: ``view`` is not in the canonical form.
    """
    places: dict[str, tuple[int, int]] = {}
    table, total = _part_table(view)
    at = total - sum(size for _, size in table)
    for name, size in table:
        places[name] = (at, size)
        at += size
    return places


def _part_table(view: memoryview) -> tuple[list[tuple[str, int]], int]:
    """The names and sizes, and the length of all; the sizes add up to what is there."""
    total = len(view)
    table: list[tuple[str, int]] = []
    at, last, promised = 1, b"", 0
    for _ in range(view[0] if total else 0):
        stop = at + 1 + view[at] if at < total else total
        if stop + _PART_SIZE.size > total:
            raise _malformed()
        name, (size,) = bytes(view[at + 1 : stop]), _PART_SIZE.unpack_from(view, stop)
        if name <= last:
            raise _malformed()
        usual = _USUAL.get(name)
        if usual is None and not _PART_NAME.fullmatch(name):
            raise _malformed()
        table.append((usual or name.decode("ascii"), size))
        at, last, promised = stop + _PART_SIZE.size, name, promised + size
    if not table or at + promised != total:
        raise _malformed()
    return table, total


def _malformed() -> CorruptDocumentError:
    return CorruptDocumentError(
        "The decrypted credential is malformed.", hint="Restore it from a backup."
    )
