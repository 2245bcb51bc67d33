"""The key store: its body, its look-up tables, the master key that opens it, its wiping.

Guarantee: values are immutable; what ``seal_keystore`` wrote, ``open_keystore`` returns,
or an ``IntegrityError`` says why not. Key material leaves only into a ``Hierarchy``. No
master key is kept: one is asked for when KEKs must be derived, and closed right after.

A store that reads a key store with a lockdown wipes every key before it returns it, and
derives none again until it reads one without. What needs a key meanwhile is a
``LockedDownError``; grants, lockdown and sections in memory need none. The exceptions are
``holding``, and a store that was opened during the lockdown, ``for_operator``.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import (
    KEK_VERSION,
    Header,
    KeyName,
    MasterRecord,
    Packed,
    RootHeader,
    pack,
    unpack,
)
from apex_creds.errors import (
    CorruptDocumentError,
    IntegrityError,
    MasterKeyUnavailableError,
    UnknownKeyError,
)
from apex_creds.fs.private_files import expanded
from apex_creds.keys import MasterKeyProvider, provider_from_uri
from apex_creds.keys.hierarchy import KEYSTORE, DocumentKeys, Hierarchy
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.policy.grants import (
    Grant,
    GrantDecision,
    Grants,
    Lockdown,
    Revocation,
    SeenManifest,
)
from apex_creds.storage.base import Data, Token

_RESTORE: Final = "Restore it from a backup; nothing was changed or overwritten."

ROOT_LABEL: Final = "root"
"""Label of the keyset from which index, pseudonym and signing keys are derived; its key
never encrypts a credential and does not change when KEK or master rotate."""
DOCUMENTS_LABEL: Final = "documents"
"""Label of the keyset from which the keys of all documents but the key store are derived."""

BRANCH: Final = 1 << 32
"""Generations are counted on from a multiple of it, the next one with each rollback that is
accepted. So nothing of the branch that was given up is ever as new as what is written since."""


class _Body(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    root: Keyset
    deks: tuple[Keyset, ...] = ()
    grants: tuple[Grant, ...] = ()
    grants_void: bool = False
    sections: dict[str, int] = {}
    hashed_names: bool = False
    lockdown: Lockdown | None = None
    revocations: tuple[Revocation, ...] = ()
    manifests: tuple[SeenManifest, ...] = ()


class KeystoreBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the key store holds encrypted.

    Attributes:
        root: The vault's own keyset.
        deks: One keyset per section and service, labelled ``section/service``, and those of
            other uses. That of documents is not there where an older program wrote last.
        grants: Those that an older program has left here; see ``grant_set``.
        grants_void: What the documents of grants allow is void, until they are written
            again: a lockdown was first.
        sections: Sections that exist, each with a generation it has at least reached: a
            missing or older document is an error, not an empty start.
        shards: In how many documents a section is; one that is not here is in its own. Not
            of a storage that several homes share, which says it itself.
        hashed_names: Whether file names on disk are keyed hashes.
        lockdown: Nothing is released while there is one.
        revocations: The last ones, for the processes that have something allowed to them
            that is not stored.
        manifests: Those that such grants are bound to, so that a difference can be shown.
    """

    shards: dict[str, int] = {}


