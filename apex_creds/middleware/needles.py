"""Finds and replaces secrets in bytes, whole or cut in two.

Guarantee: every occurrence of a needle is replaced by ``[redacted:NAME]``, also one whose
parts come in two pieces; the needles lie in locked memory until ``close``. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

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
        """Looks for all spellings of ``part`` from now on; too short ones are passed over.

        Returns:
            The spellings, which stay the property of these needles.
        """
        if len(part) < SHORTEST:
            return []
        made = spellings(part)
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
            held = self.replace(held + data[at : at + _PIECE // 2], mine)
            start = self.held_back(held)
            clean.append(held[:start])
            held = held[start:]
        found |= mine
        return b"".join([*clean, held]) if mine else data

    def held_back(self, data: bytes) -> int:
        """Where the longest end of ``data`` that could begin a needle starts."""
        start = len(data)
        for needle in self._needles:
            view = needle.secret.view()
            start = min(start, _beginning(data, view))
        return start

    def close(self) -> None:
        """Wipes the needles; idempotent."""
        while self._needles:
            self._needles.pop().secret.close()


def _beginning(data: bytes, view: memoryview) -> int:
    with view[:1] as first:
        at = data.find(first, max(len(data) - len(view) + 1, 0))
        while at >= 0:
            with view[: len(data) - at] as prefix:
                if data.endswith(prefix):
                    return at
            at = data.find(first, at + 1)
    return len(data)
