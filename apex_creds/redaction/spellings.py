"""The spellings under which a secret may show up in text, built in locked memory.

Guarantee: no Python ``bytes`` or ``str`` of the secret or of a spelling is made; each
spelling is a ``SecretBytes`` that the caller closes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
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
_MARKUP: Final = frozenset(b"&<>")
_ESCAPED: Final = frozenset(b"\"'\\/&<>")
"""What is printable, and escaped by one encoder or another."""
_ENTITIES: Final = {38: b"&amp;", 60: b"&lt;", 62: b"&gt;"}
_HTML_QUOTES: Final = (
    (b"&#x27;", b"&quot;"),  # Python
    (b"&#39;", b"&quot;"),  # most others
    (b"&#39;", b"&#34;"),  # Go, MarkupSafe
    (b"'", b'"'),
)
_NO_QUOTE: Final[frozenset[int]] = frozenset()

LONG: Final = 512


def _native(pair: bytes) -> int:
    return int.from_bytes(pair, sys.byteorder)


def _all_pairs(table: bytes) -> Sequence[int]:
    return [_native(bytes([a, b])) for a in table for b in table]


_PAIRS: Final = _all_pairs(_BASE64)
_PAIRS_URL: Final = _all_pairs(_BASE64URL)
Maker = Callable[[memoryview], Iterator[int]]
"""Spells a secret, character by character."""


def spellings(secret: memoryview, *, plain: bool = False) -> list[SecretBytes]:
    """The secret itself, then its other spellings, each once.

    They are: hexadecimal; base64 and base64url at each of the three alignments, without
    the characters that depend on neighbours, and base64 of it alone in lines of 76 and 64;
    URL-encoded (as RFC 3986, urllib, JavaScript, requests and httpx do, in either case, and
    with every byte escaped); escaped as in JSON (RFC 8259, in either case, also with the
    escapes that PHP, Go and template engines add, with every character escaped, and JSON
    inside of JSON), as in HTML, and as in Python's ``repr`` and ``ascii``, in either quotes,
    in upper and in lower case; in UTF-16.

    Of more than ``LONG`` bytes (a PEM key, a document, whose parts are searched for as well,
    see ``contents``) the rare ones are left out: each costs about a microsecond a byte.

    Args:
        secret: What is spelled.
        plain: Leaves out all but it and the usual escapes of JSON.
    """
    made = [SecretBytes.copy_of(secret)]
    if plain:
        for slash in (False, True):
            _add_unless_known(made, collect(_json(digits=None, slash=slash)(secret)))
        return made
    for digits in (_LOWER, _UPPER):
        _add_unless_known(made, _hex(secret, digits))
    if len(secret) >= _SHORTEST_BASE64:
        for pairs in (_PAIRS, _PAIRS_URL):
            for offset in range(3):
                _add_unless_known(made, _base64(secret, pairs, offset))
        with _base64(secret, _PAIRS, 0) as whole, whole.view() as text:
            for width, end in _WRAPS:
                _add_unless_known(made, _in_lines(text, width, end))
    for make in _makers(secret):
        _add_unless_known(made, collect(make(secret)))
    return made


def encoded(secret: memoryview) -> SecretBytes:
    """Base64 of it (at least two bytes), without what fills it up at its end."""
    return _base64(secret, _PAIRS, 0)


def _makers(secret: memoryview) -> list[Maker]:
    """All forms, but for those that every secret has; of a long one those most used."""
    if len(secret) > LONG:
        urls = [_url(_UPPER, keep=keep) for keep in _KEPT[:2]]
        usual = [*urls, _json(digits=None), _json(digits=_LOWER)]
        return [] if _all_in(secret, _UNRESERVED) else usual
    makers: list[Maker] = [
        _case(str.upper), _case(str.lower), _utf_16(little=True),
        _utf_16(little=False), _every_u(_LOWER), _every_u(_UPPER), _every_percent(_LOWER),
        _every_percent(_UPPER),
    ]  # fmt: skip
    if not _all_in(secret, _UNRESERVED):
        makers += _urls(secret)
    if not _all_in(secret, _PRINTABLE - _ESCAPED):
        makers += _jsons(secret)
        makers += [_html(*quotes) for quotes in _HTML_QUOTES]
        makers += [
            _repr(text=text, quote=quote, shown=shown)
            for text, shown in ((False, False), (True, True), (True, False))
            for quote in (_NO_QUOTE, _QUOTE)
        ]
    return makers


def _jsons(secret: memoryview) -> list[Maker]:
    """One for each set of escapes that encoders of JSON use; then inside of another JSON."""
    held = frozenset(secret)
    slashes = (False, True) if 47 in held else (False,)
    markup = [_NO_QUOTE, *(extra for extra in (_MARKUP, _MARKUP | {39}) if held & extra)]
    once = [
        _json(digits=digits, slash=slash, also=also)
        for digits in (None, _LOWER, _UPPER)
        for slash in slashes
        for also in markup
    ]
    plain = _json(digits=None)
    twice = [_escaped_again(maker) for maker in (plain, _json(digits=_LOWER))]
    return [*once, *twice]


def _urls(secret: memoryview) -> list[Maker]:
    """One for each way in which these bytes come out differently; both cases of digits."""
    others = frozenset(secret) - _UNRESERVED
    kept = dict.fromkeys(others & keep for keep in _KEPT)
    forms = [(keep, False) for keep in kept]
    if 0x20 in others:
        forms += [(frozenset(), True)]
    makers = []
    for keep, plus in forms:
        letters = any(byte & 15 > 9 or byte >> 4 > 9 for byte in others - keep)
        cases = (_UPPER, _LOWER) if letters else (_UPPER,)
        makers += [_url(digits, keep=keep, plus=plus) for digits in cases]
    return makers


def _add_unless_known(made: list[SecretBytes], spelled: SecretBytes) -> None:
    if any(len(other) == len(spelled) and other.equals(spelled) for other in made):
        spelled.close()
    else:
        made.append(spelled)


def collect(letters: Iterable[int]) -> SecretBytes:
    """Gathers bytes in locked memory, whose size is not known beforehand."""
    room = SecretBytes.allocate(256)
    view, used = room._mutable(), 0
    for letter in letters:
        if used == len(view):
            larger = SecretBytes.allocate(used * 4)
            wider = larger._mutable()
            wider[:used] = view
            view.release()
            room.close()
            room, view = larger, wider
        view[used] = letter
        used += 1
    exact = SecretBytes.copy_of(view[:used])
    view.release()
    room.close()
    return exact


def _all_in(secret: memoryview, allowed: frozenset[int]) -> bool:
    return all(byte in allowed for byte in secret)


def _hex(secret: memoryview, digits: bytes) -> SecretBytes:
    spelled = SecretBytes.allocate(2 * len(secret))
    pairs = [_native(bytes([digits[byte >> 4], digits[byte & 15]])) for byte in range(256)]
    with spelled._mutable() as target, target.cast("H") as wide:
        for at, byte in enumerate(secret):
            wide[at] = pairs[byte]
    return spelled


def _base64(secret: memoryview, pairs: Sequence[int], offset: int) -> SecretBytes:
    """Base64 of the secret behind ``offset`` unknown bytes: what it alone determines.

    Args:
        secret: At least two bytes.
        pairs: Two characters for each 12 bits, as a number in native order.
        offset: 0, 1 or 2.
    """
    head = (0, 2, 1)[offset]  # bytes up to the next three; they make as many characters
    threes, rest = divmod(len(secret) - head, 3)
    end = head + 4 * threes
    spelled = SecretBytes.allocate(end + rest)
    with spelled._mutable() as target:
        if offset == 1:
            target[:2] = _two(pairs[(secret[0] << 8 | secret[1]) & 0xFFF])
        elif offset == 2:
            target[0] = _two(pairs[secret[0] & 0x3F])[1]
        with target[head:end] as middle, middle.cast("H") as wide:
            for at in range(threes):
                here = head + 3 * at
                bits = secret[here] << 16 | secret[here + 1] << 8 | secret[here + 2]
                wide[2 * at] = pairs[bits >> 12]
                wide[2 * at + 1] = pairs[bits & 0xFFF]
        if rest == 1:
            target[end] = _two(pairs[secret[-1] << 4])[0]
        elif rest == 2:
            target[end:] = _two(pairs[secret[-2] << 4 | secret[-1] >> 4])
    return spelled


def _two(pair: int) -> bytes:
    return pair.to_bytes(2, sys.byteorder)


def _in_lines(text: memoryview, width: int, end: bytes) -> SecretBytes:
    """Text in lines; as MIME (76) and PEM (64) have base64."""
    breaks = max(len(text) - 1, 0) // width
    spelled = SecretBytes.allocate(len(text) + breaks * len(end))
    with spelled._mutable() as target:
        for number in range(breaks + 1):
            line = text[number * width : (number + 1) * width]
            start = number * (width + len(end))
            target[start : start + len(line)] = line
            if number < breaks:
                target[start + width : start + width + len(end)] = end
    return spelled


def _url(digits: bytes, *, plus: bool = False, keep: frozenset[int] = frozenset()) -> Maker:
    def make(secret: memoryview) -> Iterator[int]:
        for byte in secret:
            if byte in _UNRESERVED or byte in keep:
                yield byte
            elif plus and byte == 0x20:
                yield 0x2B
            else:
                yield from (0x25, digits[byte >> 4], digits[byte & 15])

    return make


def _json(
    *, digits: bytes | None, slash: bool = False, also: frozenset[int] = _NO_QUOTE
) -> Maker:
    """As a string of JSON; with ``digits``: other characters than ASCII are escaped too."""

    def make(secret: memoryview) -> Iterator[int]:
        for point, raw in _characters(secret):
            if point in _SHORT_ESCAPES:
                yield from (92, _SHORT_ESCAPES[point][0])
            elif point == 47 and slash:
                yield from (92, 47)
            elif point < 0x20 or point in also or (digits is not None and point >= 0x7F):
                yield from _u_escape(point, digits or _LOWER)
            else:
                yield from raw

    return make


def _escaped_again(maker: Maker) -> Maker:
    """What is escaped, inside of a string whose backslashes and quotes are escaped."""

    def make(secret: memoryview) -> Iterator[int]:
        for letter in maker(secret):
            if letter in (34, 92):
                yield 92
            yield letter

    return make


def _html(single: bytes, double: bytes) -> Maker:
    escapes = {**_ENTITIES, 39: single, 34: double}

    def make(secret: memoryview) -> Iterator[int]:
        for byte in secret:
            yield from escapes.get(byte) or (byte,)

    return make


def _case(change: Callable[[str], str]) -> Maker:
    """All letters in one case; a string of one character says nothing of the secret."""

    def make(secret: memoryview) -> Iterator[int]:
        for point, raw in _characters(secret):
            known = point < 0x80 or (len(raw) > 1 and chr(point).isalpha())
            yield from change(chr(point)).encode() if known else raw

    return make


def _utf_16(*, little: bool) -> Maker:
    def make(secret: memoryview) -> Iterator[int]:
        for point, _ in _characters(secret):
            for unit in _units(point):
                yield from (unit & 255, unit >> 8) if little else (unit >> 8, unit & 255)

    return make


def _every_u(digits: bytes) -> Maker:
    def make(secret: memoryview) -> Iterator[int]:
        for point, _ in _characters(secret):
            yield from _u_escape(point, digits)

    return make


def _every_percent(digits: bytes) -> Maker:
    def make(secret: memoryview) -> Iterator[int]:
        for byte in secret:
            yield from (0x25, digits[byte >> 4], digits[byte & 15])

    return make


def _units(point: int) -> tuple[int, ...]:
    """A character in UTF-16."""
    if point < 0x10000:
        return (point,)
    return 0xD800 + (point - 0x10000 >> 10), 0xDC00 + (point - 0x10000 & 0x3FF)


def _u_escape(point: int, digits: bytes) -> Iterator[int]:
    for unit in _units(point):
        yield from (92, 117)
        for shift in (12, 8, 4, 0):
            yield digits[unit >> shift & 15]


def _repr(*, text: bool, quote: frozenset[int], shown: bool) -> Maker:
    """As ``repr`` of bytes, or of text; with the quote that it puts around escaped.

    Unless it is ``shown``, text is as ``ascii`` has it.
    """

    def make(secret: memoryview) -> Iterator[int]:
        single = ((byte, secret[at : at + 1]) for at, byte in enumerate(secret))
        for point, raw in _characters(secret) if text else single:
            if point == 92 or point in quote:
                yield from (92, point)
            elif point in (9, 10, 13):
                yield from (92, _SHORT_ESCAPES[point][0])
            # A string of one character says nothing of the secret that it came from.
            elif point in _PRINTABLE or (shown and point >= 0x80 and chr(point).isprintable()):
                yield from raw
            else:  # ``\xNN``, ``\uNNNN`` or ``\UNNNNNNNN``
                letter, size = (120, 2) if point < 0x100 else (117, 4)
                letter, size = (letter, size) if point < 0x10000 else (85, 8)
                yield from (92, letter)
                for shift in range(4 * (size - 1), -1, -4):
                    yield _LOWER[point >> shift & 15]

    return make


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
