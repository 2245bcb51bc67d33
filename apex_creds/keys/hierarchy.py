"""The unsealed keys: master key → KEKs → DEKs and document keys, and what these give.

Guarantee: the master key is used to derive the KEKs and never kept; every key held here
lies in locked memory and is wiped by ``close``; after that each use is a
``VaultSealedError``. A DEK is unwrapped when it is first asked for, then cached.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from apex_creds.crypto import envelope, kdf
from apex_creds.crypto.envelope import Context
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import LockedDownError, UnknownKeyError, VaultSealedError
from apex_creds.keys.keyset import Keyset, KeyState, KeyVersion

KEY_BYTES: Final = 32
SALT_BYTES: Final = 32
CHECK_BYTES: Final = 16
KEYSTORE: Final = "keystore"
UNLOCK: Final = "End that: apex-creds unlock"


class DocumentKeys(NamedTuple):
    """The keys of one document under one key version: of its body and of its MAC."""

    body: SecretBytes
    mac: SecretBytes


def master_check(master: SecretBytes, *, vault_id: str) -> bytes:
    """16 bytes that tell whether a master key belongs to a vault, and nothing else of it."""
    with kdf.derive(master, kdf.Purpose.MASTER_CHECK, context=bytes.fromhex(vault_id)) as tag:
        return tag.expose_bytes()[:CHECK_BYTES]


def derive_kek(master: SecretBytes, version: KeyVersion, *, vault_id: str) -> SecretBytes:
    """The KEK of 32 bytes that ``version``'s salt and the master key determine."""
    context = bytes.fromhex(vault_id) + version.version.to_bytes(4, "big")
    return kdf.derive(master, kdf.Purpose.KEK, context=context, salt=version.material)


def is_wrapped(version: KeyVersion) -> bool:
    """Whether a KEK version's material is the KEK itself, wrapped, and not its salt."""
    return len(version.material) > SALT_BYTES


