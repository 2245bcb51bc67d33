"""The key store: KEK records, wrapped DEK keysets, grants, and which sections exist.

Guarantee: values are immutable; what ``seal_keystore`` wrote, ``open_keystore`` returns,
or an ``IntegrityError`` says why not. Key material leaves only into a ``Hierarchy``. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import CorruptDocumentError, IntegrityError, UnknownKeyError
from apex_creds.keys.hierarchy import KEYSTORE, Hierarchy
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
from apex_creds.vault.document import Header, Packed, RootHeader, pack, unpack

_RESTORE: Final = "Restore it from a backup; nothing was changed or overwritten."

ROOT_LABEL: Final = "root"
"""Label of the keyset from which index, pseudonym and signing keys are derived; its key
never encrypts a credential and does not change when KEK or master rotate."""


class KeystoreBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the key store holds encrypted.

    Attributes:
        root: The vault's own keyset.
        deks: One keyset per section and service, labelled ``section/service``.
        grants: All grants.
        sections: Sections that exist, each with a generation it has at least reached: a
            missing or older document is an error, not an empty start.
        hashed_names: Whether file names on disk are keyed hashes.
        lockdown: Nothing is released while there is one.
        revocations: The last ones, for the processes that have something allowed to them
            that is not stored.
        manifests: Those that grants are bound to, so that a difference can be told.
    """

    root: Keyset
    deks: tuple[Keyset, ...] = ()
    grants: tuple[Grant, ...] = ()
    sections: dict[str, int] = {}
    hashed_names: bool = False
    lockdown: Lockdown | None = None
    revocations: tuple[Revocation, ...] = ()
    manifests: tuple[SeenManifest, ...] = ()


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

    @property
    def retired_keks(self) -> frozenset[int]:
        """The KEK versions that nothing is under any more, as a scan has shown."""
        versions = self.root_header.keks.versions
        return frozenset(v.version for v in versions if v.state is KeyState.RETIRED)

    def dek(self, key_id: bytes, version: int) -> SecretBytes:
        """The DEK that an envelope names; owned by the hierarchy.

        Raises:
            UnknownKeyError: The key store has no such key or version.
        """
        keyset = self.by_id.get(key_id)
        if keyset is None:
            raise UnknownKeyError(
                f"The key store has no key {key_id.hex()}.",
                hint="Restore the key store that belongs to this data.",
            )
        return self.hierarchy.unwrap(keyset, version)


def takes_away(before: KeystoreBody, after: KeystoreBody) -> bool:
    """Whether something that was there, or allowed, must not come back after a change.

    A grant, what a lockdown ended and the lockdown itself, a key version that was destroyed
    or is not to be trusted any more.
    """
    if (before.lockdown, before.revocations) != (after.lockdown, after.revocations):
        return True
    if before.grants is not after.grants:
        old, new = set(before.grants), set(after.grants)
        if old - new or any(grant.decision is GrantDecision.DENY for grant in new - old):
            return True
    return before.deks is not after.deks and _spends_keys(before, after)


def _spends_keys(before: KeystoreBody, after: KeystoreBody) -> bool:
    kept = {keyset.id: keyset for keyset in after.deks}
    return any(
        keyset.id not in kept
        or (kept[keyset.id] is not keyset and _spent(kept[keyset.id]) != _spent(keyset))
        for keyset in before.deks
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
    keys = hierarchy.document_keys(KEYSTORE, packed.header.kek_version)
    plaintext = unpack(packed, keys)
    if packed.header.kek_version != root_header(packed.header).keks.primary.version:
        raise CorruptDocumentError(
            "The key store is not sealed under its primary KEK.", hint=_RESTORE
        )
    try:
        body = msgspec.msgpack.decode(plaintext, type=KeystoreBody)
    except (msgspec.DecodeError, UnicodeDecodeError, IntegrityError):
        raise CorruptDocumentError(
            "The key store's body is malformed.", hint=_RESTORE
        ) from None
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
    keys = hierarchy.document_keys(KEYSTORE, header.kek_version)
    return pack(header, msgspec.msgpack.encode(body), keys)
