"""Typed documents beside the sections: what the layers above keep in the vault.

Guarantee: those of ``store``; a value is never decoded again while its token stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import msgspec

from apex_creds.concurrency import Lock, until_committed
from apex_creds.documents.document import KeyName, Packed, mac_of, pack, unpack
from apex_creds.documents.grant_set import is_shard
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ConflictError,
    CorruptDocumentError,
    IntegrityError,
    InvalidInputError,
    SecretWipedError,
)
from apex_creds.keys.hierarchy import DocumentKeys
from apex_creds.storage.base import GRANTS, STATE_DOCUMENTS, Data, Token

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Version(Generic[T]):
    """One authenticated version of one document; of none while it does not exist.

    Attributes:
        token: Its change token.
        generation: Counts its writes.
        key: The key version that it is under; None while it does not exist.
        value: What it holds.
    """

    token: Token | None
    generation: int
    key: KeyName | None
    value: T


class Document(Generic[T]):
    """One document of one type.

    Args:
        store: The vault's documents.
        name: The document's name; ``storage.file_storage`` puts it under security/.
        empty: Its value before the first write; its type is the document's. Of ``bytes``,
            the body is the value.
        takes_away: Whether something that was there before a change must not come back:
            then it is anchored before ``change`` returns, not with the next checkpoint.
    """

    def __init__(
        self,
        store: DocumentStore,
        *,
        name: str,
        empty: T,
        takes_away: Callable[[T, T], bool] = lambda *_: False,
    ) -> None:
        self._store = store
        self._name = name
        self._empty = empty
        self._type: type[T] = type(empty)
        self._takes_away = takes_away
        self._known: Version[T] | None = None
        self._writing = Lock()

    def now(self) -> T | None:
        """The value if what is in memory is current, without waiting; else None."""
        known = self._known
        if known is None or self._store.storage.change_token(self._name) != known.token:
            return None
        return known.value

    async def read(self) -> T:
        """The value as stored now.

        Raises:
            IntegrityError: What is stored is not what this vault wrote.
        """
        return (await self._read()).value

    async def change(self, change: Callable[[T], T]) -> T:
        """Applies ``change`` and commits; durable on return.

        ``change`` may be called several times; if it returns its argument, nothing is
        written.

        Raises:
            ConflictError: Other writers were first, a hundred times.
            InvalidInputError: A text or number in the new value can't be stored.
        """
        return await self.change_keyed(lambda value, _: change(value))

    async def change_keyed(self, change: Callable[[T, Keystore], T]) -> T:
        """As ``change``, for changes that need keys: the key store of the commit's moment."""
        await self._store.move_forward()

        async def attempt() -> tuple[T, T] | None:
            before = await self._read()
            keystore = await self._store.keystore(refresh=False)
            value = await self._store.computed(
                {self._name: before.token}, keystore, lambda: (change(before.value, keystore),)
            )
            if value is None:
                return None
            if value[0] is not before.value and not await self._write(
                before, self._encode(value[0]), value[0], keystore
            ):
                return None
            return before.value, value[0]

        async with self._writing.held():
            before, value = await until_committed(self._name, attempt)
        if value is not before:
            await self._store.note([self._name])
            if self._takes_away(before, value):
                await self._store.anchor()
        return value

    async def reseal(self) -> None:
        """Commits it as it is, under the keys of now; nothing where there is none."""
        await self._store.move_forward()

        async def attempt() -> bool | None:
            before = await self._read()
            if before.token is None:
                return True
            keystore = await self._store.keystore(refresh=False)
            body = self._encode(before.value)
            return await self._write(before, body, before.value, keystore) or None

        async with self._writing.held():
            await until_committed(self._name, attempt)

    async def key(self) -> KeyName | None:
        """The key version that it is under; None: it does not exist. Cached at its token."""
        token = self._store.storage.change_token(self._name)
        known = self._store.rollback.key_of(self._name, token)
        return (await self._read()).key if known is None else known

    async def _read(self) -> Version[T]:
        def opened(packed: Packed, token: Token, keys: DocumentKeys) -> Version[T]:
            header, body = packed.header, unpack(packed, keys)
            return Version(token, header.generation, header.key, self._decode(body))

        await self._store.refresh()
        known = self._known
        if known is None or self._store.storage.change_token(self._name) != known.token:
            found = await self._store.load([self._name], opened)
            known = found.get(self._name) or Version(None, 0, None, self._empty)
            self._keep(known)
        return known

    def _keep(self, made: Version[T]) -> None:
        known = self._known
        if known is None or known.generation <= made.generation:
            self._known = made

    async def _write(
        self, before: Version[T], body: bytes, value: T, keystore: Keystore
    ) -> bool:
        """Whether it was written: no other writer was first."""
        now = self._store.clock.time()
        header = keystore.next_header(self._name, after=before.generation, written=now)
        try:
            data = pack(header, body, keystore.document_keys(header))
            [made] = await self._store.commit([(self._name, data, before.token)], keystore)
        except (ConflictError, SecretWipedError):  # wiped: its key was destroyed
            return False
        self._keep(Version(made.token, header.generation, header.key, value))
        self._store.rollback.register(self._name, (header.generation, mac_of(data)))
        return True

    def _encode(self, value: T) -> bytes:
        if self._type is bytes:
            return cast("bytes", value)
        try:
            return msgspec.msgpack.encode(value)
        except (UnicodeEncodeError, OverflowError):
            pass
        raise InvalidInputError(
            f"What was to be in {self._name!r} can't be stored: a number is too large, or a "
            "name or path is not UTF-8.",
            hint="Give another one. Nothing was changed.",
        )

    def _decode(self, body: Data) -> T:
        if self._type is bytes:
            return cast("T", bytes(body))
        if not body:  # made by an older program's KEK rotation
            return self._empty
        try:
            return msgspec.msgpack.decode(body, type=self._type)
        except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError):
            pass
        raise CorruptDocumentError(
            f"The body of {self._name!r} is malformed.", hint="Restore it from a backup."
        )


async def recommit(store: DocumentStore, *names: str) -> None:
    """Commits documents again, under the present keys; those that exist.

    Raises:
        ConflictError: Other writers were first, a hundred times.
    """
    await store.sections.recommit([name for name in names if name not in STATE_DOCUMENTS])
    if any(name == GRANTS or is_shard(name) for name in names):
        await store.grants.recommit()
    for name in names:
        if name in STATE_DOCUMENTS and name != GRANTS:
            await Document(store, name=name, empty=b"").reseal()
