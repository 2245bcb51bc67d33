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
_URL_QUERY: Final = _PRINTABLE - frozenset(b' "#<>')
_URL_PATH: Final = _URL_QUERY - frozenset(b"?`{}")
_KEPT: Final = (
    _UNRESERVED,  # RFC 3986; urllib's quote(…, safe="")
    _UNRESERVED | frozenset(b"/"),  # urllib's quote
    _UNRESERVED | frozenset(b"!*'()"),  # encodeURIComponent
    _UNRESERVED | frozenset(b";,/?:@&=+$!*'()#"),  # encodeURI
    _UNRESERVED | frozenset(b"!#$%&'()*+,/:;=?@[]"),  # requests
    _PRINTABLE - frozenset(b' "<>`'),  # a fragment by WHATWG, as httpx; then its query,
    _URL_QUERY,
    _URL_PATH,  # path,
    _URL_PATH - frozenset(b"/:;=@[\\]^|"),  # password,
    _URL_PATH - frozenset(b"/;=@[\\]^|"),  # and both with the user's name
)
"""What is left as it is in URLs."""
_SHORT_ESCAPES: Final = {8: b"b", 9: b"t", 10: b"n", 12: b"f", 13: b"r", 34: b'"', 92: b"\\"}
_SHORTEST_BASE64: Final = 4
_WRAPS: Final = ((76, b"\n"), (76, b"\r\n"), (64, b"\n"), (64, b"\r\n"))
_LAST_POINT: Final = 0x10FFFF
_QUOTE: Final = frozenset({39})
_NO_QUOTE: Final[frozenset[int]] = frozenset()


def spellings(secret: memoryview) -> list[SecretBytes]:
    """The secret itself, then its other spellings, each once.

    They are: hexadecimal; base64 and base64url at each of the three alignments, without
    the characters that depend on neighbours, and base64 of it alone in lines of 76 and 64;
    URL-encoded (as RFC 3986, urllib, JavaScript, requests and httpx do, in either case);
    escaped as in JSON (RFC 8259, in either case) and as in Python's ``repr`` and
    ``ascii``, in either quotes.
    """
    made = [SecretBytes.copy_of(secret)]
    makers: list[Callable[[memoryview], Iterator[int]]] = [_hex(_LOWER), _hex(_UPPER)]
    if len(secret) >= _SHORTEST_BASE64:
        makers += [_base64(table, at) for table in (_BASE64, _BASE64URL) for at in range(3)]
        makers += [_lines(w, end) for w, end in _WRAPS if len(secret) * 4 > w * 3]
    if not _all_in(secret, _UNRESERVED):
        makers += _urls(secret)
    if not _all_in(secret, _PRINTABLE - {34, 39, 92}):
        makers += [_json, _json_ascii(_LOWER), _json_ascii(_UPPER)]
        makers += [
            _repr(text=text, quote=quote, shown=shown)
            for text, shown in ((False, False), (True, True), (True, False))
            for quote in (_NO_QUOTE, _QUOTE)
        ]
    for make in makers:
        _add_unless_known(made, make(secret))
    return made


def _urls(secret: memoryview) -> list[Callable[[memoryview], Iterator[int]]]:
    """One for each way in which these bytes come out differently; both cases of digits."""
    others = frozenset(secret) - _UNRESERVED
    kept = dict.fromkeys(others & keep for keep in _KEPT)
    forms = [(keep, False) for keep in kept]
    if 0x20 in others:
        forms += [(frozenset(), True)]
    return [
        _url(digits, keep=keep, plus=plus)
        for keep, plus in forms
        for digits in ((_UPPER, _LOWER) if _has_letters(others - keep) else (_UPPER,))
    ]


def _has_letters(escaped: frozenset[int]) -> bool:
    """Whether hexadecimal digits of these have two cases."""
    return any(byte & 15 > 9 or byte >> 4 > 9 for byte in escaped)


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


def _lines(width: int, end: bytes) -> Callable[[memoryview], Iterator[int]]:
    """Base64 of the secret alone, in lines; as MIME (76) and PEM (64) have it."""

    def make(secret: memoryview) -> Iterator[int]:
        for at, letter in enumerate(_base64(_BASE64, 0)(secret)):
            if at and at % width == 0:
                yield from end
            yield letter

    return make


def _url(
    digits: bytes, *, plus: bool = False, keep: frozenset[int] = frozenset()
) -> Callable[[memoryview], Iterator[int]]:
    def make(secret: memoryview) -> Iterator[int]:
        for byte in secret:
            if byte in _UNRESERVED or byte in keep:
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


def _json_ascii(digits: bytes) -> Callable[[memoryview], Iterator[int]]:
    def make(secret: memoryview) -> Iterator[int]:
        for point, raw in _characters(secret):
            if point in _SHORT_ESCAPES or 0x20 <= point < 0x7F:
                yield from _json(raw)
            elif point < 0x10000:
                yield from _u_escape(point, digits)
            else:
                yield from _u_escape(0xD800 + (point - 0x10000 >> 10), digits)
                yield from _u_escape(0xDC00 + (point - 0x10000 & 0x3FF), digits)

    return make


def _u_escape(unit: int, digits: bytes) -> Iterator[int]:
    yield from (92, 117)
    for shift in (12, 8, 4, 0):
        yield digits[unit >> shift & 15]


def _repr(
    *, text: bool, quote: frozenset[int], shown: bool
) -> Callable[[memoryview], Iterator[int]]:
    """As ``repr`` of bytes, or of text; with the quote that it puts around escaped.

    Unless it is ``shown``, text is as ``ascii`` has it.
    """

    def make(secret: memoryview) -> Iterator[int]:
        for point, raw in _characters(secret) if text else _bytes(secret):
            if point == 92 or point in quote:
                yield from (92, point)
            elif point in (9, 10, 13):
                yield from (92, _SHORT_ESCAPES[point][0])
            elif point in _PRINTABLE or (shown and _is_shown(point)):
                yield from raw
            else:
                yield from _number(point)

    return make


def _is_shown(point: int) -> bool:
    # A string of one character says nothing of the secret that it came from.
    return point >= 0x80 and chr(point).isprintable()


def _number(point: int) -> Iterator[int]:
    r"""``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``."""
    letter, digits = (120, 2) if point < 0x100 else (117, 4) if point < 0x10000 else (85, 8)
    yield from (92, letter)
    for shift in range(4 * (digits - 1), -1, -4):
        yield _LOWER[point >> shift & 15]


def _bytes(secret: memoryview) -> Iterator[tuple[int, memoryview]]:
    for at in range(len(secret)):
        yield secret[at], secret[at : at + 1]


def _characters(secret: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Decodes UTF-8 by hand: code points and where they lie; of other bytes, themselves."""
    at = 0
    while at < len(secret):
        first = secret[at]
        more = 3 if first >= 0xF0 else 2 if first >= 0xE0 else 1 if first >= 0xC0 else 0
        raw = secret[at : at + 1 + more]
        point = first if not more else first & (0x3F >> more)
        for byte in raw[1:]:
            point = point << 6 | byte & 0x3F
        yield min(point, _LAST_POINT), raw
        at += 1 + more
