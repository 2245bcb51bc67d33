"""The lines of a log: pure, no files, no clock.

Guarantee: every byte of an event's line is covered by the hash in it, which is its leaf in
the Merkle tree; so a line that was changed is known by itself, and one that was changed
with its hash is known by the tree's root.

A segment is lines of JSON. The first says which segment it is and holds the tree's edge
before it; the last of a sealed one says so; each between is an event,
``{"v":1,"seq":N,`` … ``,"hash":"H"}``, whose entry in the tree is the line without
``,"hash":"H"``, and ``H`` is the hexadecimal ``tree.leaf_hash`` of that entry.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from apex_creds.audit.events import SCHEMA_VERSION, AuditEvent, Recorded
from apex_creds.audit.tree import Frontier
from apex_creds.errors import InvalidInputError

__all__ = [
    "MAX_LINE",
    "SEAL",
    "START",
    "TAIL",
    "TAIL_OF",
    "decode",
    "decode_all",
    "encode",
    "entry_of",
    "fault",
    "header",
    "leaf_of",
    "leaves_of",
    "link",
    "parse_header",
    "seal",
]

MAX_LINE: Final = 64 * 1024
"""Longest line, with its newline; a longer one is not ours."""

_MAX_BODY: Final = 32 * 1024
_MAX_TEXT: Final = 200
_VERSION: Final = b'{"v":%d,' % SCHEMA_VERSION
START: Final = _VERSION + b'"seq":%d,'
"""What an event's line begins with, for ``%`` and its number."""
_LEAF: Final = b"\x00" + START
_MARK: Final = b',"hash":"'
_END: Final = b'"}\n'
_HASH: Final = 64
TAIL: Final = len(_MARK) + _HASH + len(_END)
"""Length of a line's end: its hash and what is around it, with the newline."""
TAIL_OF: Final = _MARK + b'%s"}'
"""That end without the newline, for ``%`` and the hash."""
SEAL: Final = _VERSION + b'"sealed":'
"""What the last line of a sealed segment begins with."""
_ANY_VERSION: Final = re.compile(rb'\{"v":([1-9][0-9]{0,8}),')

_encode = msgspec.json.Encoder().encode
_check = msgspec.json.Decoder(AuditEvent).decode
_decoder = msgspec.json.Decoder(Recorded)
_decode = _decoder.decode
decode_all: Final = _decoder.decode_lines
"""Decodes many lines at once; raises as ``decode``."""


def encode(event: AuditEvent) -> bytes:
    """Returns ``event`` as a JSON object that will decode, at most 32 KiB long.

    Text that is too long is cut and text that is not Unicode is escaped, because a
    hostile name must be logged, not be a way to keep something out of the log.

    Raises:
        InvalidInputError: A field has a value of the wrong type.
    """
    try:
        body = _encode(event)
        if len(body) <= _MAX_BODY:
            _check(body)
            return body
    except UnicodeEncodeError:
        pass
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        raise _bad_event() from None
    return _encode_trimmed(event)


def _encode_trimmed(event: AuditEvent) -> bytes:
    try:
        values = {name: _plain(getattr(event, name)) for name in event.__struct_fields__}
        body = _encode(msgspec.structs.replace(event, **values))
        _check(body)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        raise _bad_event() from None
    return body


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = str(value).encode(errors="backslashreplace").decode()
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"


def _bad_event() -> InvalidInputError:
    return InvalidInputError(
        "An audit event has a field of the wrong type.", hint="See AuditEvent for the types."
    )


# -- events ------------------------------------------------------------------------------


def link(seq: int, body: bytes) -> tuple[bytes, bytes]:
    """Returns the line of ``body`` (with newline), and its leaf (32 bytes)."""
    data = _LEAF % seq + body[1:]
    leaf = sha256(data)
    return b"".join((data[1:-1], _MARK, leaf.hexdigest().encode(), _END)), leaf.digest()


def entry_of(line: bytes) -> bytes:
    """Returns what the tree has of a line: the line without its hash."""
    return line[:-TAIL] + b"}"


def leaf_of(line: bytes) -> bytes:
    """Returns the leaf (32 bytes) that a line says it is.

    Raises:
        ValueError: It does not end in a hash.
    """
    return bytes.fromhex(line[-_HASH - len(_END) : -len(_END)].decode("ascii"))


def fault(seq: int, line: bytes) -> str:
    """Returns what is wrong with ``line`` as event ``seq``, or ""; newline included."""
    digest = sha256(b"\x00" + line[:-TAIL] + b"}").hexdigest().encode()
    if not line.endswith(_MARK + digest + _END) or not line.startswith(START % seq):
        return _explain(seq, line)
    try:
        return "" if _decode(line).seq == seq else "has two numbers"
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return "is not an event of this log's format"


def _explain(seq: int, line: bytes) -> str:
    if not line.endswith(b"\n"):
        return "has no end: torn by a crash (the next unseal sets it aside), or altered"
    version = _ANY_VERSION.match(line)
    if version and int(version[1]) > SCHEMA_VERSION:
        return f"is of version {int(version[1])}, newer than this program (or was altered)"
    if not line.startswith(START % seq):
        return "is not the event of that number: lines were changed, added, removed or moved"
    return "does not have the hash that its content gives: it was altered"


def decode(line: bytes) -> Recorded:
    """Returns the event of a line.

    Raises:
        msgspec.MsgspecError: It is not one; call ``fault`` first.
    """
    return _decode(line)


# -- the first and the last line of a segment --------------------------------------------


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    segment: int
    vault: str
    first: int
    edge: tuple[str, ...]


def header(*, segment: int, vault_id: str, edge: Frontier) -> bytes:
    """Returns the first line of a segment that goes on after ``edge``."""
    hashes = tuple(each.hex() for each in edge.hashes)
    made = _Header(SCHEMA_VERSION, segment, vault_id, edge.size + 1, hashes)
    return _encode(made) + b"\n"


def parse_header(line: bytes, *, segment: int, vault_id: str) -> Frontier | None:
    """Returns the tree's edge before a segment; None if this is not its first line."""
    try:
        read = msgspec.json.decode(line, type=_Header)
        edge = Frontier(read.first - 1, [bytes.fromhex(each) for each in read.edge])
    except (msgspec.MsgspecError, ValueError, RecursionError, InvalidInputError):
        return None
    right = header(segment=segment, vault_id=vault_id, edge=edge)
    return edge if line == right else None


def seal(*, segment: int, last: int) -> bytes:
    """Returns the last line of a segment whose last event is ``last``."""
    return SEAL + b'%d,"last":%d}\n' % (segment, last)


def leaves_of(lines: Sequence[bytes]) -> list[bytes]:
    """Returns the leaves (32 bytes each) that lines say they are; not checked.

    Raises:
        ValueError: One does not end in a hash.
    """
    return [leaf_of(line) for line in lines]