class _StoredBody(_Body, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As it is stored: of shards only the generations, in a list for each section."""

    shards: dict[str, tuple[int, ...]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keystore:
    """An unsealed key store as of one change token."""

    token: Token | None
    header: Header
    mac: str
    body: KeystoreBody
    hierarchy: Hierarchy
    grants: Grants
    by_label: dict[str, Keyset]
    by_id: dict[bytes, Keyset]

    @property
    def root_header(self) -> RootHeader:
        """The clear part that only the key store has."""
        return root_header(self.header)

    def keyset_of(self, header: Header) -> Keyset | None:
        """The keys that a document is under: KEKs for one of version 1."""
        if header.version == KEK_VERSION:
            return self.root_header.keks
        found = self.by_label.get(DOCUMENTS_LABEL)
        return found if found is not None and found.id == header.key_id else None

    def key_state(self, header: Header) -> KeyState | None:
        """The state of the key version that a document is under; None: there is none."""
        keyset = self.keyset_of(header)
        versions = () if keyset is None else keyset.versions
        return next((v.state for v in versions if v.version == header.key_version), None)

    def document_keys(self, header: Header) -> DocumentKeys:
        """The keys of a document other than the key store; owned by the hierarchy.

        Raises:
            UnknownKeyError: The key store has no such key or version.
        """
        keyset = self.keyset_of(header)
        if keyset is None:
            raise _no_key(header.key_id)
        wrapped = None if header.version == KEK_VERSION else keyset
        return self.hierarchy.document_keys(header.section, header.key_version, keyset=wrapped)

    def next_generation(self, after: int) -> int:
        """The generation of a document's next version: of the key store's branch."""
        return max(after, self.header.generation // BRANCH * BRANCH) + 1

    def next_header(
        self, name: str, *, after: int, written: float, keys_used: tuple[KeyName, ...] = ()
    ) -> Header:
        """The header of a document's next version, under the primary document key.

        Args:
            name: The document.
            after: The generation before it.
            written: Unix seconds.
            keys_used: The DEKs that its body refers to.
        """
        keyset = self.by_label[DOCUMENTS_LABEL]  # see ``DocumentStore.move_forward``
        return Header(
            vault_id=self.header.vault_id,
            section=name,
            generation=self.next_generation(after),
            key_id=keyset.id,
            key_version=keyset.primary.version,
            written=written,
            keys_used=keys_used,
        )

    def dek(self, key_id: bytes, version: int) -> SecretBytes:
        """The DEK that an envelope names; owned by the hierarchy.

        Raises:
            UnknownKeyError: The key store has no such key or version.
        """
        keyset = self.by_id.get(key_id)
        if keyset is None:
            raise _no_key(key_id.hex())
        return self.hierarchy.unwrap(keyset, version)


def _no_key(key_id: str) -> UnknownKeyError:
    return UnknownKeyError(
        f"The key store has no key {key_id}.",
        hint="Restore the key store that belongs to this data.",
    )


def with_document_key(
    body: KeystoreBody, hierarchy: Hierarchy, *, kek_version: int, now: float
) -> KeystoreBody:
    """The body, with a key for documents where an older program made none."""
    if any(keyset.label == DOCUMENTS_LABEL for keyset in body.deks):
        return body
    made = hierarchy.new_keyset(DOCUMENTS_LABEL, kek_version=kek_version, now=now)
    return msgspec.structs.replace(body, deks=(*body.deks, made))


def takes_away(before: KeystoreBody, after: KeystoreBody) -> bool:
    """Whether something that was there, or allowed, must not come back after a change.

    A grant, what a lockdown ended and the lockdown itself, a key version that was destroyed
    or is not to be trusted any more.
    """
    if (before.lockdown, before.revocations) != (after.lockdown, after.revocations):
        return True
    if before.grants is not after.grants and allows_less(before.grants, after.grants):
        return True
    if before.deks is after.deks:
        return False
    kept = {keyset.id: keyset for keyset in after.deks}
    return any(
        keyset.id not in kept
        or (kept[keyset.id] is not keyset and _spent(kept[keyset.id]) != _spent(keyset))
        for keyset in before.deks
    )


def allows_less(before: Iterable[Grant], after: Iterable[Grant]) -> bool:
    """Whether something that grants allowed is not allowed any more."""
    old, new = set(before), set(after)
    return bool(old - new) or any(g.decision is GrantDecision.DENY for g in new - old)


async def load_master(provider: MasterKeyProvider, header: Header) -> SecretBytes:
    """The master key that a key store names, from a provider; the caller closes it.

    Raises:
        MasterKeyError: It can't be had.
    """
    current = root_header(header).master
    return await provider.load(
        vault_id=header.vault_id, version=current.version, params=current.params
    )


def _spent(keyset: Keyset) -> list[int]:
    return [
        version.version
        for version in keyset.versions
        if version.compromised or version.state is KeyState.DESTROYED
    ]


def root_key(keystore: Keystore) -> SecretBytes:
    """The key from which the vault derives its own; the hierarchy owns it."""
    return keystore.hierarchy.unwrap(keystore.body.root, keystore.body.root.primary.version)


def root_header(header: Header) -> RootHeader:
    """The key store's clear part.

    Raises:
        CorruptDocumentError: The document has none.
    """
    if header.root is None:
        raise CorruptDocumentError(
            "The key store has no record of its master key.", hint=_RESTORE
        )
    return header.root


def needed_keks(header: Header) -> frozenset[int]:
    """The KEK versions that a key store's hierarchy must have."""
    versions = root_header(header).keks.versions
    return frozenset(v.version for v in versions if v.state is not KeyState.DESTROYED)


def open_keystore(packed: Packed, *, token: Token | None, hierarchy: Hierarchy) -> Keystore:
    """Checks and decrypts a key store.

    Raises:
        IntegrityError: It is not what this vault wrote.
    """
    keys = hierarchy.document_keys(KEYSTORE, packed.header.key_version)
    plaintext = unpack(packed, keys)
    keks = root_header(packed.header).keks
    if packed.header.key != (keks.id, keks.primary.version):
        raise CorruptDocumentError(
            "The key store is not sealed under its primary KEK.", hint=_RESTORE
        )
    try:
        stored = msgspec.msgpack.decode(plaintext, type=_StoredBody)
    except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError):
        raise CorruptDocumentError(
            "The key store's body is malformed.", hint=_RESTORE
        ) from None
    sections = dict(stored.sections)
    for section, reached in stored.shards.items():
        sections |= zip(shard_names(section, len(reached)), reached, strict=True)
    fields = {name: getattr(stored, name) for name in _Body.__struct_fields__}
    counts = {section: len(reached) for section, reached in stored.shards.items()}
    body = KeystoreBody(**fields | {"sections": sections}, shards=counts)
    return index(packed.header, body, mac=packed.mac, token=token, hierarchy=hierarchy)


