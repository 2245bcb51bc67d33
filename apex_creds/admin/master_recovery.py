"""Exports the master key for recovery, and gives it to a provider again.

Guarantee: a key is given to a provider only after it opened the key store of this vault,
and its body; a recovery counts as one only after it was tried. The vault records that there
is a recovery (who, when, k of n, of which master key version), never anything of a share.
Each step can be done again after a crash, and does nothing where it was done.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import Final

import msgspec

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.crypto import kdf, public_key
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import observe
from apex_creds.documents.cached import Document
from apex_creds.documents.document import Header, MasterRecord, RootHeader, parse
from apex_creds.documents.keystore import Keystore, load_master, open_keystore, root_header
from apex_creds.documents.store import DocumentStore, Rekeyed
from apex_creds.errors import (
    DecryptionError,
    InvalidInputError,
    KeyStateError,
    MasterKeyError,
    MasterKeyReadOnlyError,
    VaultNotFoundError,
    WrongMasterKeyError,
)
from apex_creds.keys import ADOPTED, MasterKeyProvider
from apex_creds.keys.hierarchy import KEYSTORE, Hierarchy, master_check
from apex_creds.keys.provider import MasterKeyReceiver, hold
from apex_creds.scheduler import master_rotation
from apex_creds.storage.base import Storage
from apex_creds.vault.vault import Vault

__all__ = [
    "Recovery",
    "RecoveryState",
    "check_key",
    "note_provider",
    "open_package",
    "opens",
    "read_root",
    "record",
    "recovery_document",
    "reset_master",
    "restore_key",
    "seal_package",
    "take_key",
]

DOCUMENT: Final = "recovery"

_PACKAGE: Final = b"apex-creds recovery v1\n"
_HISTORY: Final = 50


class Recovery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That there is a recovery; nothing of what it consists of.

    Attributes:
        at: When it was made, Unix seconds.
        by: The user of the machine who made it.
        master_version: Of which master key.
        threshold: How many shares restore it; 0 where it was sealed to a public key.
        shares: How many there are.
        sealed_to: The public key, base64; empty for shares.
        tested: When it was last seen to open the vault; 0 if never.
    """

    at: float
    by: str
    master_version: int
    threshold: int = 0
    shares: int = 0
    sealed_to: str = ""
    tested: float = 0.0

    @property
    def kind(self) -> str:
        """How it was made, in words."""
        if self.sealed_to:
            return "sealed to a public key"
        return f"{self.threshold} of {self.shares} shares"


class RecoveryState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The document ``recovery``: what was made, newest last."""

    made: tuple[Recovery, ...] = ()

    def lacks(self, master_version: int) -> str:
        """What is wrong with the recovery of a master key, in words; empty if nothing."""
        if not self.made:
            return "none exists"
        current = [one for one in self.made if one.master_version == master_version]
        if not current:
            return f"it is of an earlier master key than version {master_version}"
        return "" if any(one.tested for one in current) else "it was never tried"


def recovery_document(store: DocumentStore) -> Document[RecoveryState]:
    """The document of a vault."""
    return Document(store, name=DOCUMENT, empty=RecoveryState())


async def record(vault: Vault, made: Recovery) -> None:
    """Notes a recovery, or that one was tried again; in the log first.

    Raises:
        AuditUnavailableError: The event could not be written.
    """
    what = "tried" if made.tested else "made, not tried"
    _log(vault, "recovery export", f"{made.kind}, {what}", version=made.master_version)

    def change(state: RecoveryState) -> RecoveryState:
        kept = tuple(one for one in state.made if _key(one) != _key(made))
        return RecoveryState(made=(*kept, made)[-_HISTORY:])

    await recovery_document(vault.store).change(change)


def _key(one: Recovery) -> tuple[float, int, str]:
    return one.at, one.master_version, one.sealed_to


def by_now(vault: Vault) -> tuple[float, str]:
    """When and who, for a new ``Recovery``."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):
        user = "unknown"
    return vault.clock.time(), user


