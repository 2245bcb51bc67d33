"""How a vault comes to be.

Guarantee: of any number of processes that create a vault at one place, exactly one
succeeds; the others leave no key behind. A crash at any point leaves either a whole vault
or none (and at most a master key that nothing refers to); so does a server that goes away.
"""

from __future__ import annotations

import itertools
import os

import anyio

from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    ConflictError,
    InvalidInputError,
    MasterKeyExistsError,
    VaultExistsError,
)
from apex_creds.keys import MasterKeyAdopter, MasterKeyProvider
from apex_creds.keys.hierarchy import (
    KEY_BYTES,
    KEYSTORE,
    SALT_BYTES,
    Hierarchy,
    master_check,
)
from apex_creds.keys.keyset import Keyset
from apex_creds.model import SECTIONS
from apex_creds.storage.base import STATE_DOCUMENTS, Data, HidesNames, Storage, shared
from apex_creds.vault.document import Header, MasterRecord, RootHeader
from apex_creds.vault.keystore import (
    ROOT_LABEL,
    Keystore,
    KeystoreBody,
    root_key,
    seal_keystore,
)
from apex_creds.vault.shards import shard_names

FIRST = 1


async def create(
    storage: Storage,
    *,
    provider: MasterKeyProvider,
    hashed_names: bool,
    now: float,
    use_existing_key: bool = False,
) -> SecretBytes:
    """Makes a master key and a key store under it.

    Args:
        storage: Where the vault is to be.
        provider: Where its master key is to be.
        hashed_names: See ``KeystoreBody``.
        now: The time.
        use_existing_key: The provider has the key already; it is used, and never deleted.

    Returns:
        The master key, for the first unsealing; the caller closes it.

    Raises:
        VaultExistsError: There is a vault already, or another process was first.
        MasterKeyExistsError: The provider has a key already, which may be another vault's.
        MasterKeyError: The provider can't make a key, or has none to use.
        InvalidInputError: That provider never has keys that exist already.
    """
    await storage.prepare()
    if await storage.read(KEYSTORE) is not None:
        raise _exists()
    vault_id = os.urandom(16).hex()
    try:
        master, params = await _first_key(provider, vault_id, use_existing=use_existing_key)
    except MasterKeyExistsError:
        if await storage.read(KEYSTORE) is None:
            raise
        raise _exists() from None  # another process was first, with this key
    record = MasterRecord(
        version=FIRST,
        uri=provider.uri,
        params=params,
        check=master_check(master, vault_id=vault_id),
    )
    data = _first_document(
        master, record, vault_id=vault_id, hashed_names=hashed_names, now=now
    )
    try:
        await storage.write(KEYSTORE, data, expected=None)
    except BaseException as error:
        master.close()
        # A server may still be at a write that nobody got an answer to: then the key stays.
        known = shared(storage) is None or isinstance(error, ConflictError)
        if known and not use_existing_key:
            await _discard_unless_used(storage, provider, vault_id)
        if isinstance(error, ConflictError):
            raise _exists() from None
        raise
    return master


async def _first_key(
    provider: MasterKeyProvider, vault_id: str, *, use_existing: bool
) -> tuple[SecretBytes, dict[str, str]]:
    if not use_existing:
        return await provider.create(vault_id=vault_id, version=FIRST)
    if isinstance(provider, MasterKeyAdopter):
        return await provider.adopt(vault_id=vault_id, version=FIRST)
    raise InvalidInputError(
        f"{provider.uri} has no keys that were made before.",
        hint="Use file:PATH, or leave out --use-existing-key.",
    )


def _first_document(
    master: SecretBytes, record: MasterRecord, *, vault_id: str, hashed_names: bool, now: float
) -> Data:
    keks = _keyset("kek", os.urandom(SALT_BYTES), now)
    header = Header(
        vault_id=vault_id,
        section=KEYSTORE,
        generation=1,
        kek_id=keks.id,
        kek_version=FIRST,
        written=now,
        root=RootHeader(master=record, keks=keks),
    )
    hierarchy = Hierarchy.from_master(master, vault_id=vault_id, keks=keks)
    try:
        body = KeystoreBody(root=_root(hierarchy, now), hashed_names=hashed_names)
        return seal_keystore(header, body, hierarchy=hierarchy)
    finally:
        hierarchy.close()


def _root(hierarchy: Hierarchy, now: float) -> Keyset:
    key_id = os.urandom(16).hex()
    with SecretBytes.random(KEY_BYTES) as key:
        wrapped = hierarchy.wrap(key, key_id=key_id, version=FIRST, kek_version=FIRST)
    return Keyset.new(id=key_id, label=ROOT_LABEL, material=wrapped, parent=FIRST, now=now)


def _keyset(label: str, material: bytes, now: float) -> Keyset:
    return Keyset.new(
        id=os.urandom(16).hex(), label=label, material=material, parent=FIRST, now=now
    )


async def _discard_unless_used(
    storage: Storage, provider: MasterKeyProvider, vault_id: str
) -> None:
    """Takes back the master key of a vault that did not come to be.

    A write that failed late may have happened, so what is stored decides.
    """
    with anyio.CancelScope(shield=True):
        stored = await storage.read(KEYSTORE)
        if stored is None or vault_id.encode() not in stored.data:
            await provider.discard(vault_id=vault_id, version=FIRST)


def _exists() -> VaultExistsError:
    return VaultExistsError(
        "There is a vault here already.",
        hint="Use it, or choose another directory with --home.",
    )


def map_names(storage: Storage, keystore: Keystore) -> None:
    """Gives the storage the keyed hashes of names, where it is to keep documents under them.

    A shared storage always is; files are where the vault was made so.
    """
    several = shared(storage)
    wanted = several is not None or keystore.body.hashed_names
    if not wanted or not isinstance(storage, HidesNames):
        return
    names = list(SECTIONS.values())
    if several is not None:
        parts = [shard_names(name, several.shards) for name in names]
        names = [*itertools.chain(*parts), *STATE_DOCUMENTS]
    with kdf.derive(root_key(keystore), kdf.Purpose.NAME_INDEX) as index:
        stems = {name: kdf.hmac_sha256(index, name.encode()).hex()[:32] for name in names}
    storage.map_names(stems.__getitem__, candidates=names if several else None)