def index(
    header: Header, body: KeystoreBody, *, mac: str, token: Token | None, hierarchy: Hierarchy
) -> Keystore:
    """A ``Keystore`` over a body, with its look-up tables."""
    keysets = (body.root, *body.deks)
    return Keystore(
        token=token,
        header=header,
        mac=mac,
        body=body,
        hierarchy=hierarchy,
        grants=Grants(
            body.grants,
            lockdown=body.lockdown,
            revocations=body.revocations,
            manifests=body.manifests,
        ),
        by_label={keyset.label: keyset for keyset in body.deks},
        by_id={bytes.fromhex(keyset.id): keyset for keyset in keysets},
    )


def seal_keystore(header: Header, body: KeystoreBody, *, hierarchy: Hierarchy) -> Data:
    """The document for ``header`` and ``body``."""
    names = {section: shard_names(section, count) for section, count in body.shards.items()}
    shards = {s: tuple(body.sections.get(n, 1) for n in each) for s, each in names.items()}
    left = body.sections.keys() - {name for each in names.values() for name in each}
    sections = {name: at for name, at in body.sections.items() if name in left}
    fields = {name: getattr(body, name) for name in _Body.__struct_fields__}
    stored = _StoredBody(**fields | {"sections": sections}, shards=shards)
    keys = hierarchy.document_keys(KEYSTORE, header.key_version)
    return pack(header, msgspec.msgpack.encode(stored), keys)


@functools.cache
def shard_names(section: str, count: int) -> tuple[str, ...]:
    """The documents of a section that is kept in ``count`` of them; 0: in its own."""
    if not count:
        return (section,)
    digits = max(2, len(f"{count - 1:x}"))
    return tuple(f"{section}_{number:0{digits}x}" for number in range(count))


FindProvider = Callable[[str], MasterKeyProvider]


