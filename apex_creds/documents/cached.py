"""Typed documents beside the credentials: what the layers above keep in the vault.

Guarantee: as for sections. Encrypted and authenticated under KEK-derived keys, read as
stored now, never rolled back within the life of a store (whoever holds the document, and
lets it go), committed by compare-and-set. One that the key store has noted can't go
missing unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from apex_creds.concurrency import Lock
from apex_creds.documents.document import Header, mac_of, pack, parse, unpack
from apex_creds.documents.rollback import missing, refuse_rollback
from apex_creds.documents.store import ATTEMPTS, DocumentStore, too_busy
from apex_creds.errors import (
    ConflictError,
    CorruptDocumentError,
    IntegrityError,
    InvalidInputError,
    SecretWipedError,
    UnknownKeyError,
)
from apex_creds.storage.base import Data, Token

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Version(Generic[T]):
    token: Token | None
    generation: int
    mac: str
    value: T


def _never(before: object, after: object) -> bool:  # noqa: ARG001 - see StateDocument
    return False


class StateDocument(Generic[T]):
    """One document of a type of its own.

    Args:
        store: The vault's documents.
        name: The document's name; ``FileStorage`` puts it under security/.
        empty: Its value before the first write; its type is the document's.
        takes_away: Whether something that was there before a change must not come back:
            then it is anchored before ``change`` returns, not with the next checkpoint.
    """

    def __init__(
        self,
        store: DocumentStore,
        *,
        name: str,
        empty: T,
        takes_away: Callable[[T, T], bool] = _never,
    ) -> None:
        self._store = store
        self._name = name
        self._empty = empty
        self._type: type[T] = type(empty)
        self._takes_away = takes_away
        self._seen: _Version[T] | None = None
        self._writing = Lock()

    def now(self) -> T | None:
        """The value if what is in memory is current, without waiting; else None."""
        seen = self._seen
        if seen is None or self._store.storage.change_token(self._name) != seen.token:
            return None
        return seen.value

    async def read(self) -> T:
        """The value as stored now.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
        """
        await self._store.look()
        found = self.now()
        return found if found is not None else (await self._load()).value

    async def change(self, change: Callable[[T], T]) -> T:
        """Applies ``change`` and commits; durable on return.

        ``change`` may be called several times; if it returns its argument, nothing is
        written.

        Raises:
            ConflictError: Other writers were first, a hundred times.
            InvalidInputError: A text or number in the new value can't be stored.
        """
        async with self._writing.held():
            for _ in range(ATTEMPTS):
                await self.read()
                before = self._seen
                assert before is not None
                value = change(before.value)
                if value is before.value:
                    return value
                try:
                    await self._write(before, value)
                except (ConflictError, SecretWipedError):  # wiped: its KEK was destroyed
                    continue
                break
            else:
                raise too_busy(self._name)
        await self._store.note(self._name)
        if self._takes_away(before.value, value):
            await self._store.anchor()
        return value

    async def _load(self) -> _Version[T]:
        while True:
            token = self._store.storage.change_token(self._name)
            try:
                return await self._load_once()
            except SecretWipedError:  # while it was used, in another thread
                continue
            except UnknownKeyError:  # its KEK was destroyed after it had moved away from it
                await self._store.settle()
                if self._store.storage.change_token(self._name) == token:
                    raise

    async def _load_once(self) -> _Version[T]:
        keystore = await self._store.keystore()
        # Taken before the read: what another task writes meanwhile is no rollback.
        floor = self._store.floor(self._name, keystore)
        seen = self._store.seen.newest(self._name)
        stored = await self._store.storage.read(self._name)
        if stored is None:
            if floor:
                raise missing(self._name)
            loaded = _Version(None, 0, "", self._empty)
        else:
            packed = parse(stored.data, section=self._name, vault_id=keystore.header.vault_id)
            keys = await self._store.keys_for(self._name, packed.header.kek_version)
            value = self._decode(unpack(packed, keys))
            loaded = _Version(stored.token, packed.header.generation, packed.mac, value)
            found = (loaded.generation, loaded.mac)
            refuse_rollback(self._name, floor=floor, seen=seen, found=found)
            self._store.seen.note(self._name, found)
        if self._seen is None or self._seen.generation <= loaded.generation:
            self._seen = loaded
        return loaded

    async def _write(self, before: _Version[T], value: T) -> None:
        keystore = await self._store.keystore()
        keks = keystore.root_header.keks
        header = Header(
            vault_id=keystore.header.vault_id,
            section=self._name,
            generation=before.generation + 1,
            kek_id=keks.id,
            kek_version=keks.primary.version,
            written=self._store.clock.time(),
        )
        keys = keystore.hierarchy.document_keys(self._name, header.kek_version)
        data = pack(header, self._encode(value), keys)
        written = await self._store.storage.write(self._name, data, expected=before.token)
        self._seen = _Version(written.token, header.generation, mac_of(data), value)
        self._store.seen.note(self._name, (header.generation, self._seen.mac))

    def _encode(self, value: T) -> bytes:
        try:
            return msgspec.msgpack.encode(value)
        except (UnicodeEncodeError, OverflowError):
            pass
        raise InvalidInputError(
            f"What was to be in {self._name!r} can't be stored: a number is too large, or a "
            "name or path is not UTF-8.",
            hint="Give another one. Nothing was changed.",
        )

    def _decode(self, plaintext: Data) -> T:
        if not plaintext:  # made by ``reseal``, which does not know the type
            return self._empty
        try:
            return msgspec.msgpack.decode(plaintext, type=self._type)
        except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError):
            pass
        raise CorruptDocumentError(
            f"The body of {self._name!r} is malformed.", hint="Restore it from a backup."
        )
