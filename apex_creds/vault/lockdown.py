"""The lockdown of a vault: sealed, everything taken back, until a person unlocks it.

Guarantee: in the process that locks down, whatever is open ends before the call returns,
in every vault object of this process; others see it at their next use of the vault, and
end everything then. A process that sees it wipes its keys, and loads them again only when
the vault was unlocked: until then nothing but ``unlock`` and ``revoke`` works on it. One
that opens the vault during a lockdown is a person's, for the work that goes before the
unlocking; it releases nothing, and once it serves plugins it keeps no keys either.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

import anyio
import msgspec

from apex_creds.audit.events import EventKind
from apex_creds.auth.access_document import AccessState, AccessStore, Record
from apex_creds.auth.enrolment import Factors
from apex_creds.documents.keystore import Keystore, KeystoreBody
from apex_creds.documents.store import DocumentStore
from apex_creds.errors import ApexCredsError, AuditUnavailableError, SecondFactorError
from apex_creds.policy.grants import Grants, Lockdown, with_revocation
from apex_creds.vault.grant_store import Revoked, locked_down

_REASON: Final = 1000
_here: Final[WeakSet[LockdownControl]] = WeakSet()
"""The vaults that are open in this process."""
_lock: Final = threading.Lock()


class LockdownControl:
    """Seals a vault in an emergency, in every object of this process that has it open.

    Args:
        store: The vault's documents.
        access: Its access document; a lockdown ends with a second factor.
        record: Writes audit events.
        home: The vault's directory.
    """

    def __init__(
        self, store: DocumentStore, *, access: AccessStore, record: Record, home: Path
    ) -> None:
        self.access = access
        self._store = store
        self._record = record
        self._vault = (store.unsealed().header.vault_id, home)
        self.watchers: list[Revoked] = []
        """Called when this process takes something back."""
        store.on_sealed = self._sealed
        with _lock:
            _here.add(self)

    async def begin(self, *, reason: str, keep_grants: bool) -> Lockdown:
        """See ``Vault.lockdown``."""
        # An emergency waits for no spelling: what is no Unicode is written as escapes.
        made = Lockdown(
            since=self._store.clock.time(),
            reason=reason[:_REASON].encode("utf-8", "backslashreplace").decode()[:_REASON],
        )

        def change(body: KeystoreBody) -> KeystoreBody:
            return msgspec.structs.replace(
                body,
                lockdown=made,
                revocations=with_revocation(body.revocations),
                grants_void=body.grants_void or not keep_grants,
            )

        # Ended first: what goes wrong below must not leave them open.
        self.notify_revoked(None, None)
        unlogged: AuditUnavailableError | None = None
        try:
            self._record(EventKind.REVOKE, decision="lockdown", detail=made.reason)
        except AuditUnavailableError as error:
            unlogged = error
        with anyio.CancelScope(shield=True):
            async with self._store.holding():
                keystore = await self._store.commit_keystore(change)
                self.notify_revoked(None, None)
            for other in self._peers():
                other._store.seal()
        if unlogged is not None:
            raise unlogged
        return keystore.body.lockdown or made  # which somebody may have ended already

    async def end(self, code: str | None) -> bool:
        """See ``Vault.unlock``."""
        before = await self._store.grants.read()
        if before.lockdown is None:
            return False

        def change(body: KeystoreBody) -> KeystoreBody:
            now = Grants(revocations=body.revocations)
            if body.lockdown and now.locked_since(before.mark):
                raise locked_down()
            return msgspec.structs.replace(body, lockdown=None)

        def forget(state: AccessState, _: Keystore) -> AccessState:
            """Without what was shown, asked or given out before."""
            if not (state.passed or state.challenges or state.requests):
                return state
            return msgspec.structs.replace(state, passed=(), challenges=(), requests=())

        async with self._store.holding():
            factors = Factors(self)
            if await factors.enrolled():
                if not code:
                    raise SecondFactorError("A code of the second factor is needed.")
                await factors.verify(code, remember=False)
            self._record(EventKind.GRANT, decision="unlock")
            await self.access.change(forget)
            await self._store.commit_keystore(change)
        return True

    async def check_not_locked_down(self) -> None:
        """See ``Vault.check_not_locked_down``."""
        if (await self._store.grants.read()).lockdown is not None:
            raise locked_down()

    def obey(self) -> None:
        """From now on no key is kept while the vault is locked down."""
        self._store.for_operator = False
        self._store.seal_if_locked_down()

    def notify_revoked(self, plugin: str | None, credential: str | None) -> None:
        """Ends what is open in this process: of a plugin, a credential, both, or all."""
        for each in (self, *self._peers()):
            for notify in list(each.watchers):
                notify(plugin, credential)

    # -- inside ------------------------------------------------------------------

    def _peers(self) -> list[LockdownControl]:
        """The same vault, as others in this process have opened it."""
        with _lock:
            found = list(_here)
        return [each for each in found if each is not self and each._vault == self._vault]

    def _sealed(self) -> None:
        """The store has seen a lockdown, and wipes its keys now."""
        for notify in list(self.watchers):
            notify(None, None)
        with suppress(ApexCredsError):
            self._record(EventKind.REVOKE, decision="sealed")
