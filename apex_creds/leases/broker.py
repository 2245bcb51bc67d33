"""Makes leases and redeems them: the one place where a handle turns into a secret.

Guarantee: a redeem checks, in this order, that the lease is alive, belongs to the calling
invocation, has the scope, and is still permitted by the grants as stored now; then the
audit event is written; then, and only then, the secret is decrypted (rule 5). A refusal
is audited with its reason, and tells the plugin nothing that maps the vault.
"""

from __future__ import annotations

import contextlib
import shlex
import threading
from functools import partial
from typing import TYPE_CHECKING, NoReturn, cast

from apex_creds.audit.events import AuditEvent
from apex_creds.concurrency import BACKGROUND
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.records import Record
from apex_creds.errors import (
    AuditUnavailableError,
    ChallengeError,
    HandleForeignError,
    HandleRevokedError,
    InvalidInputError,
    LeaseEndedError,
    RequestNotAllowedError,
)
from apex_creds.leases import observe
from apex_creds.leases.actors import Actors
from apex_creds.leases.admission import Admission
from apex_creds.leases.basis import Basis
from apex_creds.leases.challenged import Challenges, unanswered
from apex_creds.leases.deadlines import Deadlines
from apex_creds.leases.handle import CredentialHandle
from apex_creds.leases.invocation import Invocation, current_invocation
from apex_creds.leases.lease import REGISTRY, Lease, drain, ended_error, find_lease
from apex_creds.leases.recent import Recent
from apex_creds.leases.refusal import denied
from apex_creds.leases.use import Use
from apex_creds.model import Clock, CredentialInfo
from apex_creds.policy.decide import Reason
from apex_creds.policy.grants import Grants
from apex_creds.policy.manifest import Need
from apex_creds.telemetry import tracing
from apex_creds.vault import Facts, Opened, Vault

if TYPE_CHECKING:
    import httpx