class Hierarchy:
    """KEKs in memory, and whatever has been derived or unwrapped with them.

    Args:
        vault_id: 32 hexadecimal digits.
        kek_id: The KEK keyset's id, 32 hexadecimal digits.
        keks: The KEK versions in memory, by number; owned by the hierarchy from now on.
    """

    def __init__(self, *, vault_id: str, kek_id: str, keks: dict[int, SecretBytes]) -> None:
        self._vault_id = bytes.fromhex(vault_id)
        self._kek_id = bytes.fromhex(kek_id)
        self._keks = keks
        self._wrapping: dict[int, SecretBytes] = {}
        self._documents: dict[tuple[str, str, int], DocumentKeys] = {}
        self._deks: dict[tuple[str, int], SecretBytes] = {}
        self._closed = False
        self._locked_down = False

    @classmethod
    def from_master(cls, master: SecretBytes, *, vault_id: str, keks: Keyset) -> Hierarchy:
        """Every KEK version that is not destroyed.

        One whose material is a salt is derived. One that was made under an earlier master
        key is itself wrapped, under a KEK version that is not.

        Raises:
            DecryptionError: A wrapped one does not open.
        """
        living = [v for v in keks.versions if v.state is not KeyState.DESTROYED]
        derived = {
            version.version: derive_kek(master, version, vault_id=vault_id)
            for version in living
            if not is_wrapped(version)
        }
        made = cls(vault_id=vault_id, kek_id=keks.id, keks=derived)
        for version in filter(is_wrapped, living):
            made._keks[version.version] = made._open(version, keks.id)
        return made

    @property
    def kek_versions(self) -> frozenset[int]:
        """The KEK versions in memory."""
        return frozenset(self._keks)

    def document_keys(
        self, section: str, version: int, *, keyset: Keyset | None = None
    ) -> DocumentKeys:
        """The keys of a section's document.

        Args:
            section: The document's name.
            version: Of the key from which they are derived.
            keyset: That key; a KEK when not given.

        Raises:
            UnknownKeyError: There is no such version, or it is destroyed.
            DecryptionError: The wrapped document key does not open.
        """
        place = (section, self._kek_id.hex() if keyset is None else keyset.id, version)
        found = self._documents.get(place)
        if found is None:
            key = self._kek(version) if keyset is None else self.unwrap(keyset, version)
            context = section.encode()
            found = DocumentKeys(
                kdf.derive(key, kdf.Purpose.FILE_BODY, context=context),
                kdf.derive(key, kdf.Purpose.FILE_MAC, context=context),
            )
            self._documents[place] = found
            for made in found:
                self._kept(made)
        return found

    def new_keyset(self, label: str, *, kek_version: int, now: float) -> Keyset:
        """A keyset with a random first version, wrapped under a KEK version."""
        key_id = os.urandom(16).hex()
        with SecretBytes.random(KEY_BYTES) as key:
            wrapped = self.wrap(key, key_id=key_id, version=1, kek_version=kek_version)
        return Keyset.new(id=key_id, label=label, material=wrapped, parent=kek_version, now=now)

    def wrap(self, dek: SecretBytes, *, key_id: str, version: int, kek_version: int) -> bytes:
        """Encrypts a DEK of 32 bytes under a KEK version; returns its envelope."""
        return envelope.encrypt(
            self._wrapping_key(kek_version),
            dek,
            context=self._dek_context(key_id, version),
            key_id=self._kek_id,
            key_version=kek_version,
        )

    def with_kek(self, version: int, kek: SecretBytes) -> Hierarchy:
        """Copies of these KEKs, and one more, which the new hierarchy owns."""
        keks = {number: SecretBytes.copy_of(key) for number, key in list(self._keks.items())}
        return Hierarchy(
            vault_id=self._vault_id.hex(),
            kek_id=self._kek_id.hex(),
            keks={**keks, version: kek},
        )

    def rewrap(self, wrapped: KeyVersion, *, key_id: str, under: int) -> bytes:
        """The envelope of the same key under another KEK version.

        Raises:
            IntegrityError: It does not open, or that KEK is not in memory.
        """
        with self._open(wrapped, key_id) as key:
            return self.wrap(key, key_id=key_id, version=wrapped.version, kek_version=under)

    def same(
        self, ours: KeyVersion, theirs: KeyVersion, *, other: Hierarchy, key_id: str
    ) -> bool:
        """Whether what ``other`` opens anew is the same key as ours.

        Raises:
            IntegrityError: One does not open.
        """
        with self._open(ours, key_id) as left, other._open(theirs, key_id) as right:
            return left.equals(right)

    def wrap_kek(self, version: int, *, under: int) -> bytes:
        """Encrypts a KEK version under another; returns its envelope.

        Raises:
            UnknownKeyError: One of them is not in memory.
        """
        kek = self._kek(version)
        return self.wrap(kek, key_id=self._kek_id.hex(), version=version, kek_version=under)

    def unwrap(self, keyset: Keyset, version: int) -> SecretBytes:
        """The DEK of that version; the hierarchy owns it.

        Raises:
            UnknownKeyError: No such version, or it is destroyed.
            DecryptionError: The wrapped DEK does not open.
        """
        found = self._deks.get((keyset.id, version))
        if found is not None:
            return found
        wrapped = keyset.get(version)
        if wrapped.state is KeyState.DESTROYED:
            raise UnknownKeyError(
                f"Version {version} of key {keyset.id} is destroyed.",
                hint="What it protected was deleted on purpose and can't be read.",
            )
        dek = self._open(wrapped, keyset.id)
        return self._kept(self._deks.setdefault((keyset.id, version), dek))

    def forget(self, key_id: str, version: int) -> None:
        """Wipes a cached key and what was derived from it, after it was destroyed."""
        places = [place for place in list(self._documents) if place[1:] == (key_id, version)]
        gone = [key for place in places for key in self._documents.pop(place, ())]
        for key in filter(None, [self._deks.pop((key_id, version), None), *gone]):
            key.close()

    def forget_destroyed(self, keysets: Mapping[bytes, Keyset]) -> None:
        """Wipes the cached DEKs whose versions another process has destroyed.

        Args:
            keysets: All that there are, by id.
        """
        for key_id, version in list(self._deks):
            keyset = keysets.get(bytes.fromhex(key_id))
            if keyset is None or keyset.get(version).state is KeyState.DESTROYED:
                self.forget(key_id, version)

    def forget_keks(self, keep: frozenset[int]) -> None:
        """Wipes the KEK versions that are not to be kept, after they were destroyed."""
        for version in self.kek_versions - keep:
            self.forget(self._kek_id.hex(), version)
            gone = [self._keks.pop(version, None), self._wrapping.pop(version, None)]
            for key in filter(None, gone):
                key.close()

    @property
    def closed(self) -> bool:
        """Whether the keys were wiped."""
        return self._closed

    def close(self, *, locked_down: bool = False) -> None:
        """Wipes every key; idempotent. Each later use says why."""
        self._locked_down = self._locked_down or (locked_down and not self._closed)
        self._closed = True
        single = [*self._keks.values(), *self._wrapping.values(), *self._deks.values()]
        for key in single:
            key.close()
        self._keks.clear()
        self._wrapping.clear()
        self._deks.clear()
        for place in list(self._documents):
            for key in self._documents.pop(place, ()):
                key.close()

    def _open(self, wrapped: KeyVersion, key_id: str) -> SecretBytes:
        return envelope.decrypt(
            lambda _, kek_version: self._wrapping_key(kek_version),
            wrapped.material,
            context=self._dek_context(key_id, wrapped.version),
        )

    def _dek_context(self, key_id: str, version: int) -> Context:
        return Context(
            vault_id=self._vault_id,
            section=KEYSTORE,
            record_id=bytes.fromhex(key_id),
            record_version=version,
        )

    def _kept(self, key: SecretBytes) -> SecretBytes:
        """A key that was just put here; another thread may have wiped all others since."""
        if self._closed:
            key.close()
            self._refuse_closed()
        return key

    def _refuse_closed(self) -> None:
        if self._locked_down:
            raise LockedDownError("The vault is locked down.", hint=UNLOCK)
        if self._closed:
            raise VaultSealedError("The vault is sealed.", hint="Unseal it again.")

    def _kek(self, version: int) -> SecretBytes:
        self._refuse_closed()
        found = self._keks.get(version)
        if found is None:
            raise UnknownKeyError(
                f"KEK version {version} is not in the key store.",
                hint="Restore the key store that belongs to this data.",
            )
        return found

    def _wrapping_key(self, kek_version: int) -> SecretBytes:
        found = self._wrapping.get(kek_version)
        if found is None:
            found = kdf.derive(self._kek(kek_version), kdf.Purpose.KEK_WRAP)
            found = self._kept(self._wrapping.setdefault(kek_version, found))
        return found
