"""The leaves of many lines at once: what makes verification quick.

Guarantee: a leaf is returned only for a line that is whole, canonical, of the number that
is next, and of its own hash; what is wrong with the first other one is said. No I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

import msgspec

from apex_creds.audit import line as lines
from apex_creds.audit.events import Recorded

_TAIL: Final = lines.TAIL - 1
_MARK: Final = lines.TAIL_OF.partition(b"%")[0]
_BEFORE: Final = len(_MARK) - _TAIL
_PIECE: Final = 2 * lines.MAX_LINE
_NEXT: Final = b"\n" + lines.START.partition(b"%")[0]


class _Slim(msgspec.Struct, frozen=True, gc=False):
    seq: int
    hash: str


_decode_slim: Final = msgspec.json.Decoder(_Slim).decode_lines


def leaves_of(body: bytes, first: int, signed: int) -> tuple[list[bytes], str]:
    """The leaves of all good lines, and what is wrong with the next one, if any.

    Up to event ``signed`` the vault's signature says that the lines are of the schema;
    later ones are asked.
    """
    leaves: list[bytes] = []
    start = 0
    while start < len(body):
        # In pieces that a processor's cache holds.
        end = body.rfind(b"\n", start, start + _PIECE) + 1 or start + _PIECE
        piece = body[start:end]
        more, wrong = _leaves_of_piece(piece, first + len(leaves), signed)
        leaves += more
        if wrong:
            return leaves, wrong
        start = end
    return leaves, ""


def _leaves_of_piece(piece: bytes, first: int, signed: int) -> tuple[list[bytes], str]:
    found = piece.split(b"\n")
    torn = found.pop()
    slim = first + len(found) - 1 <= signed
    leaves = _quick(piece[: len(piece) - len(torn)], found, first, slim=slim)
    if leaves is None:
        return _slow(found, first)
    return leaves, lines.fault(first + len(found), torn) if torn else ""


def _quick(
    body: bytes, found: Sequence[bytes], first: int, *, slim: bool
) -> list[bytes] | None:
    """The leaves of lines that are all good, else None."""
    count = len(found)
    try:
        events: Sequence[_Slim | Recorded]
        events = _decode_slim(body) if slim else lines.decode_all(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    hashes = [sha256(b"\x00" + text[:-_TAIL] + b"}") for text in found]
    right = (
        body.count(_NEXT) == max(count - 1, 0)
        and body.startswith(_NEXT[1:] if count else b"")
        and [each.seq for each in events] == list(range(first, first + count))
        and [each.hash for each in events] == [each.hexdigest() for each in hashes]
        and [text[-_TAIL:_BEFORE] for text in found].count(_MARK) == count
    )
    return [each.digest() for each in hashes] if right else None


def _slow(found: Sequence[bytes], first: int) -> tuple[list[bytes], str]:
    leaves: list[bytes] = []
    for seq, text in enumerate(found, start=first):
        if wrong := lines.fault(seq, text + b"\n"):
            return leaves, wrong
        leaves.append(lines.leaf_of(text + b"\n"))
    return leaves, "is not an event of this log's format"
