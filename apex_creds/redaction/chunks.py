"""Texts that come in pieces inside of structured chunks, such as ``{"delta": "…"}``.

Guarantee: each chunk is passed on when it comes, so that a consumer can answer each.
For chunks of the same shape (dictionaries and lists, with text at the same places), a
secret that is split over what they have at one place is replaced. Text that could be the
beginning of a secret (``SHORTEST`` bytes or more of it) is left out of its chunk, and comes
with the next one, or before a chunk of another shape or the end in a chunk more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from apex_creds.redaction.matcher import SHORTEST
from apex_creds.redaction.redactor import Redactor

_DEPTH: Final = 20

Path = tuple[object, ...]
Texts = dict[Path, str]


class _Place:
    """The text at one place: what was not passed on yet, and what of it was."""

    __slots__ = ("_data", "_passed", "_redactor")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._data = b""
        self._passed = 0

    def feed(self, text: str) -> str:
        """What of all the text so far can be passed on now."""
        needles = self._redactor.needles()
        data = self._data + text.encode("utf-8", "surrogatepass")
        cut = character_before(data, needles.searchable(data, least=SHORTEST))
        new = self._clean(data[:cut])
        if cut == len(data):  # a beginning that is too short to be left out: remembered
            cut = character_before(data, needles.pending(data))
            self._passed = len(data) - cut
        else:
            self._passed = max(self._passed - cut, 0)
        self._data = data[cut:]
        return new

    def flush(self) -> str:
        """What is left."""
        return self._clean(self._data)

    def _clean(self, data: bytes) -> str:
        """Without secrets, and without what was passed on before."""
        clean = self._redactor.data(data, where="chunk")
        at = 0
        while at < self._passed and clean[at : at + 1] == data[at : at + 1]:
            at += 1
        return clean[at:].decode("utf-8", "surrogatepass")


class Joined:
    """Chunks of one shape in a row."""

    __slots__ = ("_last", "_places", "_redactor", "_texts")

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._last: object = None
        self._texts: list[Texts] = []
        self._places: dict[Path, _Place] = {}

    def takes(self, chunk: object) -> bool:
        """Whether it is a chunk of the shape of those before it."""
        if type(chunk) not in (dict, list):
            return False
        return not self._places or texts_of(chunk).keys() == self._places.keys()

    def feed(self, chunk: object) -> object:
        """The chunk, its texts without secrets; the same object if nothing changes."""
        texts = texts_of(chunk)
        self._last, self._texts = chunk, [*self._texts[-1:], texts]
        self._places = self._places or {path: _Place(self._redactor) for path in texts}
        return with_texts(chunk, {p: self._places[p].feed(text) for p, text in texts.items()})

    def flush(self) -> list[object]:
        """What was left out, in a chunk more, at the end of a row; mostly nothing."""
        left = {path: place.flush() for path, place in self._places.items()}
        last, texts, self._last, self._texts = self._last, self._texts, None, []
        self._places = {}
        if not any(left.values()):
            return []
        # What is the same in each chunk (a role, an id) is no text in pieces.
        same = {path: text for path, text in texts[-1].items() if text == texts[0][path]}
        return [with_texts(last, {path: left[path] or same.get(path, "") for path in left})]


def character_before(data: bytes, cut: int) -> int:
    """``cut``, or where the character begins that it would cut in two."""
    while 0 < cut < len(data) and data[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


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
