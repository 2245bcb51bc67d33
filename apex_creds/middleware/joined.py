"""Texts that come in pieces inside of structured chunks, such as ``{"delta": "…"}``.

Guarantee: for chunks of the same shape (dictionaries and lists, with text at the same
places), a secret that is split over what they have at one place is replaced in the first
of them and taken out of the others. A chunk is kept back only while its text could be the
beginning of a secret; order and number of chunks stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from apex_creds.middleware.redact import Redactor

_DEPTH: Final = 20
_MANY: Final = 4096

Path = tuple[object, ...]
Texts = dict[Path, str]


class Joined:
    """The chunks that are kept back, of one shape."""

    __slots__ = ("_chunks", "_redactor", "_texts")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._chunks: list[object] = []
        self._texts: list[Texts] = []

    def takes(self, chunk: object) -> bool:
        """Whether it is a chunk of the shape of those that are kept back."""
        if type(chunk) not in (dict, list):
            return False
        return not self._texts or texts_of(chunk).keys() == self._texts[0].keys()

    def feed(self, chunk: object) -> list[object]:
        """Which chunks can be passed on now, their texts without secrets."""
        self._chunks.append(chunk)
        self._texts.append(texts_of(chunk))
        kept = len(self._chunks)
        for path in self._texts[0]:
            kept = min(kept, self._clean(path))
        return self._pass_on(kept if len(self._chunks) <= _MANY else len(self._chunks))

    def flush(self) -> list[object]:
        """All that is kept back."""
        return self._pass_on(len(self._chunks))

    def _pass_on(self, count: int) -> list[object]:
        passed = [
            with_texts(chunk, texts)
            for chunk, texts in zip(self._chunks[:count], self._texts[:count], strict=True)
        ]
        del self._chunks[:count], self._texts[:count]
        return passed

    def _clean(self, path: Path) -> int:
        """Redacts what is at one place; returns which chunk has to be kept for it."""
        pieces = [texts[path] for texts in self._texts]
        whole = "".join(pieces)
        clean = self._redactor.text(whole, where="chunk")
        if clean != whole:
            pieces = [clean, *([""] * (len(pieces) - 1))]
            for texts, piece in zip(self._texts, pieces, strict=True):
                texts[path] = piece
        data = clean.encode("utf-8", "surrogatepass")
        start, end = self._redactor.needles().held_back(data), 0
        if start == len(data):
            return len(pieces)
        for at, piece in enumerate(pieces):
            end += len(piece.encode("utf-8", "surrogatepass"))
            if start < end:
                return at
        return len(pieces)


def texts_of(chunk: object) -> Texts:
    """The texts in it, by where they are."""
    return dict(_walk(chunk, (), _DEPTH))


def _walk(value: object, path: Path, depth: int) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif depth and type(value) in (dict, list):
        assert isinstance(value, dict | list)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _walk(item, (*path, key), depth - 1)


def with_texts(value: object, texts: Texts, path: Path = ()) -> object:
    """A chunk with these texts; the same object if they are its own."""
    if isinstance(value, str):
        text = texts.get(path, value)
        return value if text == value else text
    if len(path) >= _DEPTH:
        return value
    if type(value) is dict:
        pairs = {key: with_texts(item, texts, (*path, key)) for key, item in value.items()}
        return value if all(pairs[key] is value[key] for key in value) else pairs
    if type(value) is list:
        items = [with_texts(item, texts, (*path, at)) for at, item in enumerate(value)]
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    return value