# -- out ---------------------------------------------------------------------------------


async def take_key(vault: Vault, *, action: str = "recovery export") -> SecretBytes:
    """The master key, for an export that is in the log first; the caller closes it.

    Raises:
        LockedDownError: The vault is locked down.
        MasterKeyError: It can't be had.
        AuditUnavailableError: The event could not be written.
    """
    await vault.check_not_locked_down()
    keystore = await vault.store.keystore()
    current = keystore.root_header.master
    _log(vault, action, "the master key leaves its provider", version=current.version)
    key = await vault.store.masters.load(current, vault.vault_id)
    try:
        check_key(key, keystore.header)
    except BaseException:
        key.close()
        raise
    return key


def seal_package(key: SecretBytes, *, header: Header, public: bytes) -> bytes:
    """The master key with the vault it is of, sealed to an X25519 public key.

    Raises:
        InvalidInputError: That public key can't be sealed to.
    """
    version = root_header(header).master.version
    named = _PACKAGE + bytes.fromhex(header.vault_id) + version.to_bytes(4, "big")
    with SecretBytes.from_bytes(named + key.expose_bytes()) as content:
        return public_key.seal_to(public, content)


def open_package(private: SecretBytes, sealed: bytes, *, header: Header) -> SecretBytes:
    """The master key out of what ``seal_package`` made; the caller closes it.

    Raises:
        DecryptionError: It was sealed to another key, altered, or is nothing of the kind.
        WrongMasterKeyError: It is of another vault.
    """
    with public_key.open_sealed(private, sealed) as content, content.view() as view:
        at = len(_PACKAGE)
        if len(view) != at + 16 + 4 + 32 or bytes(view[:at]) != _PACKAGE:
            raise DecryptionError("That holds no master key of apex-creds.")
        if bytes(view[at : at + 16]).hex() != header.vault_id:
            raise _wrong("It holds the master key of another vault.")
        return SecretBytes.copy_of(view[at + 20 :])


# -- in ----------------------------------------------------------------------------------


async def read_root(storage: Storage) -> tuple[Header, bytes]:
    """The key store as stored: its header, and all its bytes. Nothing is checked yet.

    Raises:
        VaultNotFoundError: There is none.
        IntegrityError: It is malformed.
    """
    stored = await storage.read(KEYSTORE)
    if stored is None:
        raise VaultNotFoundError(
            "There is no vault here.", hint="Put its directory there, or name it with --home."
        )
    return parse(stored.data, section=KEYSTORE, vault_id=None).header, stored.data


def check_key(key: SecretBytes, header: Header) -> None:
    """Returns if a master key is the one that the key store names.

    Raises:
        WrongMasterKeyError: It is not.
    """
    check = master_check(key, vault_id=header.vault_id)
    current = root_header(header).master
    if not kdf.constant_time_equal(check, current.check):
        raise _wrong(f"That is not master key v{current.version} of this vault.")


def opens(key: SecretBytes, data: bytes) -> Keystore:
    """Opens a whole key store with a master key, as unsealing does.

    The caller closes its ``hierarchy``.

    Raises:
        WrongMasterKeyError: It is not the key of that key store.
        IntegrityError: The key store is not what was written.
    """
    packed = parse(data, section=KEYSTORE, vault_id=None)
    check_key(key, packed.header)
    keks = root_header(packed.header).keks
    hierarchy = Hierarchy.from_master(key, vault_id=packed.header.vault_id, keks=keks)
    try:
        return open_keystore(packed, token=None, hierarchy=hierarchy)
    except BaseException:
        hierarchy.close()
        raise


