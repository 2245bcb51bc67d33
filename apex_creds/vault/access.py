"""The document ``access`` of a vault, and the secrets in it under a DEK of their own.

Guarantee: a change is computed against the state and the key store as stored now, and is
durable on return; secrets are sealed under the primary of the keyset ``access/factors``
as that is when the change is committed, so none is ever left under a destroyed key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.clocks import Moment
from apex_creds.crypto import envelope
from apex_creds.crypto.envelope import Context
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.cached import StateDocument
from apex_creds.documents.keystore import Keystore, KeystoreBody
from apex_creds.documents.store import ATTEMPTS, DocumentStore
from apex_creds.errors import ConflictError, UnknownKeyError
from apex_creds.keys.keyset import Keyset, KeyState
from apex_creds.model import Clock
from apex_creds.policy.access_state import AccessState, takes_away
from apex_creds.vault import dek
from apex_creds.vault.vault import Vault

DOCUMENT: Final = "access"
DEK_LABEL: Final = "access/factors"
"""No section is called ``access``: this keyset's users are in the document alone."""

Change = Callable[[AccessState, Keystore], AccessState]

# By the id of their store, which a document keeps alive.
_documents: WeakValueDictionary[int, StateDocument[AccessState]] = WeakValueDictionary()


def access_document(store: DocumentStore) -> StateDocument[AccessState]:
    """The document; one object for all that use it in this process."""
    found = _documents.get(id(store))
    if found is None:
        found = StateDocument(store, name=DOCUMENT, empty=AccessState(), takes_away=takes_away)
        _documents[id(store)] = found
    return found


class _KeysMoved(Exception):  # noqa: N818 - a signal, never seen outside
    """The key store in memory is not current; read it and compute again."""


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
        """Commits ``change(state, keystore)``; see ``StateDocument.change``.

        Raises:
            ConflictError: Other writers were first, again and again.
        """
        for _ in range(ATTEMPTS):
            await self._store.keystore()
            try:
                return await self.document.change(lambda s: change(s, self._keystore()))
            except _KeysMoved:
                continue
        raise ConflictError("Other writers keep changing the key store.", hint="Try again.")

    async def ensure_key(self) -> None:
        """Makes the DEK that ``seal`` uses, where there is none yet."""
        await dek.ensure(self._store, [DEK_LABEL], now=self.clock.time())

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
        await dek.renew(self._store, DEK_LABEL, now=now)
        state = await self.change(self._moved)
        used = {envelope.header(sealed)[1] for sealed in _sealed(state)}

        def destroy(body: KeystoreBody) -> KeystoreBody:
            deks = tuple(
                _destroyed(keyset, used, now) if keyset.label == DEK_LABEL else keyset
                for keyset in body.deks
            )
            return body if deks == body.deks else msgspec.structs.replace(body, deks=deks)

        after = await self._store.commit_keystore(destroy)
        keyset = after.by_label.get(DEK_LABEL)
        versions = keyset.versions if keyset else ()
        for version in versions:
            if keyset and version.state is KeyState.DESTROYED:
                after.hierarchy.forget(keyset.id, version.version)
        return all(version.state not in _LIVE for version in versions)

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

    def _keystore(self) -> Keystore:
        found = self._store.keystore_now()
        if found is None:
            raise _KeysMoved
        return found

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


_LIVE: Final = frozenset({KeyState.ACTIVE, KeyState.RETIRED})


def _sealed(state: AccessState) -> list[bytes]:
    return [f.sealed for f in state.factors] + [r.sealed for r in state.recovery]


def _destroyed(keyset: Keyset, used: set[int], now: float) -> Keyset:
    for version in keyset.versions:
        if version.state in _LIVE and version.version not in used:
            if version.state is KeyState.ACTIVE:
                keyset = keyset.retire(version.version, now=now)
            keyset = keyset.destroy(version.version, now=now)
    return keyset
