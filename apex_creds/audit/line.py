"""The lines of a log: pure, no files, no clock.

Guarantee: every byte of an event's line is covered by the hash in it, which is its leaf in
the Merkle tree; so a line that was changed is known by itself, and one that was changed
with its hash is known by the tree's root.

A segment is lines of JSON. The first says which segment it is and holds the tree's edge
before it; the last of a sealed one says so; each between is an event,
``{"v":1,"seq":N,`` … ``,"hash":"H"}``, whose entry in the tree is the line without
``,"hash":"H"``, and ``H`` is the hexadecimal ``tree.leaf_hash`` of that entry.

Whatever a plugin has a say in (names, methods, the class of its error) goes through
``encode``, escaped and trimmed; all else in an event of the hot path is a number or an
identifier of hexadecimal digits, which needs neither.
"""

from __future__ import annotations

import re
from binascii import hexlify, unhexlify
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Final, final

import msgspec

from apex_creds.audit.events import SCHEMA_VERSION, AuditEvent, EventKind, Recorded
from apex_creds.audit.tree import Frontier
from apex_creds.concurrency import BoundedCache
from apex_creds.errors import InvalidInputError
from apex_creds.model import MAX_NAME_BYTES, split_key

__all__ = [
    "MAX_LINE",
    "Actor",
    "decode",
    "decode_all",
    "encode",
    "entry_of",
    "fault",
    "first_in",
    "header",
    "leaf_of",
    "leaves_of",
    "link",
    "link_all",
    "number_of",
    "parse_header",
    "parse_seal",
    "seal",
    "shown_label",
]

MAX_LINE: Final = 64 * 1024
"""Longest line, with its newline; a longer one is not ours."""

_MAX_BODY: Final = 32 * 1024
_MAX_TEXT: Final = 200
_VERSION: Final = b'{"v":%d,' % SCHEMA_VERSION
_START: Final = _VERSION + b'"seq":%d,'
"""What an event's line begins with, for ``%`` and its number."""
_MARK: Final = b',"hash":"'
_END: Final = b'"}\n'
_LEAF: Final = b"\x00" + _START + b"%b"
_LINE: Final = b"%b" + _MARK + b"%b" + _END
"""An entry and a line, for ``%``: the number and the body; the entry and its hash."""
_HASH: Final = 64
_TAIL: Final = len(_MARK) + _HASH + len(_END)
"""Length of a line's end: its hash and what is around it, with the newline."""
_NUMBER: Final = re.compile(rb'\{"v":[1-9][0-9]{0,8},"seq":([1-9][0-9]{0,17}),')
_NUMBER_AFTER: Final = re.compile(rb"\n" + _NUMBER.pattern)
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
        with suppress(UnicodeEncodeError):
            body = _encode(event)
            if len(body) <= _MAX_BODY:
                _check(body)
                return body
        cut = {}
        for name in event.__struct_fields__:
            value = getattr(event, name)
            if isinstance(value, str):
                text = str(value).encode(errors="backslashreplace").decode()
                cut[name] = text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
        body = _encode(msgspec.structs.replace(event, **cut))
        _check(body)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError):
        raise InvalidInputError(
            "An audit event has a field of the wrong type.",
            hint="See AuditEvent for the types.",
        ) from None
    return body


# -- events ------------------------------------------------------------------------------


def link(seq: int, body: bytes) -> tuple[bytes, bytes]:
    """Returns the line of ``body`` (with newline), and its leaf (32 bytes)."""
    data, [leaf] = link_all(seq, [body])
    return data, leaf


def link_all(seq: int, bodies: Iterable[bytes]) -> tuple[bytes, list[bytes]]:
    """Returns the lines of ``bodies`` in one piece, the first as ``seq``, and their leaves."""
    texts: list[bytes] = []
    leaves: list[bytes] = []
    for body in bodies:
        data = _LEAF % (seq, body[1:])
        leaf = sha256(data).digest()
        texts.append(_LINE % (data[1:-1], hexlify(leaf)))
        leaves.append(leaf)
        seq += 1
    return b"".join(texts), leaves


def entry_of(line: bytes) -> bytes:
    """Returns what the tree has of a line: the line without its hash."""
    return line[:-_TAIL] + b"}"


def number_of(line: bytes) -> int:
    """Returns the number that a line says it has; 0 where it is no event's. Not checked."""
    found = _NUMBER.match(line)
    return int(found[1]) if found else 0


