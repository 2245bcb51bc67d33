"""The spellings under which a secret may show up in text, built in locked memory.

Guarantee: no Python ``bytes`` or ``str`` of the secret or of a spelling is made; each
spelling is a ``SecretBytes`` that the caller closes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from apex_creds.crypto.memory import SecretBytes

_LOWER: Final = b"0123456789abcdef"
_UPPER: Final = b"0123456789ABCDEF"
_BASE64: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_BASE64URL: Final = _BASE64[:-2] + b"-_"
_UNRESERVED: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
)
_PRINTABLE: Final = frozenset(range(0x20, 0x7F))
_SHORT_ESCAPES: Final = {8: b"b", 9: b"t", 10: b"n", 12: b"f", 13: b"r", 34: b'"', 92: b"\\"}
_SHORTEST_BASE64: Final = 6


def spellings(secret: memoryview) -> list[SecretBytes]:
    """The secret itself, then its other spellings, each once.

    They are: hexadecimal; base64 and base64url at each of the three alignments, without
    the characters that depend on neighbours; URL-encoded (RFC 3986, and with ``+``);
    escaped as in JSON (RFC 8259) and as in Python's ``repr``.
    """
    made = [SecretBytes.copy_of(secret)]
    makers: list[Callable[[memoryview], Iterator[int]]] = [_hex(_LOWER), _hex(_UPPER)]
    if len(secret) >= _SHORTEST_BASE64:
        makers += [_base64(table, at) for table in (_BASE64, _BASE64URL) for at in range(3)]
    if not _all_in(secret, _UNRESERVED):
        makers += [_url(_UPPER, plus=False), _url(_UPPER, plus=True), _url(_LOWER, plus=False)]
    if not _all_in(secret, _PRINTABLE - {34, 39, 92}):
        makers += [_json, _json_ascii, _repr, _repr_text]
    for make in makers:
        _add_unless_known(made, make(secret))
    return made


def _add_unless_known(made: list[SecretBytes], letters: Iterable[int]) -> None:
    spelled = _collect(letters)
    if any(len(other) == len(spelled) and other.equals(spelled) for other in made):
        spelled.close()
    else:
        made.append(spelled)


def _collect(letters: Iterable[int]) -> SecretBytes:
    """Gathers characters in locked memory, whose size is not known beforehand."""
    room = SecretBytes.allocate(256)
    view, used = room._mutable(), 0
    for letter in letters:
        if used == len(view):
            room, view = _grown(room, view)
        view[used] = letter
        used += 1
    exact = SecretBytes.copy_of(view[:used])
    view.release()
    room.close()
    return exact


def _grown(room: SecretBytes, view: memoryview) -> tuple[SecretBytes, memoryview]:
    larger = SecretBytes.allocate(len(view) * 4)
    wider = larger._mutable()
    wider[: len(view)] = view
    view.release()
    room.close()
    return larger, wider


def _all_in(secret: memoryview, allowed: frozenset[int]) -> bool:
    return all(byte in allowed for byte in secret)


def _hex(digits: bytes) -> Callable[[memoryview], Iterator[int]]:
    def make(secret: memoryview) -> Iterator[int]:
        for byte in secret:
            yield digits[byte >> 4]
            yield digits[byte & 15]

    return make


def _base64(table: bytes, offset: int) -> Callable[[memoryview], Iterator[int]]:
    """Base64 of the secret behind ``offset`` unknown bytes: what it alone determines."""

    def make(secret: memoryview) -> Iterator[int]:
        bits, held, skip = 0, 0, (0, 4, 2)[offset]
        for byte in secret:
            bits, held = (bits << 8 | byte) & 0xFFFF, held + 8
            if skip:
                held, skip = held - skip, 0
            while held >= 6:
                held -= 6
                yield table[bits >> held & 63]

    return make


def _url(digits: bytes, *, plus: bool) -> Callable[[memoryview], Iterator[int]]:
    def make(secret: memoryview) -> Iterator[int]:
        for byte in secret:
            if byte in _UNRESERVED:
                yield byte
            elif plus and byte == 0x20:
                yield 0x2B
            else:
                yield from (0x25, digits[byte >> 4], digits[byte & 15])

    return make


def _json(secret: memoryview) -> Iterator[int]:
    for byte in secret:
        if byte in _SHORT_ESCAPES:
            yield from (92, _SHORT_ESCAPES[byte][0])
        elif byte < 0x20:
            yield from (92, 117, 48, 48, _LOWER[byte >> 4], _LOWER[byte & 15])
        else:
            yield byte


def _json_ascii(secret: memoryview) -> Iterator[int]:
    for point in _code_points(secret):
        if point < 0x80:
            yield from _json(memoryview(bytes((point,))))
        elif point < 0x10000:
            yield from _u_escape(point)
        else:
            yield from _u_escape(0xD800 + (point - 0x10000 >> 10))
            yield from _u_escape(0xDC00 + (point - 0x10000 & 0x3FF))


def _u_escape(unit: int) -> Iterator[int]:
    yield from (92, 117)
    for shift in (12, 8, 4, 0):
        yield _LOWER[unit >> shift & 15]


def _repr(secret: memoryview) -> Iterator[int]:
    """As ``repr`` of bytes."""
    for byte in secret:
        yield from _repr_byte(byte, keep=byte in _PRINTABLE)


def _repr_text(secret: memoryview) -> Iterator[int]:
    """As ``repr`` of a string of printable characters."""
    for byte in secret:
        yield from _repr_byte(byte, keep=byte >= 0x80 or byte in _PRINTABLE)


def _repr_byte(byte: int, *, keep: bool) -> Iterator[int]:
    if byte == 92:
        yield from (92, 92)
    elif keep:
        yield byte
    elif byte in (9, 10, 13):
        yield from (92, _SHORT_ESCAPES[byte][0])
    else:
        yield from (92, 120, _LOWER[byte >> 4], _LOWER[byte & 15])


def _code_points(secret: memoryview) -> Iterator[int]:
    """Decodes UTF-8 by hand; of what is not UTF-8, the bytes."""
    at = 0
    while at < len(secret):
        first = secret[at]
        more = 3 if first >= 0xF0 else 2 if first >= 0xE0 else 1 if first >= 0xC0 else 0
        tail = secret[at + 1 : at + 1 + more]
        point = first if not more else first & (0x3F >> more)
        for byte in tail:
            point = point << 6 | byte & 0x3F
        yield point
        at += 1 + more