class MasterKeySource:
    """The master keys of one vault.

    Args:
        provider: Has them; by default the provider that the vault itself names.
        first: Version 1, while it is open: a vault was just made with it.
        find: Makes a provider from a URI.
        home: The vault's directory; a key file in it is used only if ``provider`` says so.
    """

    def __init__(
        self,
        provider: MasterKeyProvider | None = None,
        *,
        first: SecretBytes | None = None,
        find: FindProvider = provider_from_uri,
        home: Path | None = None,
    ) -> None:
        self._provider = provider
        self._find = find
        self._home = home
        self._first = first

    def provider(self, uri: str) -> MasterKeyProvider:
        """The provider for a vault whose key store names ``uri``.

        Raises:
            MasterKeyUnavailableError: Only the key store names it, and it is in the home.
        """
        if self._provider is not None:
            return self._provider
        if self._home is not None:
            refuse_own_directory(uri, self._home)
        return self._find(uri)

    async def load(self, record: MasterRecord, vault_id: str) -> SecretBytes:
        """The master key that a key store names; the caller closes it.

        Raises:
            MasterKeyError: It can't be had.
        """
        first = self._first
        if first is not None and not first.closed:
            return SecretBytes.copy_of(first)
        return await self.provider(record.uri).load(
            vault_id=vault_id, version=record.version, params=record.params
        )


def refuse_own_directory(uri: str, home: Path) -> None:
    """Refuses a key file inside the vault's directory that only the key store names.

    An attacker who can replace the directory could bring another vault with its key.

    Raises:
        MasterKeyUnavailableError: It is one.
    """
    scheme, _, path = uri.partition(":")
    if scheme != "file":
        return
    named = str(expanded(path))
    readings = (os.path.abspath, os.path.realpath)
    if any(Path(read(named)).is_relative_to(read(home)) for read in readings):
        raise MasterKeyUnavailableError(
            "The key store names a master key inside the vault's own directory, which may "
            "have been put there together with it.",
            hint="If it is yours, name it: --master file:PATH. Better keep it elsewhere.",
        )


class SealState:
    """The part of a document store that seals it.

    Attributes:
        for_operator: Whether it keeps its keys in the present lockdown.
        on_sealed: Called right before it wipes them, from any thread.
    """

    def __init__(self) -> None:
        self.for_operator = False
        self.on_sealed: Callable[[], None] | None = None
        self._keystore: Keystore | None = None
        self._holds = 0
        self._memory = threading.RLock()
        """Held where what is in memory is compared and replaced: threads do so at once."""

    async def keystore(self) -> Keystore:
        """The key store as stored now."""
        raise NotImplementedError

    def unsealed(self) -> Keystore:
        """The key store in memory."""
        raise NotImplementedError

    async def _derive(self, header: Header) -> Hierarchy:
        raise NotImplementedError

    @property
    def sealed(self) -> bool:
        """Whether the keys were wiped."""
        return self._keystore is None or self._keystore.hierarchy.closed

    def seal(self) -> None:
        """Wipes the keys, unless they are held; they come back with a current key store."""
        keystore = self._keystore
        if keystore is None or self._holds:
            return
        if not keystore.hierarchy.closed and self.on_sealed is not None:
            self.on_sealed()
        with self._memory:
            if self._keystore is not None and not self._holds:
                self._keystore.hierarchy.close(locked_down=True)

    def seal_if_locked_down(self) -> None:
        """Wipes the keys, if what was read last is a lockdown that this store must obey."""
        if self._keystore is None or self._keystore.body.lockdown is None:
            self.for_operator = False
        elif not self.for_operator:
            self.seal()

    @asynccontextmanager
    async def holding(self, *, reload: bool = True) -> AsyncIterator[None]:
        """Keeps the keys in memory within it, also in a lockdown.

        Args:
            reload: Derive them again where they were wiped.
        """
        with self._memory:
            self._holds += 1
        try:
            if reload:
                await self.keystore()
                while (keystore := self.unsealed()).hierarchy.closed:
                    hierarchy = await self._derive(keystore.header)
                    with self._memory:
                        ours = self._keystore is keystore
                        if ours:
                            self._keystore = dataclasses.replace(keystore, hierarchy=hierarchy)
                    if not ours:
                        hierarchy.close()
            yield
        finally:
            with self._memory:
                self._holds -= 1
            self.seal_if_locked_down()
