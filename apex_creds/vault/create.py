"""Creates a vault, and opens the storage that has its documents.

Guarantee: of any number of processes that create a vault at one place, exactly one
succeeds; the others leave no key behind. A crash at any point leaves either a whole vault
or none; a master key that nothing refers to yet is used by the next init, or taken back; so
it is with a server that goes away.

A storage that is shared works in a thread for itself, so that code in any event loop, or in
none, may use the vault; the home of such a vault has its audit log, its policy and its
configuration, and no documents.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.document import Header, MasterRecord, RootHeader, parse
from apex_creds.documents.grant_set import grant_shards
from apex_creds.documents.keystore import (
    ROOT_LABEL,
    Keystore,
    KeystoreBody,
    MasterKeySource,
    root_key,
    seal_keystore,
    shard_names,
    with_document_key,
)
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import (
    ApexCredsError,
    ConflictError,
    InvalidInputError,
    MasterKeyError,
    MasterKeyExistsError,
    MasterKeyNotFoundError,
    VaultExistsError,
)
from apex_creds.fs.home import make_folders
from apex_creds.keys import (
    MasterKeyAdopter,
    MasterKeyPlacer,
    MasterKeyProvider,
    provider_from_uri,
)
from apex_creds.keys.hierarchy import (
    KEY_BYTES,
    SALT_BYTES,
    Hierarchy,
    master_check,
)
from apex_creds.keys.keyset import Keyset
from apex_creds.model import SECTION_NAMES, Clock
from apex_creds.storage.base import KEYSTORE, STATE_DOCUMENTS, Data, HidesNames, Storage, shared
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.portal import StoragePortal
from apex_creds.storage.storage_factory import Located, remember_storage, storage_for
from apex_creds.vault.unfinished import Begun, BegunNote

FIRST = 1


async def create_vault(
    storage: Storage,
    *,
    provider: MasterKeyProvider,
    hashed_names: bool,
    now: float,
    begun: Begun | None = None,
    use_existing_key: bool = False,
) -> SecretBytes:
    """Makes a master key and a key store under it.

    Args:
        storage: Where the vault is to be.
        provider: Where its master key is to be.
        hashed_names: See ``KeystoreBody``.
        now: The time.
        begun: What is noted of an init that was interrupted, whose key is used again, and
            of this one; nothing is noted without.
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
    begun = begun or Begun(None)
    wanted = await _noted(begun, provider, hashed_names=hashed_names)
    vault_id = wanted.vault_id
    try:
        if use_existing_key:
            master, params = await _adopted_key(provider, vault_id)
        elif isinstance(provider, MasterKeyPlacer):
            master, params = await _placed_key(provider, wanted, begun)
        else:
            begun.write(wanted)
            master, params = await provider.create(vault_id=vault_id, version=FIRST)
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
        # A server may still be at a write that got no answer: then the key stays.
        known = shared(storage) is None or isinstance(error, ConflictError)
        if known and not use_existing_key:
            await _discard_unless_used(storage, provider, vault_id)
            begun.clear()
        if isinstance(error, ConflictError):
            raise _exists() from None
        raise
    return master


async def is_unfinished(
    storage: Storage, begun: Begun, *, provider: MasterKeyProvider, hashed_names: bool
) -> bool:
    """Whether the vault that is there is the one that an interrupted init was to make so.

    It is whole then, and was never opened.
    """
    note = begun.read()
    stored = None if note is None else await storage.read(KEYSTORE)
    if note is None or stored is None:
        return False
    header = parse(stored.data, section=KEYSTORE, vault_id=None).header
    wanted = (header.vault_id, provider.uri, hashed_names)
    return wanted == (note.vault_id, note.uri, note.hashed_names)


async def _noted(begun: Begun, provider: MasterKeyProvider, *, hashed_names: bool) -> BegunNote:
    """The vault to make: that of the note, if its key is to be in the same place.

    A master key that an interrupted init made in another place is removed, if it answers.
    """
    note = begun.read()
    if note is not None and note.uri == provider.uri:
        return msgspec.structs.replace(note, hashed_names=hashed_names)
    if note is not None:
        with contextlib.suppress(MasterKeyError, InvalidInputError):
            other = provider_from_uri(note.uri)
            key = await _made_key(other, note) if isinstance(other, MasterKeyPlacer) else None
            if isinstance(other, MasterKeyPlacer) and key is not None:
                with key:  # placed again, so that the provider knows that it made it
                    await other.place(vault_id=note.vault_id, version=FIRST, key=key)
                await other.discard(vault_id=note.vault_id, version=FIRST)
        begun.clear()
    fresh = os.urandom(16).hex()
    return BegunNote(vault_id=fresh, uri=provider.uri, check="", hashed_names=hashed_names)


