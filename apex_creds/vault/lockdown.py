"""The lockdown of a vault: sealed, everything taken back, until a person unlocks it.

Guarantee: in the process that locks down, whatever is open ends before the call returns,
in every vault object of this process; others see it at their next look at the vault, and
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
from apex_creds.auth.access_document import AccessStore
from apex_creds.auth.enrolment import Factors
from apex_creds.documents.keystore import KeystoreBody
from apex_creds.errors import ApexCredsError, AuditUnavailableError, SecondFactorError
from apex_creds.policy.grants import Grants, Lockdown, with_revocation
from apex_creds.vault.grant_store import Granting, Watchers, locked_down

_REASON: Final = 1000
_here: Final[WeakSet[Locking]] = WeakSet()
"""The vaults that are open in this process."""
_lock: Final = threading.Lock()


class Locking(Granting):
    """The part of a vault that seals it in an emergency."""

    _id: str
    _home: Path
    access: AccessStore
    _watching: Watchers

    def begin_watching(self) -> None:
        """Has this vault hear of what other objects of the same vault take back here."""
        self._watching = []
        self._store.on_sealed = self._sealed
        with _lock:
            _here.add(self)

    async def lockdown(self, *, reason: str = "", keep_grants: bool = False) -> Lockdown:
        """Ends everything that is in use, and releases nothing until ``unlock``.

        What was allowed is void for good, grants too; what was denied stays denied. In a
        lockdown it is a second one, for its own reason; an unlocking under way is void.

        Args:
            reason: For the log.
            keep_grants: Grants have no force meanwhile, and are in force again afterwards.

        Raises:
            AuditUnavailableError: It could not be logged; the vault is locked down.
        """
        made = Lockdown(since=self._clock.time(), reason=_storable(reason))

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
            self.record(EventKind.REVOKE, decision="lockdown", detail=made.reason)
        except AuditUnavailableError as error:
            unlogged = error
        with anyio.CancelScope(shield=True):
            async with self._store.holding():
                keystore = await self._store.commit_keystore(change)
                self.notify_revoked(None, None)
            for other in self._others():
                other._store.seal()
        if unlogged is not None:
            raise unlogged
        return keystore.body.lockdown or made  # which somebody may have ended already

    async def unlock(self, code: str | None = None) -> bool:
        """Ends a lockdown; returns whether there was one.

        Second factors that were shown before it, open challenges and questions are void.

        Args:
            code: Of the operator's second factor (or a recovery code), if there is one.

        Raises:
            SecondFactorError: It is needed and missing, or not right.
            LockedDownError: The vault was locked down again meanwhile, and stays so.
        """
        before = await self.grants()
        if before.lockdown is None:
            return False

        def change(body: KeystoreBody) -> KeystoreBody:
            now = Grants(revocations=body.revocations)
            if body.lockdown and now.locked_since(before.mark):
                raise locked_down()
            return msgspec.structs.replace(body, lockdown=None)

        async with self._store.holding():
            await self._check_factor(code)
            self.record(EventKind.GRANT, decision="unlock")
            await self._forget_what_was_shown()
            await self._store.commit_keystore(change)
        return True

    async def check_not_locked_down(self) -> None:
        """Returns if the vault is not locked down.

        Raises:
            LockedDownError: It is.
        """
        if (await self.grants()).lockdown is not None:
            raise locked_down()

    def obey_lockdown(self) -> None:
        """From now on no key is kept while the vault is locked down."""
        self._store.for_operator = False
        self._store.seal_if_locked_down()

    def notify_revoked(self, plugin: str | None, credential: str | None) -> None:
        """Ends what is open in this process: of a plugin, a credential, both, or all."""
        for vault in (self, *self._others()):
            for told in list(vault._watching):
                told(plugin, credential)

    # -- inside ------------------------------------------------------------------

    @property
    def _watchers(self) -> Watchers:
        return self._watching

    def _others(self) -> list[Locking]:
        """The same vault, as others in this process have opened it."""
        mine = (self._id, self._home)
        with _lock:
            found = list(_here)
        return [v for v in found if v is not self and (v._id, v._home) == mine]

    def _sealed(self) -> None:
        """The store has seen a lockdown, and wipes its keys now."""
        for told in list(self._watching):
            told(None, None)
        with suppress(ApexCredsError):
            self.record(EventKind.REVOKE, decision="sealed")

    async def _check_factor(self, code: str | None) -> None:
        factors = Factors(self)
        if not await factors.enrolled():
            return
        if not code:
            raise SecondFactorError("A code of the second factor is needed.")
        await factors.verify(code, remember=False)

    async def _forget_what_was_shown(self) -> None:
        await self.access.change(
            lambda state, _: (
                msgspec.structs.replace(state, passed=(), challenges=(), requests=())
                if state.passed or state.challenges or state.requests
                else state
            )
        )


def _storable(text: str) -> str:
    """The text, with what is no Unicode as escapes: an emergency waits for no spelling."""
    return text[:_REASON].encode("utf-8", "backslashreplace").decode()[:_REASON]
