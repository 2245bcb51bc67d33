"""Finds and replaces secrets in bytes, whole or cut in two, and says where none can be.

Guarantee: every occurrence of a needle is replaced by ``[redacted:NAME]``, also one whose
parts come in two pieces; the needles lie in locked memory until ``close``. The work grows
with the text and with the needles' bytes, whatever both consist of. No I/O.

A mark is a keyed hash of how a needle begins, the key in locked memory; a text that has the
needle in it has the mark among its ``marks``. A text may have one by accident: one line in a
hundred, where there are ten thousand needles.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

from apex_creds.crypto.memory import SecretBytes
from apex_creds.model import shown_key
from apex_creds.redaction.secret_parts import contents
from apex_creds.redaction.spellings import spellings

SHORTEST: Final = 4
"""Secrets of fewer bytes are not searched for: they would be found everywhere."""

LONG: Final = 1 << 16
"""Of so many bytes on, marks cost more than opening and searching."""

_WIDE: Final = 8
_PRIME: Final = (1 << 61) - 1
_MASKS: Final = {SHORTEST: (1 << 20) - 1, _WIDE: (1 << 28) - 1}
"""Fewer bits than are hashed: a mark alone does not say how a needle begins."""

_PIECE: Final = 1 << 22
"""Bytes searched at once: some milliseconds, in which no other thread runs."""
_MANY: Final = 256
"""From so many needles on, a short text is held against marks."""
_OFTEN: Final = 8
"""The marks of all needles cost about as much as so many searches without them."""
_TRIES: Final = 32


@dataclass(frozen=True, slots=True)
class _Needle:
    secret: SecretBytes
    name: str


@dataclass(frozen=True, slots=True)
class _Index:
    """Needles by their marks; what is searched for in short texts."""

    needles: list[_Needle]
    salt: SecretBytes
    by_mark: dict[int, list[_Needle]]


class Needles:
    """What to search for."""

    def __init__(self) -> None:
        self._needles: list[_Needle] = []
        self._index: _Index | None = None
        self._searches = 0

    @property
    def secrets(self) -> list[SecretBytes]:
        """The needles, longest first; they stay the property of this."""
        return [needle.secret for needle in self._needles]

    def add(self, name: str, part: memoryview) -> list[SecretBytes]:
        """Has ``part`` and what is secret in it searched for from now on, in all spellings.

        What is too short is passed over.

        Returns:
            The spellings, which stay the property of these needles.
        """
        made = spellings(part) if len(part) >= SHORTEST else []
        for inside, plain in contents(part):
            with inside, inside.view() as view:
                made += spellings(view, plain=plain) if len(view) >= SHORTEST else []
        more = [*self._needles, *(_Needle(secret, name) for secret in made)]
        # A new list: another thread may be searching with the old one.
        self._needles = sorted(more, key=lambda needle: len(needle.secret), reverse=True)
        return made

    def replace(self, data: bytes, found: set[str]) -> bytes:
        """``data`` without any needle; the same object if there is none.

        Args:
            data: What to search.
            found: Gets the names of the secrets that were in it.
        """
        if len(data) > _PIECE:
            return self._replace_in_pieces(data, found)
        for needle in self._possible(data):
            view = needle.secret.view()
            if data.find(view) >= 0:
                data = data.replace(view, f"[redacted:{shown_key(needle.name)}]".encode())
                found.add(needle.name)
        return data

    def _possible(self, data: bytes) -> Sequence[_Needle]:
        """The needles that may be in ``data``, longest first."""
        needles, index = self._needles, self._index
        if len(needles) < _MANY or len(data) * 2 > len(needles):
            return needles
        if index is None or index.needles is not needles:
            self._searches += 1
            if self._searches <= _OFTEN:
                return needles
            index = self._index = _index(needles)
        hits = marks(data, index.salt) & index.by_mark.keys()
        found = chain.from_iterable(index.by_mark[mark] for mark in hits)
        return sorted(found, key=lambda needle: len(needle.secret), reverse=True)

    def _replace_in_pieces(self, data: bytes, found: set[str]) -> bytes:
        """As ``replace``; other threads can run between the pieces."""
        clean, held, mine = [], b"", set[str]()
        for at in range(0, len(data), _PIECE // 2):
            held += data[at : at + _PIECE // 2]
            cut = self.searchable(held)
            clean.append(self.replace(held[:cut], mine))
            held = held[cut:]
        clean.append(self.replace(held, mine))
        found |= mine
        return b"".join(clean) if mine else data

    def pending(self, data: bytes, *, least: int = 1) -> int:
        """Where the longest end of ``data`` that could begin a needle starts.

        Args:
            data: What there is so far.
            least: Ends of fewer bytes don't count.
        """
        last = max(len(data) - least + 1, 0)
        starts = (_beginning(data, needle.secret.view(), last) for needle in self._needles)
        return min(starts, default=len(data))

    def searchable(self, data: bytes, *, least: int = 1) -> int:
        """How much of ``data`` can be searched before more of it comes.

        What follows could begin a needle, or is one with such a beginning in it: the lines
        of a secret are needles like the whole, and must not be found before it.
        """
        cut = self.pending(data, least=least)
        if not 0 < cut < len(data):
            return cut
        for each in self._needles:
            length = len(each.secret)
            around = max(cut - length + 1, 0), cut + length - 1
            if data.find(each.secret.view(), *around) >= 0:
                return self._before(data, cut)
        return cut

    def _before(self, data: bytes, cut: int) -> int:
        """``cut``, or where what ``replace`` finds across it begins."""
        start, end = 0, len(data)  # around the cut, between what longer needles have
        for needle in self._needles:
            view = needle.secret.view()
            at = data.find(view, start, end)
            while 0 <= at < cut:
                if at + len(view) > cut:
                    return at
                start = at + len(view)
                at = data.find(view, start, end)
            end = at if at >= 0 else end
        return cut

    def close(self) -> None:
        """Wipes the needles; idempotent."""
        while self._needles:
            self._needles.pop().secret.close()
        index, self._index = self._index, None
        if index is not None:
            index.salt.close()


def _index(needles: list[_Needle]) -> _Index:
    made = _Index(needles, SecretBytes.random(8), {})
    for needle in needles:
        mark = mark_of(needle.secret.view(), made.salt)
        made.by_mark.setdefault(mark, []).append(needle)
    return made


def _beginning(data: bytes, view: memoryview, last: int) -> int:
    """Where an end of ``data`` begins that ``view`` begins with; ``len(data)``: nowhere."""
    start = max(len(data) - len(view) + 1, 0)
    with view[:SHORTEST] as first:
        for _ in range(_TRIES):
            at = data.find(first, start, last + SHORTEST - 1)
            if at < 0:
                break
            if _ends_with(data, view, at):
                return at
            start = at + 1
        else:  # it repeats itself, or what it begins with is everywhere
            return _overlap(data, view, start, last)
    ends = range(max(start, len(data) - SHORTEST + 1), last)
    return next((at for at in ends if _ends_with(data, view, at)), len(data))


def _ends_with(data: bytes, view: memoryview, at: int) -> bool:
    with view[: len(data) - at] as prefix:
        return data.endswith(prefix)


def _overlap(data: bytes, view: memoryview, start: int, last: int) -> int:
    """As ``_beginning``, from ``start`` on, in linear time (Knuth, Morris and Pratt)."""
    borders, size = array("I", [0]), 0
    for byte in view[1:]:
        while size and view[size] != byte:
            size = borders[size - 1]
        size += view[size] == byte
        borders.append(size)
    size = 0
    for byte in data[start:]:
        while size and (size == len(view) or view[size] != byte):
            size = borders[size - 1]
        size += view[size] == byte
    at = len(data) - size
    return at if at < last else len(data)


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
