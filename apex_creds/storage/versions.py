"""Which version of each document was seen last, for storages that others write to.

Guarantee: what this storage wrote or learned later is never replaced by the answer to a
question that was asked earlier, in whatever order answers come. Readable from any thread.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from apex_creds.storage.base import Token


class Versions:
    """A map from stored names to tokens, and who wants to know that it changed."""

    __slots__ = ("_changes", "_clock", "_lock", "_moved", "_tokens", "_watchers")

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self._moved: dict[str, int] = {}
        self._clock = 0
        self._changes = 0
        self._watchers: list[Callable[[], None]] = []
        self._lock = threading.RLock()

    @property
    def changes(self) -> int:
        """How many changes of a token there were."""
        return self._changes

    def get(self, name: str) -> Token | None:
        """The token of a document; None where it is not known to exist."""
        return self._tokens.get(name)

    def known(self) -> list[str]:
        """The names of the documents that exist, as far as is known."""
        return list(self._tokens)

    def asked(self) -> int:
        """To be taken before a question is asked, and given with its answer."""
        return self._clock

    def put(self, name: str, token: Token | None) -> None:
        """What this storage has just done itself."""
        with self._lock:
            self._clock += 1
            self._moved[name] = self._clock
            self._set(name, token)

    def learn(self, name: str, token: Token | None, *, asked: int) -> bool:
        """What an answer says; not believed, and False, where later knowledge is here."""
        with self._lock:
            if self._moved.get(name, 0) > asked:
                return False
            if self._tokens.get(name) != token:
                self.put(name, token)
            return True

    def watch(self, call: Callable[[], None]) -> Callable[[], None]:
        """See ``SharedStorage.watch``."""
        self._watchers.append(call)

        def end() -> None:
            if call in self._watchers:
                self._watchers.remove(call)

        return end

    def tell(self, *, since: int) -> None:
        """Calls the watchers if ``changes`` is not ``since`` any more."""
        if self._changes != since:
            for call in list(self._watchers):
                call()

    def _set(self, name: str, token: Token | None) -> None:
        if self._tokens.get(name) == token:
            return
        if token is None:
            del self._tokens[name]
        else:
            self._tokens[name] = token
        self._changes += 1
