"""Undoes the escapes of URLs, JSON, HTML and the like in a text, and says where each byte was.

A text in which one encoder has escaped these bytes and another those, or one an encoder that
nobody knows here has escaped, is as good as the text. No I/O.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Collection
from functools import lru_cache
from typing import Final

LEADS: Final = (b"%", b"\\", b"&")
"""What escapes begin with."""
DEPTH: Final = 3
"""Escapes within escapes."""
LONGEST: Final = 24
"""Bytes that one character may take."""
ENDS: Final = frozenset(b"%\\&#;/\"'0123456789abcdefABCDEFuxXnrtlgmpqos")
"""What an escape, or the beginning of one, can end with."""
# Each way begins with another letter, so that what has none is passed over at once.
_ESCAPE: Final = re.compile(
    rb"%(?:25)*([0-9A-Fa-f]{2})|\\\\*x([0-9A-Fa-f]{2})"
    rb"|%(?:25)*u([0-9A-Fa-f]{4})|\\\\*u([0-9A-Fa-f]{4})"
    rb"|&(?:amp;)*#[xX]0*([0-9A-Fa-f]{1,6});?|&(?:amp;)*#0*([0-9]{1,7});?"
    rb"|&(?:amp;)*(amp|lt|gt|quot|apos);|\\\\*([\"'/\\bfnrt])"
)
_BYTE, _POINT, _DECIMAL, _ENTITY = 2, 5, 6, 7  # the last group of each kind
_BEGUN: Final = re.compile(
    rb"(?:%(?:25)*(?:2|u?[0-9A-Fa-f]{0,3})|\\\\*(?:u[0-9A-Fa-f]{0,3}|x[0-9A-Fa-f]?)?"
    rb"|&(?:amp;)*(?:#[xX]?[0-9A-Fa-f]{0,8}|[a-z]{0,4}))\Z"
)
_ENTITIES: Final = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_SHORT: Final = dict(zip(b"bfnrt", b"\b\f\n\r\t", strict=True))
_LAST_POINT: Final = 0x10FFFF


class Unescaped:
    """A text without one level of its escapes.

    Where its bytes were is only computed if it is asked for: most texts have no secret.

    Attributes:
        text: Without them.
    """

    __slots__ = ("_data", "_pieces", "text")

    def __init__(self, data: bytes, text: bytes) -> None:
        self._data = data
        self._pieces: tuple[list[int], list[int]] | None = None
        self.text = text

    def where(self, at: int) -> int:
        """Where in the text with escapes a byte, or the end, was."""
        if self._pieces is None:
            self._pieces = self._locate()
        starts, places = self._pieces
        piece = bisect_right(starts, at) - 1
        within = at - starts[piece]
        if piece % 2 and within:  # in the middle of an escape's bytes
            return places[piece + 1]
        return places[piece] + within

    def _locate(self) -> tuple[list[int], list[int]]:
        """Where pieces that were as they are, and in turn what one escape means, begin.

        Returns:
            In the text without escapes, and in the one with them.
        """
        starts: list[int] = []
        places: list[int] = []
        at = size = 0
        for match in _ESCAPE.finditer(self._data):
            start, end = match.span()
            starts += (size, size + start - at)
            places += (at, start)
            size += start - at + len(_meaning(match[0]))
            at = end
        return [*starts, size], [*places, at]


def unescaped(data: bytes) -> Unescaped | None:
    """Undoes one level of escapes; None: there are none."""
    text, count = _ESCAPE.subn(lambda match: _meaning(match[0]), data)
    return Unescaped(data, text) if count else None


def begun(data: bytes) -> int:
    """Where an escape begins that is not all there; ``len(data)``: none does."""
    match = _BEGUN.search(data, max(len(data) - LONGEST, 0))
    return len(data) if match is None else match.start()


class Marks:
    """Finds out, soon, whether a text could have a secret in it with some bytes escaped.

    Args:
        held: The bytes of the secret.
    """

    __slots__ = ("_meant", "_patterns")

    def __init__(self, held: Collection[int]) -> None:
        # Base64 has two that are escaped; what is escaped again shows another lead.
        self._meant = frozenset(held) | frozenset(b"+/%\\&")
        named = b"|".join(n for n, meant in _ENTITIES.items() if meant[0] in held) or b"lt;lt"
        short = b"".join(
            bytes([each]) for each in b"\"'/bfnrt" if _SHORT.get(each, each) in self._meant
        )
        high, wide = (
            (b"[0-7]", b"00") if max(held, default=0) < 0x80 else (b"[0-9A-Fa-f]", b"..")
        )
        code = high + b"[0-9A-Fa-f]"
        self._patterns = [
            (b"%", re.compile(b"%%(?:25)*(?:%b|u%b%b)" % (code, wide, code))),
            (b"\\", re.compile(rb"\\(?:u%b%b|x%b|[%b])" % (wide, code, code, short))),
            (b"&", re.compile(b"&(?:amp;)*(?:#[xX]?[0-9A-Fa-f]{1,8};?|(?:%b);)" % named)),
        ]

    def __call__(self, data: bytes) -> bool:
        """Whether an escape in it means a byte of the secret, or may be within another."""
        for lead, pattern in self._patterns:
            if data.find(lead) >= 0:
                for escape in set(pattern.findall(data)):
                    if not self._meant.isdisjoint(_meaning(escape)):
                        return True
        return False


@lru_cache(maxsize=1024)
def _meaning(escape: bytes) -> bytes:
    match = _ESCAPE.match(escape)
    if match is None:
        return escape
    group = match.lastindex or 0
    text = match[group]
    if group <= _BYTE:
        return bytes([int(text, 16)])
    if group <= _DECIMAL:
        point = min(int(text, 16 if group <= _POINT else 10), _LAST_POINT)
        return chr(point).encode("utf-8", "surrogatepass")
    return _ENTITIES[text] if group == _ENTITY else bytes([_SHORT.get(text[0], text[0])])