class LeaseBroker:
    """Leases of one vault.

    Args:
        vault: Unsealed.
        transport: Sends the requests of ``handle.client()``; one pool for all leases,
            made when first needed.
        sync_transport: The same for ``handle.sync_client()``.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sync_transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._vault = vault
        self.clock: Clock = vault.clock
        self._lock = threading.RLock()
        from apex_creds.leases.pools import Pools  # httpx: long to import, and here in time

        self.pools = Pools(transport, sync_transport)
        self.deadlines = Deadlines(self.clock)
        self.recent = Recent()
        self.actor = Actors(vault.audit.shown)
        self.admission = Admission(vault)
        self.shared = vault.store.shared is not None
        self.challenges = Challenges(vault)
        vault.watch_revocations(self._on_revoked)
        vault.heed_lockdown()

    # -- leases ------------------------------------------------------------------

    def facts_now(self, needs: tuple[Need, ...]) -> list[Facts] | None:
        """What decides on leases for ``needs``; None where memory is not current."""
        found = [self._vault.facts_now(need.name) for need in needs]
        return None if None in found else cast("list[Facts]", found)

    async def facts(self, needs: tuple[Need, ...]) -> list[Facts]:
        """As ``facts_now``, waiting for what has to be read."""
        return [await self._vault.facts(need.name) for need in needs]

    def facts_blocking(self, needs: tuple[Need, ...]) -> list[Facts]:
        """As ``facts``, from code that can't wait."""
        if self.shared:
            self._vault.store.refresh_blocking()
        found = self.facts_now(needs)
        if found is None:
            found = BACKGROUND.call(partial(self.facts, needs))
        return found

    def lease(
        self,
        invocation: Invocation,
        need: Need,
        facts: Facts,
        *,
        ttl: float,
        basis: Basis | None = None,
    ) -> CredentialHandle:
        """A lease on one declared credential, for at most ``ttl`` seconds.

        Raises:
            AccessDeniedError: Refused; the log says why.
            AuditUnavailableError: It could not be logged.
        """
        now, began = self.clock.time(), self.clock.monotonic()
        ends = self._vault.ends.at(now, began)
        policy = self.admission.policy_at(began)
        record = facts.record
        permission = None
        if record is not None:
            permission = self.admission.permission(
                invocation, need, facts.grants, record.info, ends, basis=basis
            )
        if permission is None or record is None:
            self.refuse(invocation, need.name, facts, counted=need.required, basis=basis)
        until = permission.until
        lease = Lease(
            broker=self,
            invocation=invocation,
            need=need,
            record_id=record.info.id,
            permission=permission,
            grants=facts.grants,
            scopes=permission.scopes,
            expires=began + (ttl if until is None else min(ttl, until - ends)),
            policy=policy,
            basis=basis,
        )
        return self._issue(lease, now, record)

    def attenuate(
        self,
        lease: Lease,
        *,
        scopes: tuple[str, ...] | None,
        ttl: float | None,
        max_uses: int | None,
    ) -> CredentialHandle:
        """See ``CredentialHandle.attenuate``."""
        invocation = self._check_caller(lease)
        now = self.clock.monotonic()
        with self._lock:
            lease.check_alive(now)
            chosen = lease.scopes if scopes is None else scopes
            if not set(chosen) <= set(lease.scopes):
                self._deny(invocation, lease.need.name, Reason.SCOPE_NOT_GRANTED)
            child = Lease(
                broker=self,
                invocation=invocation,
                need=lease.need,
                record_id=lease.record_id,
                permission=lease.permission,
                grants=lease.grants,
                scopes=chosen,
                expires=lease.expires if ttl is None else min(lease.expires, now + ttl),
                uses_left=max_uses,
                parent=lease,
                policy=lease.policy,
                basis=lease.basis,
            )
            lease.children.add(child)
            if lease.ended is not None:  # meanwhile, in another thread
                child.end(lease.ended)
        return self._issue(child, self.clock.time())

    def is_alive(self, lease: Lease) -> bool:
        """Whether the lease, and those it came from, could be used now."""
        try:
            lease.check_alive(self.clock.monotonic())
        except LeaseEndedError:
            return False
        return True

    def end_all(self, invocation: Invocation) -> None:
        """Ends every lease of an invocation."""
        if invocation.leases:
            drain(invocation.leases, Lease.end)

    def revoke(self, *, plugin: str | None = None, credential: str | None = None) -> int:
        """Ends the open leases of a plugin, a credential, or both; returns how many."""
        concerned = [
            lease
            for lease in list(REGISTRY.values())
            if lease.broker is self
            and plugin in (None, lease.invocation.manifest.plugin)
            and credential in (None, lease.need.name)
        ]
        for lease in concerned:
            lease.end()
        return len(concerned)

    @property
    def open_leases(self) -> int:
        """How many leases are open."""
        mine = [lease for lease in list(REGISTRY.values()) if lease.broker is self]
        return sum(self.is_alive(lease) or lease.ended is None for lease in mine)

    # -- redeem ------------------------------------------------------------------

    async def redeem(self, lease_id: str, use: Use) -> tuple[Lease, Record, Opened]:
        """Checks, audits, decrypts; the caller closes what it gets.

        Raises:
            AccessDeniedError: Not allowed, or the lease has ended.
            AuditUnavailableError: It could not be logged; nothing was decrypted.
        """
        lease = find_lease(lease_id)
        if self.shared:
            await self._vault.store.refresh()
        facts = self._vault.facts_now(lease.need.name)
        if facts is None:
            facts = await self._vault.facts(lease.need.name)
        signed, record = False, facts.record
        if record is not None and record.info.challenge:
            await self._answered(lease, use, facts)
            signed, facts = True, await self._vault.facts(lease.need.name)
        if self.admission.shared is not None:
            caller = self._permitted_now(lease, use, facts, signed=signed)
            await self.admission.admit_shared(lease, caller)
            facts = await self._vault.facts(lease.need.name)
        return self._redeem_traced(lease, use, facts, signed=signed)

    def redeem_blocking(self, lease_id: str, use: Use) -> tuple[Lease, Record, Opened]:
        """As ``redeem``, from code that can't wait."""
        lease = find_lease(lease_id)
        facts = self.facts_blocking((lease.need,))[0]
        if self.admission.shared is not None:
            caller = self._permitted_now(lease, use, facts)
            self.admission.admit_shared_blocking(lease, caller)
            facts = self.facts_blocking((lease.need,))[0]
        return self._redeem_traced(lease, use, facts)

    async def _answered(self, lease: Lease, use: Use, facts: Facts) -> None:
        """Returns when a client has signed for this use, which all else permits."""
        caller = self._permitted_now(lease, use, facts, signed=True)
        try:
            await self.challenges.answered(lease, caller, use)
        except (ChallengeError, InvalidInputError):
            self._log_denial(caller, lease.need.name, Reason.CHALLENGE_NEEDED)
            raise

    def _redeem_traced(
        self, lease: Lease, use: Use, facts: Facts, *, signed: bool = False
    ) -> tuple[Lease, Record, Opened]:
        if not tracing.on():
            return self._redeem(lease, use, facts, signed)
        with observe.redeem(lease, use.method, facts.record, self._vault):
            return self._redeem(lease, use, facts, signed)

    def _redeem(
        self, lease: Lease, use: Use, facts: Facts, signed: bool
    ) -> tuple[Lease, Record, Opened]:
        invocation = self._check_caller(lease)
        with self._lock:
            now = self.clock.monotonic()
            lease.check_alive(now)
            record = self._permitted(lease, invocation, use, facts, now, signed)
            if self.admission.limited:
                self.admission.admit(lease, invocation)
            event = self._redeem_event(lease, invocation, record, use)
            opened = self._vault.release(record, event)
            lease.count_use()
            used = (record.info.name, record.info.version)
            self.recent.note(used, record, invocation)
        invocation.used[used] = record
        lease.invocation.used[used] = record
        return lease, record, opened

    def _permitted_now(
        self, lease: Lease, use: Use, facts: Facts, *, signed: bool = False
    ) -> Invocation:
        """The caller, if the redeem would go well; before it is counted in the vault."""
        invocation = self._check_caller(lease)
        with self._lock:
            now = self.clock.monotonic()
            lease.check_alive(now)
            self._permitted(lease, invocation, use, facts, now, signed)
        return invocation

    def _permitted(
        self,
        lease: Lease,
        invocation: Invocation,
        use: Use,
        facts: Facts,
        at: float,
        signed: bool,
    ) -> Record:
        """The record, if policy as stored now still permits this use of it."""
        name = lease.need.name
        grants, record = facts
        if record is None or record.info.id != lease.record_id:
            lease.end()
            raise ended_error(HandleRevokedError)
        if self.admission.moved(lease, at) or grants is not lease.grants:
            self._decide_again(lease, grants, record)
        until = lease.permission.until
        if until is not None and self._vault.ends.now() >= until:
            lease.end()
            raise ended_error(HandleRevokedError)
        if use.scope is not None and use.scope not in lease.scopes:
            self._deny(invocation, name, Reason.SCOPE_NOT_GRANTED)
        if use.origin is not None:
            self._check_request(lease, invocation, record.info, use)
        elif not lease.permission.reveal:
            self._deny(invocation, name, Reason.REVEAL_NOT_GRANTED)
        if record.info.challenge and not signed:
            self._log_denial(invocation, name, Reason.CHALLENGE_NEEDED)
            raise unanswered()
        return record

    def _check_request(
        self, lease: Lease, invocation: Invocation, info: CredentialInfo, use: Use
    ) -> None:
        origin = use.origin
        assert origin is not None
        known = origin in info.origins  # they may have been changed since the lease began
        if known and lease.permission.allows_request(
            origin=origin, method=use.method, path=use.path
        ):
            return
        self._log_denial(invocation, lease.need.name, Reason.REQUEST_NOT_ALLOWED)
        raise RequestNotAllowedError(
            "This request is outside what the credential may be sent with.",
            hint="Check origin, method and path against the plugin's manifest."
            if known
            else f"The credential may not be sent to {origin}. If it should, its owner runs: "
            f"apex-creds edit {shlex.quote(lease.need.name)} --origin {origin}",
        )

    def _decide_again(self, lease: Lease, grants: Grants, record: Record) -> None:
        policy = self.admission.policy
        decision = self.admission.decide(
            lease.invocation,
            lease.need,
            grants,
            record.info,
            basis=lease.basis,
        )
        if decision.permission is None:
            lease.end()
            self._log_denial(lease.invocation, lease.need.name, decision.reason)
            raise ended_error(HandleRevokedError)
        lease.permission = decision.permission
        lease.grants, lease.policy = grants, policy

    def keep_until_end(self, lease: Lease, secret: SecretBytes) -> None:
        """Has ``secret`` wiped when the lease ends, at its deadline at the latest."""
        lease.revealed.add(secret)
        # Looked at after it was added: an end in another thread wipes it, or is seen here.
        if lease.ended is not None:
            secret.close()
            raise ended_error(lease.ended)
        self.deadlines.watch(lease)

    # -- for the middleware --------------------------------------------------------

    def refuse(
        self,
        invocation: Invocation,
        name: str,
        facts: Facts | None = None,
        *,
        counted: bool = True,
        basis: Basis | None = None,
    ) -> NoReturn:
        """Refuses a credential, and logs why.

        Raises:
            AccessDeniedError: Always.
        """
        grants, record = facts or self._vault.facts_now(name) or Facts(Grants(), None)
        decision = self.admission.decide(
            invocation,
            invocation.manifest.need(name),
            grants,
            record.info if record else None,
            basis=basis,
        )
        self._log_denial(invocation, name, decision.reason, counted=counted)
        raise denied(name)

    def log_exposure(self, lease_id: str) -> None:
        """Audits that a plugin takes a revealed secret out of locked memory."""
        lease = find_lease(lease_id)
        self.admission.log_exposure(lease, current_invocation() or lease.invocation)

    def log_refused_request(self, lease: Lease) -> None:
        """Audits, and counts, a request that is sent with no credential at all."""
        invocation = self._check_caller(lease)
        self._log_denial(invocation, lease.need.name, Reason.REQUEST_NOT_ALLOWED)

    def reopen(self, record: Record) -> Opened:
        """What an invocation redeemed before, for the redaction of its output only."""
        return self._vault.reopen(record)

    def log(self, event: AuditEvent, *, flush: bool) -> None:
        """Writes an event."""
        self._vault.audit.append(event, flush=flush)

    def log_end(self, invocation: Invocation, outcome: str, started: float) -> None:
        """Queues the event that an invocation is over; never raises.

        Nothing depends on it: the next redeem is refused if the log can't be written.
        """
        body = invocation.actor.end(
            self.clock.time(),
            invocation=invocation.id,
            parent=invocation.parent.id if invocation.parent else "",
            outcome=outcome,
            duration_us=round((self.clock.monotonic() - started) * 1e6),
        )
        with contextlib.suppress(AuditUnavailableError):
            self._vault.audit.append_encoded(body, flush=False)

    async def close(self) -> None:
        """Ends every lease and closes the pools."""
        self._vault.unwatch_revocations(self._on_revoked)
        self.revoke()
        self.recent.close()
        self.deadlines.close()
        self.admission.close()
        await self.pools.close()

    # -- inside ------------------------------------------------------------------

    def _on_revoked(self, plugin: str | None, credential: str | None) -> None:
        self.revoke(plugin=plugin, credential=credential)

    def _check_caller(self, lease: Lease) -> Invocation:
        invocation = current_invocation()
        owner = lease.invocation
        if invocation is owner:
            return owner
        passed_on = lease.parent is not None
        if invocation is not None and passed_on and invocation.is_live_within(owner):
            return invocation
        self._log_denial(invocation, lease.need.name, Reason.FOREIGN_HANDLE, lease=lease)
        raise HandleForeignError(
            "This credential handle belongs to another invocation.",
            hint="Have it passed on with handle.attenuate(…).",
        )

    def _deny(self, invocation: Invocation, name: str, reason: Reason) -> NoReturn:
        self._log_denial(invocation, name, reason)
        raise denied(name)

    def _log_denial(
        self,
        invocation: Invocation | None,
        name: str,
        reason: Reason,
        *,
        counted: bool = True,
        lease: Lease | None = None,
    ) -> None:
        """Of the plugin that tried: never of the one whose handle it tried with."""
        self.admission.log_denial(invocation, name, reason, lease=lease)
        if counted:
            self.admission.count_denial(invocation, name)

    def _issue(
        self, lease: Lease, now: float, record: Record | None = None
    ) -> CredentialHandle:
        """Logs a new lease and makes its handle; the lease ends if it can't be logged."""
        invocation = lease.invocation
        body = invocation.actor.lease(
            now,
            invocation=invocation.id,
            lease=lease.id,
            parent=lease.parent.id if lease.parent else "",
            credential=lease.need.name,
        )
        try:
            self._vault.audit.append_encoded(body, flush=False)
        except BaseException:
            lease.end()
            raise
        invocation.leases.add(lease)
        if lease.ended is not None:
            invocation.leases.discard(lease)
        if tracing.on():
            observe.lease_made(lease, record, self._vault)
        return CredentialHandle(
            id=lease.id,
            name=lease.need.name,
            scopes=lease.scopes,
            expires=now + lease.expires - self.clock.monotonic(),
        )

    def _redeem_event(
        self, lease: Lease, invocation: Invocation, record: Record, use: Use
    ) -> bytes:
        return invocation.actor.redeem(
            self.clock.time(),
            invocation=invocation.id,
            lease=lease.id,
            parent=lease.parent.id if lease.parent else "",
            credential=lease.need.name,
            key=record.key,
            method=use.method,
            origin="" if use.origin is None else str(use.origin),
            ids=tracing.current_ids(),
        )
