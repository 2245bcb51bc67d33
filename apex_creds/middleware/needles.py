"""Finds and replaces secrets in bytes, whole or cut in two.

Guarantee: every occurrence of a needle is replaced by ``[redacted:NAME]``, also one whose
parts come in two pieces; the needles lie in locked memory until ``close``. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from apex_creds.crypto.contents import contents
from apex_creds.crypto.encodings import spellings
from apex_creds.crypto.memory import SecretBytes

SHORTEST: Final = 4
"""Secrets of fewer bytes are not looked for: they would be found everywhere."""
_PIECE: Final = 1 << 22
"""Bytes searched at once: some milliseconds, in which no other thread runs."""


@dataclass(frozen=True, slots=True)
class _Needle:
    secret: SecretBytes
    name: str


class Needles:
    """What to look for."""

    def __init__(self) -> None:
        self._needles: list[_Needle] = []

    def add(self, name: str, part: memoryview) -> list[SecretBytes]:
        """Looks for ``part`` and what is secret in it from now on, in all spellings.

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
        for needle in self._needles:
            view = needle.secret.view()
            if data.find(view) >= 0:
                data = data.replace(view, f"[redacted:{needle.name}]".encode())
                found.add(needle.name)
        return data

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
        while 0 < cut < len(data):
            across = min(
                (at for each in self._needles if 0 <= (at := _across(data, each, cut)) < cut),
                default=cut,
            )
            if across == cut:
                break
            cut = across
        return cut

    def close(self) -> None:
        """Wipes the needles; idempotent."""
        while self._needles:
            self._needles.pop().secret.close()


def _across(data: bytes, needle: _Needle, cut: int) -> int:
    """Where a needle is that begins before ``cut`` and ends behind it; -1: nowhere."""
    view = needle.secret.view()
    return data.find(view, max(cut - len(view) + 1, 0), cut + len(view) - 1)


def _beginning(data: bytes, view: memoryview, last: int) -> int:
    """Where an end of ``data`` begins that ``view`` begins with; ``len(data)``: nowhere."""
    with view[:1] as first:
        at = data.find(first, max(len(data) - len(view) + 1, 0), last)
        while at >= 0:
            with view[: len(data) - at] as prefix:
                if data.endswith(prefix):
                    return at
            at = data.find(first, at + 1, last)
    return len(data)
