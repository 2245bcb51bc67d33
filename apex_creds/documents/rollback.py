"""Rollback detection: the newest authenticated generation of each document.

Guarantee: what was authenticated once is remembered for the life of the store; a document
of an older generation, or another one of the same generation, is refused. A header that
nobody authenticated may be compared with what is here, and is never remembered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Final

from apex_creds.documents.document import Header, KeyName
from apex_creds.documents.keystore import root_header
from apex_creds.errors import CorruptDocumentError, RollbackDetectedError
from apex_creds.storage.base import KEYSTORE, Token

KEK: Final = "keystore.kek"
MASTER: Final = "keystore.master"
"""Beside the documents, the primary key versions of the key store: they only rise, too. No
document has a dot in its name."""
Version = tuple[int, str]
"""A document's generation and MAC."""
NOTHING: Final[Version] = (0, "")


class RollbackGuard:
    """The newest version that was seen of each document of one vault.

    Attributes:
        on_raised: Called, from any thread, after a document was seen at a newer generation.
        noted: The generations that the newest key store notes.
    """

    __slots__ = ("_keys", "_lock", "_minima", "_newest", "noted", "on_raised")

    def __init__(self) -> None:
        self.on_raised: Callable[[], object] = lambda: None
        self.noted: Mapping[str, int] = {}
        self._newest: dict[str, Version] = {}
        self._minima: dict[str, int] = {}
        self._keys: dict[str, tuple[Token | None, KeyName]] = {}
        self._lock = threading.Lock()

    def require(self, generations: Mapping[str, int]) -> None:
        """Takes generations that the vault signed elsewhere: those of its anchor."""
        with self._lock:
            for name, generation in generations.items():
                self._minima[name] = max(generation, self._minima.get(name, 0))

    def register(self, name: str, version: Version) -> None:
        """Takes a version that was authenticated, or written by this process."""
        with self._lock:
            before = self.newest(name)[0]
            if version[0] >= before:
                self._newest[name] = version
        if version[0] > before:
            self.on_raised()

    def register_key(self, name: str, token: Token | None, key: KeyName) -> None:
        """Takes the key of a document that was authenticated, as of that token."""
        self._keys[name] = (token, key)

    def key_of(self, name: str, token: Token | None) -> KeyName | None:
        """The key that a document is under, if it was last seen at that token."""
        found = self._keys.get(name)
        return found[1] if found is not None and found[0] == token else None

    def newest(self, name: str) -> Version:
        """The newest version that was authenticated; ``NOTHING`` for none."""
        return self._newest.get(name, NOTHING)

    def minimum(self, name: str) -> int:
        """The generation that a document must have reached."""
        return max(self._minima.get(name, 0), self.newest(name)[0])

    def register_keystore(self, header: Header, mac: str, noted: Mapping[str, int]) -> None:
        """Takes a key store that was authenticated, or written by this process."""
        newest = header.generation >= self.newest(KEYSTORE)[0]
        self.register(KEYSTORE, (header.generation, mac))
        if newest:  # after it: what is noted is never of a key store that was not seen
            self.noted = noted
        for name, version in primaries(header).items():
            self.register(name, (version, ""))

    def generations(self) -> dict[str, int]:
        """The newest generation that was authenticated of each document."""
        return {name: version[0] for name, version in self._newest.copy().items()}

    def raised(self, floors: Mapping[str, int]) -> dict[str, int]:
        """The floors, none of them lower than what was authenticated."""
        return {name: max(at, self.newest(name)[0]) for name, at in floors.items()}


def refuse_rollback(
    name: str, *, floor: int = 0, seen: Version = NOTHING, found: Version
) -> None:
    """Refuses a document older than, or other than, one that was seen before.

    Args:
        name: The document's name.
        floor: A generation that it has reached, as the key store says.
        seen: The version seen last.
        found: The version that was read.
    """
    least = max(floor, seen[0])
    if found[0] < least or (found[0] == seen[0] and found[1] != seen[1]):
        raise RollbackDetectedError(
            f"The document for {name!r} is at generation {found[0]}; {least} was seen.",
            hint="An older copy was put back. Restore the newest one.",
        )


def primaries(header: Header) -> dict[str, int]:
    """The key versions that a key store is under."""
    root = root_header(header)
    return {KEK: root.keks.primary.version, MASTER: root.master.version}


def refuse_old_keys(header: Header, *, floors: Mapping[str, int]) -> None:
    """Refuses a key store under a key that was replaced.

    Anybody with that key could have made it, with any generation in it.

    Raises:
        RollbackDetectedError: It is.
    """
    for name, version in primaries(header).items():
        if version < floors[name]:
            raise RollbackDetectedError(
                f"The key store is under {describe(name)} {version}; {floors[name]} was seen.",
                hint="An older copy was put back, or one made with an old key. Restore the "
                "newest one.",
            )


def describe(name: str) -> str:
    """What a number beside those of the documents is of, in words."""
    return "KEK version" if name == KEK else "master key version"


def missing(name: str) -> CorruptDocumentError:
    """The error for a document that is missing."""
    return CorruptDocumentError(
        f"The document for {name!r} is missing.",
        hint="Restore it from a backup; nothing was changed or overwritten.",
    )
