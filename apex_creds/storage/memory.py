"""Documents in memory, for tests and simulations.

Guarantee: the same promises as any backend, except that nothing outlives the object.
"""

from __future__ import annotations

import itertools

from anyio.lowlevel import checkpoint

from apex_creds.errors import ConflictError, StorageError
from apex_creds.storage.base import (
    MAX_DOCUMENT_BYTES,
    Data,
    Shredded,
    Stored,
    Token,
    WriteResult,
    check_document_name,
)


class MemoryStorage:
    """A dictionary behind the ``Storage`` protocol; for one event loop."""

    def __init__(self) -> None:
        self._documents: dict[str, Stored] = {}
        self._versions = itertools.count(1)

    def change_token(self, name: str) -> Token | None:
        """See ``Storage``."""
        stored = self._documents.get(check_document_name(name))
        return None if stored is None else stored.token

    async def prepare(self) -> None:
        """See ``Storage``."""
        await checkpoint()

    async def read(self, name: str) -> Stored | None:
        """See ``Storage``."""
        check_document_name(name)
        await checkpoint()
        return self._documents.get(name)

    async def write(
        self, name: str, data: Data, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        """See ``Storage``; freed memory is not wiped, so shredding is unverifiable."""
        check_document_name(name)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise StorageError(f"The document {name!r} is larger than 1 GiB.")
        await checkpoint()
        replaced = self._check(name, expected)
        token = Token(("memory", next(self._versions)))
        self._documents[name] = Stored(bytes(data), token)
        return WriteResult(token, "unverifiable" if shred and replaced else "no")

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        """See ``Storage``."""
        check_document_name(name)
        await checkpoint()
        self._check(name, expected)
        del self._documents[name]
        return "unverifiable" if shred else "no"

    async def names(self) -> list[str]:
        """See ``Storage``."""
        await checkpoint()
        return sorted(self._documents)

    async def close(self) -> None:
        """See ``Storage``."""
        await checkpoint()

    def _check(self, name: str, expected: Token | None) -> bool:
        current = self.change_token(name)
        if current != expected:
            raise ConflictError(
                f"The document {name!r} was changed meanwhile.", hint="Read it again and retry."
            )
        return current is not None
