"""Master key rotation: a new key at its provider, and the key store under it, in one commit.

Guarantee: whatever fails, the vault opens with the master key that its key store names. A
new master key is stored by its provider and read back before the key store names it
(rule 4). A rotation names the version that it replaces, and does nothing where that was
replaced already: of any number of processes that rotate at once, one does. The master key is
in memory for the moment of the operation alone.
"""

from __future__ import annotations

import contextlib
from typing import Final

import anyio

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import observe
from apex_creds.documents.document import MasterRecord
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.store import DocumentStore, Rekeyed
from apex_creds.errors import (
    ApexCredsError,
    ConflictError,
    KeyStateError,
    MasterKeyExistsError,
    MasterKeyUnavailableError,
)
from apex_creds.keys import ADOPTED, MasterKeyProvider, SharedPlace
from apex_creds.keys.hierarchy import (
    master_check,
)
from apex_creds.scheduler.kek_rotation import rekeyed

_MAX_TRIES: Final = 2000


@observe.rotating("master")
async def rotate_master(store: DocumentStore, *, replaces: int, now: float) -> Keystore:
    """Makes a new master key, a KEK under it, and wraps every key under that.

    It is one that was made here: what a provider has already under the next versions, be it
    planted, leaked or left by a process that was killed, is passed over. The old master key
    stays at its provider until ``discard_master``.

    Raises:
        MasterKeyReadOnlyError: The provider can't make keys.
        MasterKeyError: The provider does not answer, or did not keep the key.
    """
    before = await store.stored_keystore()  # no key is made while the storage is away
    vault_id, old = before.header.vault_id, before.root_header.master
    if old.version != replaces:
        return before
    provider = store.masters.provider(old.uri)
    kept = await _keeps_all(provider, vault_id, old)
    version, master, params = await _make_master(provider, vault_id, after=replaces)
    with master:
        record = MasterRecord(
            version=version,
            uri=provider.uri,
            params=params | kept,
            check=master_check(master, vault_id=vault_id),
        )

        def change(found: Keystore) -> Rekeyed | None:
            if found.root_header.master.version != replaces:
                return None
            return rekeyed(found, master, record, now=now)

        try:
            after = await store.commit_rekeyed(change)
        except ApexCredsError as error:
            # After a lost answer a server may still be at the write: reading decides nothing.
            refused = isinstance(error, ConflictError | KeyStateError)
            if store.shared is None or refused:
                await _discard_unless_named(store, provider, vault_id, record, never=refused)
            raise
        if after.root_header.master != record:
            await _discard_unless_named(store, provider, vault_id, record, never=True)
        return after


async def _make_master(
    provider: MasterKeyProvider, vault_id: str, *, after: int
) -> tuple[int, SecretBytes, dict[str, str]]:
    """A new master key under the first version number that is free at the provider."""
    for version in range(after + 1, after + _MAX_TRIES):
        with contextlib.suppress(MasterKeyExistsError):
            made, params = await provider.create(vault_id=vault_id, version=version)
            return version, made, params
    raise MasterKeyUnavailableError(
        f"{provider.uri} has {_MAX_TRIES} later master keys that nobody made here.",
        hint="Find out who put them there, and remove them.",
    )


async def _keeps_all(
    provider: MasterKeyProvider, vault_id: str, old: MasterRecord
) -> dict[str, str]:
    """The mark of a place whose keys may be another vault's too."""
    if provider.uri == old.uri:
        return {ADOPTED: old.params[ADOPTED]} if ADOPTED in old.params else {}
    shared = isinstance(provider, SharedPlace) and await provider.share(vault_id=vault_id)
    return {ADOPTED: "yes"} if shared else {}


async def _discard_unless_named(
    store: DocumentStore,
    provider: MasterKeyProvider,
    vault_id: str,
    made: MasterRecord,
    *,
    never: bool,
) -> None:
    """Takes back a key that was made for nothing; what is stored decides whether it was.

    Where that can't be read, the key stays: a later rotation passes over it.

    Args:
        store: Whose key it would have been.
        provider: Made it.
        vault_id: The vault's.
        made: The key.
        never: It was not committed, for sure. Else a later version that is stored may have
            come after this one, whose turn to be discarded comes then.
    """
    with anyio.CancelScope(shield=True), contextlib.suppress(ApexCredsError):
        stored = (await store.stored_keystore()).root_header.master.version
        if stored < made.version or (never and stored != made.version):
            await provider.discard(vault_id=vault_id, version=made.version)


async def discard_master(store: DocumentStore, version: int) -> None:
    """Deletes a master key that the key store has left behind; nothing needs it any more.

    Where the vault adopted keys that it did not make, all stay: they may be another's too.

    Raises:
        KeyStateError: The key store still names it.
        MasterKeyError: The provider does not answer, or can't be written.
    """
    keystore = await store.stored_keystore()
    record = keystore.root_header.master
    if version >= record.version:
        raise KeyStateError(
            f"Master key version {version} is in use.", hint="Rotate the master key first."
        )
    # Read back from the provider, not from memory: the old one must not go before that.
    with await store.masters.load(record, keystore.header.vault_id) as master:
        if master_check(master, vault_id=keystore.header.vault_id) != record.check:
            raise MasterKeyUnavailableError(
                f"The provider has another master key v{record.version} than the vault's.",
                hint="Nothing was deleted. Restore the key before anything else.",
            )
    if ADOPTED in record.params:
        return
    provider = store.masters.provider(record.uri)
    await provider.discard(vault_id=keystore.header.vault_id, version=version)
