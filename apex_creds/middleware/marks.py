"""Marks: which of many needles may be in a text, without a look at any of them.

Guarantee: a mark is a keyed hash of how a needle begins, the key in locked memory; a text
that has the needle in it has the mark among its ``marks``. A text may have one by accident:
one line in a hundred, where there are ten thousand needles.
"""

from __future__ import annotations

from typing import Final

from apex_creds.crypto.memory import SecretBytes

SHORTEST: Final = 4
"""Secrets of fewer bytes are not looked for: they would be found everywhere."""

LONG: Final = 1 << 16
"""Of so many bytes on, marks cost more than opening and searching."""

_WIDE: Final = 8
_PRIME: Final = (1 << 61) - 1
_MASKS: Final = {SHORTEST: (1 << 20) - 1, _WIDE: (1 << 28) - 1}
"""Fewer bits than are hashed: a mark alone does not say how a needle begins."""


def mark_of(needle: memoryview, salt: SecretBytes) -> int:
    """The mark of a needle of ``SHORTEST`` bytes or more."""
    width = _WIDE if len(needle) >= _WIDE else SHORTEST
    with needle[:width] as beginning:
        return _mark(int.from_bytes(beginning, "big"), width, _factor(salt))


def marks(data: bytes, salt: SecretBytes) -> set[int]:
    """The mark of each needle that could be in ``data``."""
    factor, found = _factor(salt), set()
    for width in _MASKS:
        window, mask = 0, (1 << 8 * width) - 1
        for byte in data[: width - 1]:
            window = window << 8 | byte
        for byte in data[width - 1 :]:
            window = (window << 8 | byte) & mask
            found.add(_mark(window, width, factor))
    return found


def _mark(window: int, width: int, factor: int) -> int:
    return (window * factor % _PRIME & _MASKS[width]) * 2 + (width == _WIDE)


def _factor(salt: SecretBytes) -> int:
    return int.from_bytes(salt.view(), "big") | 1