async def _made_key(provider: MasterKeyPlacer, note: BegunNote) -> SecretBytes | None:
    """The key of the note, if it was made; another one in its place is left alone."""
    try:
        key = await provider.load(vault_id=note.vault_id, version=FIRST, params={})
    except MasterKeyNotFoundError:
        return None
    if master_check(key, vault_id=note.vault_id).hex() == note.check:
        return key
    key.close()
    return None


async def _placed_key(
    provider: MasterKeyPlacer, wanted: BegunNote, begun: Begun
) -> tuple[SecretBytes, dict[str, str]]:
    """Notes which key is made before it is made."""
    key = await _made_key(provider, wanted)
    key = key or SecretBytes.random(KEY_BYTES)
    try:
        check = master_check(key, vault_id=wanted.vault_id).hex()
        begun.write(msgspec.structs.replace(wanted, check=check))
        params = await provider.place(vault_id=wanted.vault_id, version=FIRST, key=key)
    except BaseException as error:
        key.close()
        if isinstance(error, ApexCredsError):  # the note of a key that was not made is cleared
            with contextlib.suppress(ApexCredsError):
                note = begun.read()
                made = None if note is None else await _made_key(provider, note)
                if made is None:
                    begun.clear()
                else:
                    made.close()
        raise
    return key, params


async def _adopted_key(
    provider: MasterKeyProvider, vault_id: str
) -> tuple[SecretBytes, dict[str, str]]:
    if isinstance(provider, MasterKeyAdopter):
        return await provider.adopt(vault_id=vault_id, version=FIRST)
    raise InvalidInputError(
        f"{provider.uri} has no keys that were made before.",
        hint="Use file:PATH, or leave out --use-existing-key.",
    )


def _first_document(
    master: SecretBytes, record: MasterRecord, *, vault_id: str, hashed_names: bool, now: float
) -> Data:
    keks = Keyset.new(
        id=os.urandom(16).hex(),
        label="kek",
        material=os.urandom(SALT_BYTES),
        parent=FIRST,
        now=now,
    )
    header = Header(
        vault_id=vault_id,
        section=KEYSTORE,
        generation=1,
        key_id=keks.id,
        key_version=FIRST,
        written=now,
        root=RootHeader(master=record, keks=keks),
    )
    hierarchy = Hierarchy.from_master(master, vault_id=vault_id, keks=keks)
    try:
        root = hierarchy.new_keyset(ROOT_LABEL, kek_version=FIRST, now=now)
        body = KeystoreBody(root=root, hashed_names=hashed_names)
        body = with_document_key(body, hierarchy, kek_version=FIRST, now=now)
        return seal_keystore(header, body, hierarchy=hierarchy)
    finally:
        hierarchy.close()


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
    names = list(SECTION_NAMES)
    counts = {several.shards if several else 0, getattr(storage, "division", 0)}
    names = [each for name in names for n in counts for each in shard_names(name, n)]
    names += (*STATE_DOCUMENTS, *grant_shards()) if several else ()
    with kdf.derive(root_key(keystore), kdf.Purpose.NAME_INDEX) as index:
        stems = {name: kdf.hmac_sha256(index, name.encode()).hex()[:32] for name in names}
    storage.map_names(stems.__getitem__, candidates=names)


def storage_at(home: Path, storage: Storage | str | None = None) -> Storage:
    """The storage of the vault at ``home``: ``storage``, or what the home says, or its files.

    Raises:
        InvalidInputError, NotInstalledError: It is in a database that can't be used.
    """
    if storage is None or isinstance(storage, str):
        storage = storage_for(home, url=storage)
    several = shared(storage)
    if several is None or isinstance(storage, StoragePortal):
        return storage
    return StoragePortal(several)


async def note_place(home: Path, storage: Storage) -> None:
    """Before a vault is made: its home is there, and is to know where its documents are.

    Raises:
        VaultExistsError: There is a vault in that place already; nothing was noted.
        StorageError: The database or the home can't be used.
    """
    inner = storage.inner if isinstance(storage, StoragePortal) else storage
    if not isinstance(inner, FileStorage):
        await anyio.to_thread.run_sync(make_folders, home)
    if not isinstance(inner, Located):
        return
    await storage.prepare()
    if await storage.read(KEYSTORE) is not None:
        raise VaultExistsError(
            f"There is a vault in {inner.url} already.",
            hint="Share it with apex-creds init --join, or make another one with ?space=new.",
        )
    await remember_storage(home, inner)


async def open_documents(
    home: Path, storage: Storage, *, clock: Clock, masters: MasterKeySource
) -> DocumentStore:
    """The documents of one vault, still sealed; see ``DocumentStore``.

    Raises:
        StorageError: The home of a vault elsewhere can't be made.
    """
    if not isinstance(storage, FileStorage):
        await anyio.to_thread.run_sync(make_folders, home)
    return DocumentStore(storage, clock=clock, masters=masters)
