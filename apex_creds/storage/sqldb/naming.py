"""What documents are called in a database.

Guarantee: the key store and the configuration keep their names, which are needed before
there is a key; all others have a keyed hash, once the layer above has given one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from apex_creds.model import SECTIONS
from apex_creds.storage.base import CONFIG, KEYSTORE, STATE_DOCUMENTS, check_document_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_CLEAR: Final = frozenset({KEYSTORE, CONFIG})


class Naming:
    """The stems of names."""

    __slots__ = ("_candidates", "_stem", "known")

    def __init__(self) -> None:
        self._stem: Callable[[str], str] | None = None
        self._candidates: tuple[str, ...] = (*SECTIONS.values(), *STATE_DOCUMENTS)
        self.known: dict[str, str] = {name: name for name in _CLEAR}
        """Those that were asked for."""

    def map(self, stem_of: Callable[[str], str], candidates: Iterable[str] | None) -> None:
        """See ``SqlStorage.map_names``."""
        self._stem = stem_of
        self.known = {name: name for name in _CLEAR}
        if candidates is not None:
            names = dict.fromkeys(check_document_name(name) for name in candidates)
            self._candidates = (*names, *STATE_DOCUMENTS)

    def stem(self, name: str) -> str:
        """What a document is called in the database.

        Raises:
            InvalidNameError: No document can be called ``name``.
        """
        stem = self.known.get(name)
        if stem is None:
            check_document_name(name)
            stem = name if self._stem is None else check_document_name(self._stem(name))
            self.known[name] = stem
        return stem

    def of(self, stems: Collection[str]) -> list[str]:
        """The names that ``stems`` are of, as far as they can be known; sorted."""
        if self._stem is None:
            return sorted(stems)
        there, known = set(stems), {*self.known, *self._candidates}
        return sorted(name for name in known if self.stem(name) in there)