def first_in(data: bytes) -> tuple[int, int]:
    """Returns where in a part of a segment an event's line begins first, and its number.

    Where none does: a place that is negative. Nothing but line ends is looked for, since no
    text in an event can have one.
    """
    found = _NUMBER_AFTER.search(data)
    return (found.start() + 1, int(found[1])) if found else (-1, 0)


def leaf_of(line: bytes) -> bytes:
    """Returns the leaf (32 bytes) that a line says it is.

    Raises:
        ValueError: It does not end in a hash.
    """
    return unhexlify(line[-_HASH - len(_END) : -len(_END)])


def fault(seq: int, line: bytes) -> str:
    """Returns what is wrong with ``line`` as event ``seq``, or ""; newline included."""
    digest = sha256(b"\x00" + line[:-_TAIL] + b"}").hexdigest().encode()
    if line.endswith(_MARK + digest + _END) and line.startswith(_START % seq):
        try:
            return "" if _decode(line).seq == seq else "has two numbers"
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return "is not an event of this log's format"
    if not line.endswith(b"\n"):
        return "has no end: torn by a crash (the next unseal sets it aside), or altered"
    version = _ANY_VERSION.match(line)
    if version and int(version[1]) > SCHEMA_VERSION:
        return f"is of version {int(version[1])}, newer than this program (or was altered)"
    if not line.startswith(_START % seq):
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


class _Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    sealed: int
    last: int


def parse_seal(line: bytes, *, segment: int) -> int | None:
    """Returns the last event of a sealed segment; None if this is not its last line."""
    try:
        last = msgspec.json.decode(line, type=_Seal).last
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return last if line == seal(segment=segment, last=last) else None


def seal(*, segment: int, last: int) -> bytes:
    """Returns the last line of a segment whose last event is ``last``."""
    return _VERSION + b'"sealed":%d,"last":%d}\n' % (segment, last)


# -- many lines at once ---------------------------------------------------------------------

_PIECE: Final = 2 * MAX_LINE
_NEXT: Final = b"\n" + _VERSION + b'"seq":'
_MARKED: Final = slice(1 - _TAIL, 1 - _TAIL + len(_MARK))
"""Where in a line without its newline the mark before its hash is."""


class _Slim(msgspec.Struct, frozen=True, gc=False):
    seq: int
    hash: str


_decode_slim: Final = msgspec.json.Decoder(_Slim).decode_lines


def leaves_of(body: bytes, first: int, signed: int = 0) -> tuple[list[bytes], str]:
    """Returns the leaves of all good lines, and what is wrong with the next one, if any.

    What makes verification quick: a leaf is returned only for a line that is whole,
    canonical, of the number that is next, and with the hash that it states.

    Up to event ``signed`` the vault's signature says that the lines are of the schema;
    later ones are asked.
    """
    leaves: list[bytes] = []
    start = 0
    while start < len(body):
        # In pieces that a processor's cache holds.
        end = body.rfind(b"\n", start, start + _PIECE) + 1 or start + _PIECE
        piece = body[start:end]
        found = piece.split(b"\n")
        torn, at = found.pop(), first + len(leaves)
        slim = at + len(found) - 1 <= signed
        more = _quick(piece[: len(piece) - len(torn)], found, at, slim=slim)
        if more is None:  # one by one, to the bad one
            for seq, text in enumerate(found, start=at):
                if wrong := fault(seq, text + b"\n"):
                    return leaves, wrong
                leaves.append(leaf_of(text + b"\n"))
            return leaves, "is not an event of this log's format"
        leaves += more
        if torn and (wrong := fault(at + len(found), torn)):
            return leaves, wrong
        start = end
    return leaves, ""


