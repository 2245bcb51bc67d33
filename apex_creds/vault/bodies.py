"""The body of a section's document: MessagePack, written and read in pieces.

Guarantee: what ``decode`` returns is what one call over the whole body would; but no call
into C goes over more than some hundred kilobytes, because it holds the interpreter, and
with it the event loop, until it returns. Values are immutable. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from apex_creds.crypto import envelope
from apex_creds.errors import IntegrityError
from apex_creds.model import CredentialInfo
from apex_creds.storage.base import Data

Counts = tuple[tuple[str, int, int], ...]
"""How many messages were sealed under a key: its id, its version, the number."""

_PIECE: Final = 1024
_WINDOW: Final = 1 << 18
_FRONT: Final = b"\x82" + msgspec.msgpack.encode("records") + b"\xdd"
_MARK: Final = envelope.MAGIC + bytes([envelope.FORMAT, envelope.SUITE])
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


def encode(records: Sequence[Record], uses: Counts) -> list[bytes]:
    """The body, in pieces to be put in a row."""
    pack = msgspec.msgpack.encode
    parts = [_FRONT, len(records).to_bytes(4)]
    for start in range(0, len(records), _PIECE):
        piece = records[start : start + _PIECE]
        parts.append(pack(piece)[1 if len(piece) < 16 else 3 :])  # without its own length
    parts += [pack("uses"), pack(uses)]
    return parts


def decode(plaintext: Data) -> tuple[list[list[Record]], Counts]:
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
    for count, end in _cuts(plaintext, at):
        if left < count:
            raise msgspec.DecodeError
        pieces.append(_decoded(plaintext[at:end], count))
        left, at = left - count, end
        if not left:
            break
    tail = b"\x81" + bytes(plaintext[at:])
    return pieces, msgspec.msgpack.decode(tail, type=_Tail).uses


def _decoded(piece: memoryview, count: int) -> list[Record]:
    whole = b"".join((b"\xdd", count.to_bytes(4), piece))
    return msgspec.msgpack.decode(whole, type=list[Record])


def _cuts(plaintext: memoryview, at: int) -> Iterator[tuple[int, int]]:
    """Of each piece: how many records it seems to have, and where it ends."""
    while True:
        window = bytes(plaintext[at : at + _WINDOW])
        last = window.rfind(_MARK)
        if last < 0:
            raise msgspec.DecodeError
        yield window.count(_MARK), (at := at + last + _length(window[:last]))


def _length(before: bytes) -> int:
    """How long the bytes are that begin behind ``before``."""
    for kind, digits in _BINARY:
        if before[-digits - 1] == kind:
            return int.from_bytes(before[-digits:])
    raise msgspec.DecodeError