async def restore_key(key: SecretBytes, data: bytes, provider: MasterKeyProvider) -> None:
    """Gives a recovered master key to a provider, once it has opened the key store.

    Args:
        key: The recovered key.
        data: The key store's document.
        provider: Where the key is to be kept from now on.

    Raises:
        WrongMasterKeyError: It is not the vault's, or the provider has another one there.
        MasterKeyError: The provider can't keep it.
    """
    found = opens(key, data)
    found.hierarchy.close()
    if not isinstance(provider, MasterKeyReceiver):
        raise MasterKeyReadOnlyError(
            f"{provider.uri} can't be given a key that exists.",
            hint="Use --master keyring: or file:PATH, or recovery reset-master.",
        )
    version = found.root_header.master.version
    await provider.receive(vault_id=found.header.vault_id, version=version, key=key)


async def note_provider(vault: Vault, provider: MasterKeyProvider) -> None:
    """Has the key store name the provider that the key was restored to; audited.

    Raises:
        ConflictError: Other writers were first, a hundred times.
    """
    before = (await vault.store.keystore()).root_header.master
    _log(vault, "recovery restore", f"into {provider.uri}", version=before.version)

    def change(found: Keystore) -> Rekeyed | None:
        current = found.root_header.master
        if current.uri == provider.uri or current.version != before.version:
            return None
        named = msgspec.structs.replace(current, uri=provider.uri, params={})
        root = RootHeader(master=named, keks=found.root_header.keks)
        return Rekeyed(root=root, body=found.body, hierarchy=found.hierarchy)

    await vault.store.commit_rekeyed(change)


@dataclass(frozen=True, slots=True)
class Reset:
    """What ``reset_master`` did: the versions before and after."""

    before: int
    after: int


async def has_key(provider: MasterKeyProvider, header: Header) -> bool:
    """Whether a provider keeps the master key that the key store names.

    One that is derived from a passphrase is kept nowhere.
    """
    current = root_header(header).master
    if current.params.keys() - {ADOPTED}:
        return False
    try:
        with await load_master(provider, header) as key:
            check_key(key, header)
    except MasterKeyError:
        return False
    return True


async def reset_master(vault: Vault, *, lost: MasterRecord) -> Reset:
    """Makes a new master key, and moves the vault to it, while the lost one is at hand.

    Args:
        vault: Unsealed with ``hold(provider, version=…, key=…)``: the recovered key of the
            lost version, in front of the provider that is to keep the new one.
        lost: What the key store said of the lost key.

    Raises:
        KeyStateError: The vault has another master key by now.
        MasterKeyError: The provider can't make a key.
    """
    _log(vault, "recovery reset-master", f"v{lost.version} is lost", version=lost.version)
    now = vault.clock.time()
    with observe.triggered("recovery"):
        after = await master_rotation.rotate_master(vault.store, replaces=lost.version, now=now)
    made = after.root_header.master
    if made.version <= lost.version:
        raise KeyStateError("The master key was replaced meanwhile.", hint="Look again.")
    _log(vault, "recovery reset-master", f"v{made.version} in {made.uri}", version=made.version)
    return Reset(lost.version, made.version)


def _log(vault: Vault, action: str, detail: str, *, version: int) -> None:
    event = AuditEvent(
        time=vault.clock.time(),
        kind=EventKind.RECOVERY,
        action=action,
        key_version=version,
        detail=detail,
    )
    vault.audit.append(event)


def _wrong(message: str) -> WrongMasterKeyError:
    return WrongMasterKeyError(
        message, hint="Nothing was changed. Use the shares of this vault's current master key."
    )


def parse_public(text: str) -> bytes:
    """A public key of 32 bytes from base64.

    Raises:
        InvalidInputError: It is none.
    """
    from apex_creds.keys.provider import decode_key

    found = decode_key(text.strip())
    if found is None:
        raise InvalidInputError(
            "That is no public key.", hint="Make one with: apex-creds recovery keygen FILE"
        )
    with found:
        return found.expose_bytes()


__all__ += ["Reset", "by_now", "has_key", "hold", "parse_public"]
