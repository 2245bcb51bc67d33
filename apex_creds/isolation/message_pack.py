"""What a large message of MessagePack holds, seen before anything is made of it.

Guarantee: one look at each value, whatever is wrapped or nested; nothing is made, so that it
takes no memory. That it is well formed is for who decodes it.
"""

from __future__ import annotations

import re
from typing import Final

# What a byte begins in MessagePack, with its size, or that of its length.
_NUMBERS: Final = {
    **dict.fromkeys((0xCC, 0xD0), 2),
    **dict.fromkeys((0xCD, 0xD1), 3),
    **dict.fromkeys((0xCA, 0xCE, 0xD2), 5),
    **dict.fromkeys((0xCB, 0xCF, 0xD3), 9),
}
_WRAPPED: Final = dict(zip(range(0xD4, 0xD9), (3, 4, 6, 10, 18), strict=True))
_SIZED: Final = {
    **dict(zip((0xC4, 0xC5, 0xC6), (1, 2, 4), strict=True)),
    **dict(zip((0xD9, 0xDA, 0xDB), (1, 2, 4), strict=True)),
}
_WRAPPED_SIZED: Final = dict(zip((0xC7, 0xC8, 0xC9), (1, 2, 4), strict=True))
"""One more byte says what is wrapped."""
_TEXT_KINDS: Final = frozenset({*range(0xA0, 0xC0), 0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB})
_RUNS: Final = {
    1: re.compile(rb"[\x00-\x7f\xc0-\xc3\xe0-\xff]+"),
    5: re.compile(rb"(?:[\xca\xce\xd2].{4})+", re.DOTALL),
    9: re.compile(rb"(?:[\xcb\xcf\xd3].{8})+", re.DOTALL),
}
"""Numbers of one size, which are passed over together."""


def containers_in(data: bytes | memoryview) -> int:
    """How many there are, with what is wrapped, but not in that.

    Raises:
        ValueError: A dictionary has a key that is no text.
    """
    at, count, left, keyed = 0, 0, 1, False
    outer: list[tuple[int, bool]] = []
    while at < len(data):
        while left == 0:
            if not outer:
                return count
            left, keyed = outer.pop()
        kind = data[at]
        if keyed and left % 2 == 0 and kind not in _TEXT_KINDS:
            raise ValueError("A key is no text.")
        left -= 1
        if 0x80 <= kind < 0xA0 or 0xDC <= kind <= 0xDF:
            wide = 0 if kind < 0xA0 else 4 if kind & 1 else 2
            items = kind & 0xF if wide == 0 else _number(data, at + 1, wide)
            outer.append((left, keyed))
            keyed = kind < 0x90 or kind >= 0xDE
            left, at, count = items * (2 if keyed else 1), at + 1 + wide, count + 1
            continue
        size = _size(data, at, kind)
        count += kind in _WRAPPED or kind in _WRAPPED_SIZED
        at += size
        if left and not keyed and size in _RUNS:
            run = _RUNS[size].match(data, at, at + size * left)
            if run is not None:
                left, at = left - (run.end() - at) // size, run.end()
    return count


def _size(data: bytes | memoryview, at: int, kind: int) -> int:
    """Of what begins there, and is no container."""
    if 0xA0 <= kind < 0xC0:
        return 1 + (kind & 0x1F)
    if kind in _SIZED:
        return 1 + _SIZED[kind] + _number(data, at + 1, _SIZED[kind])
    if kind in _WRAPPED_SIZED:
        return 2 + _WRAPPED_SIZED[kind] + _number(data, at + 1, _WRAPPED_SIZED[kind])
    return _NUMBERS.get(kind) or _WRAPPED.get(kind, 1)


def _number(data: bytes | memoryview, at: int, wide: int) -> int:
    return int.from_bytes(data[at : at + wide], "big")
