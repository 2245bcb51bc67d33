"""The document ``access`` of a vault, and the secrets in it under a DEK of their own.

Guarantee: a change is computed against the state and the key store as stored now, and is
durable on return; secrets are sealed under the primary of the keyset ``access/factors``
as that is when the change is committed, so none is ever left under a destroyed key.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.clocks import Moment
from apex_creds.crypto import envelope
from apex_creds.crypto.envelope import Context
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import key_versions
from apex_creds.documents.cached import Document
from apex_creds.documents.keystore import Keystore
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import UnknownKeyError
from apex_creds.model import Clock
from apex_creds.policy.access_state import AccessState, takes_away
from apex_creds.vault.vault import Vault

DOCUMENT: Final = "access"
DEK_LABEL: Final = "access/factors"
"""No section is called ``access``: this keyset's users are in the document alone."""

Change = Callable[[AccessState, Keystore], AccessState]

# By the id of their store, which a document keeps alive.
_documents: WeakValueDictionary[int, Document[AccessState]] = WeakValueDictionary()


def access_document(store: DocumentStore) -> Document[AccessState]:
    """The document; one object for all that use it in this process."""
    found = _documents.get(id(store))
    if found is None:
        found = Document(store, name=DOCUMENT, empty=AccessState(), takes_away=takes_away)
        _documents[id(store)] = found
    return found


class Access:
    """A vault's access document, for those who keep something in it."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._store = vault._store
        self.document = access_document(self._store)
        self.clock: Clock = vault.clock
        self.ends = vault.ends
        self.vault_id = vault.vault_id

    def now(self) -> AccessState | None:
        """The state if what is in memory is current, without waiting; else None."""
        return self.document.now()

    async def read(self) -> AccessState:
        """The state as stored now."""
        return await self.document.read()

    async def change(self, change: Change) -> AccessState:
        """Commits ``change(state, keystore)``; see ``Document.change_keyed``.

        Raises:
            ConflictError: Other writers were first, again and again.
        """
        return await self.document.change_keyed(change)

    async def ensure_key(self) -> None:
        """Makes the DEK that ``seal`` uses, where there is none yet."""
        await key_versions.ensure(self._store, [DEK_LABEL], now=self.clock.time())

    async def open(self, record_id: str, sealed: bytes) -> SecretBytes:
        """The secret in an envelope, in locked memory; the caller closes it.

        Raises:
            UnknownKeyError: Its key is not there; if it was moved, the record has changed.
            DecryptionError: It is not this record's.
        """
        return self._open(await self._store.keystore(), record_id, sealed)

    def seal(self, keystore: Keystore, record_id: str, secret: SecretBytes) -> bytes:
        """An envelope for a record's secret; for use inside a change."""
        keyset = keystore.by_label.get(DEK_LABEL)
        if keyset is None:
            raise UnknownKeyError("The key of the second factors is gone.", hint="Try again.")
        version = keyset.primary.version
        return envelope.encrypt(
            keystore.hierarchy.unwrap(keyset, version),
            secret,
            context=self._context(record_id),
            key_id=bytes.fromhex(keyset.id),
            key_version=version,
        )

    async def rekey(self) -> bool:
        """Gives the secrets a new DEK version and destroys the old ones.

        Returns:
            Whether no old version is left that could decrypt.
        """
        now = self.clock.time()
        await key_versions.renew(self._store, DEK_LABEL, now=now)
        state = await self.change(self._moved)
        headers = [envelope.header(sealed) for sealed in _sealed(state)]
        used = {(key_id.hex(), version) for key_id, version in headers}
        keyset = (await self._store.keystore()).by_label.get(DEK_LABEL)
        if keyset is not None:
            step = partial(key_versions.destroy_now, now=now)
            await key_versions.step_spent(self._store, [keyset], used, step)
        return key_versions.is_alone((await self._store.keystore()).by_label.get(DEK_LABEL))

    def moment(self) -> Moment:
        """This moment, on both clocks."""
        return Moment.now(self.clock)

    def record(
        self,
        kind: EventKind,
        *,
        action: str,
        decision: str = "",
        reason: str = "",
        plugin: str = "",
        principal: str = "",
        credential: str = "",
        detail: str = "",
    ) -> None:
        """Writes an audit event.

        Raises:
            AuditUnavailableError: It could not be written.
        """
        self._vault.audit.append(
            AuditEvent(
                time=self.clock.time(),
                kind=kind,
                action=action,
                decision=decision,
                reason=reason,
                plugin=plugin,
                principal=principal,
                credential=credential,
                detail=detail,
            )
        )

    # -- inside ------------------------------------------------------------------

    def _open(self, keystore: Keystore, record_id: str, sealed: bytes) -> SecretBytes:
        return envelope.decrypt(keystore.dek, sealed, context=self._context(record_id))

    def _context(self, record_id: str) -> Context:
        return Context(
            vault_id=bytes.fromhex(self.vault_id),
            section=DOCUMENT,
            record_id=bytes.fromhex(record_id),
            record_version=1,
        )

    def _moved(self, state: AccessState, keystore: Keystore) -> AccessState:
        keyset = keystore.by_label.get(DEK_LABEL)
        current = keyset.primary.version if keyset else 0

        def moved(record_id: str, sealed: bytes) -> bytes:
            if envelope.header(sealed)[1] == current:
                return sealed
            with self._open(keystore, record_id, sealed) as secret:
                return self.seal(keystore, record_id, secret)

        replace = msgspec.structs.replace
        # Written even if nothing moves: a writer that bases itself on an older state must
        # come second, so that it sees the keys as they are now.
        return replace(
            state,
            factors=tuple(replace(f, sealed=moved(f.id, f.sealed)) for f in state.factors),
            recovery=tuple(replace(r, sealed=moved(r.id, r.sealed)) for r in state.recovery),
        )


def _sealed(state: AccessState) -> list[bytes]:
    return [f.sealed for f in state.factors] + [r.sealed for r in state.recovery]