def _quick(
    body: bytes, found: Sequence[bytes], first: int, *, slim: bool
) -> list[bytes] | None:
    """The leaves of lines that are all good, else None."""
    count = len(found)
    try:
        events: Sequence[_Slim | Recorded]
        events = _decode_slim(body) if slim else decode_all(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    hashes = [sha256(b"\x00" + text[: 1 - _TAIL] + b"}") for text in found]
    right = (
        body.count(_NEXT) == max(count - 1, 0)
        and body.startswith(_NEXT[1:] if count else b"")
        and [each.seq for each in events] == list(range(first, first + count))
        and [each.hash for each in events] == [each.hexdigest() for each in hashes]
        and [text[_MARKED] for text in found].count(_MARK) == count
    )
    return [each.digest() for each in hashes] if right else None


# -- the hot path: what repeats is encoded once --------------------------------------------

_BARE: Final = AuditEvent(0.0, EventKind.LEASE)
_EMPTY: Final = len(b'{"time":0.0,"kind":"lease"')
_MANY: Final = 4096


@final
class Actor:
    """A plugin's action, as the beginning of its events.

    Args:
        plugin: Its id.
        version: Its version; may be empty.
        action: The action's name.
        principal: Who it acts for; may be empty.
        shown: Gives a credential's name as the log shows it.
    """

    __slots__ = ("_acts", "_credentials", "_end", "_lease", "_redeem", "_shown", "_uses")

    def __init__(
        self,
        plugin: str,
        version: str,
        action: str,
        principal: str = "",
        *,
        shown: Callable[[str], str] = str,
    ) -> None:
        self._shown = shown
        self._acts = bool(principal)
        whom = shown(principal)
        who = _fields(plugin=plugin, plugin_version=version, action=action, principal=whom)
        self._lease = f',"kind":"lease"{who},"decision":"allow","reason":"granted"'
        self._redeem = f',"kind":"redeem"{who},"decision":"allow","reason":"granted"'
        self._end = f',"kind":"invocation"{who}'
        self._credentials: BoundedCache[str, str] = BoundedCache(_MANY)
        self._uses: BoundedCache[tuple[str, str], str] = BoundedCache(_MANY)

    def lease(
        self, time: float, *, invocation: str, lease: str, parent: str, credential: str
    ) -> bytes:
        """A lease was made."""
        name = self._credentials.get(credential) or self._name(credential)
        link = f',"parent":"{parent}"' if parent else ""
        return (
            f'{{"time":{time!r}{self._lease}{name},"invocation":"{invocation}"'
            f',"lease":"{lease}"{link}}}'
        ).encode()

    def redeem(
        self,
        time: float,
        *,
        invocation: str,
        lease: str,
        parent: str,
        credential: str,
        key: tuple[str, int],
        method: str,
        origin: str,
        ids: tuple[str, str],
    ) -> bytes:
        """A lease is redeemed."""
        name = self._credentials.get(credential) or self._name(credential)
        use = self._uses.get((method, origin)) or self._uses.remember(
            (method, origin), _fields(method=method, origin=origin)
        )
        more = f',"parent":"{parent}"' if parent else ""
        if ids[0]:
            more += f',"trace_id":"{ids[0]}","span_id":"{ids[1]}"'
        return (
            f'{{"time":{time!r}{self._redeem}{name},"invocation":"{invocation}"'
            f',"lease":"{lease}","key_id":"{key[0]}","key_version":{key[1]}'
            f"{use}{more}}}"
        ).encode()

    def end(
        self, time: float, *, invocation: str, parent: str, outcome: str, duration_us: int
    ) -> bytes:
        """An invocation is over."""
        link = f',"parent":"{parent}"' if parent else ""
        how = _OK if outcome == "ok" else _fields(outcome=outcome)
        return (
            f'{{"time":{time!r}{self._end},"invocation":"{invocation}"{link}'
            f'{how},"duration_us":{duration_us}}}'
        ).encode()

    def _name(self, credential: str) -> str:
        name, owner = split_key(credential) if self._acts else (credential, "")
        detail = SHARED if self._acts and not owner else ""
        text = _fields(credential=self._shown(name), detail=detail)
        return self._credentials.remember(credential, text)


def _fields(**values: str) -> str:
    """The fields after time and kind, as they stand in JSON.

    Whatever can name a credential or a plugin is kept whole.
    """
    cut = {
        name: text if len(text) <= MAX_NAME_BYTES else text[:MAX_NAME_BYTES] + "…"
        for name, text in values.items()
    }
    event = msgspec.structs.replace(_BARE, **cut)
    return encode(event)[_EMPTY:-1].decode()


SHARED: Final = "shared"
"""What the log says of a use of the shared credential for a principal."""
_OK: Final = _fields(outcome="ok")


def shown_label(label: str, shown: Callable[[str], str]) -> str:
    """A keyset's label, ``section/service``, with its service as ``shown`` shows names."""
    section, slash, service = label.partition("/")
    return f"{section}/{shown(service)}" if slash and section != "access" else label
