"""Issues and redeems leases: the one place where a lease turns into a secret.

Guarantee: a redeem checks, in this order, that the lease is alive, belongs to the calling
invocation, has the scope, and is still permitted by the grants as stored now; then the
audit event is written; then, and only then, the secret is decrypted (rule 5). A refusal is
audited with its reason; the plugin sees the same whether a credential is unknown, undeclared or
not granted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import msgspec

from apex_creds.audit.events import AuditEvent
from apex_creds.audit.line import Actor
from apex_creds.concurrency import BACKGROUND, BoundedCache
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.records import Record
from apex_creds.errors import (
    AccessDeniedError,
    AuditUnavailableError,
    ChallengeError,
    CredentialNotFoundError,
    HandleExpiredError,
    HandleForeignError,
    HandleRevokedError,
    InvalidInputError,
    LeaseEndedError,
    NeedsReconnectError,
    RequestNotAllowedError,
    TokenError,
)
from apex_creds.leases.authorizer import Authorizer, unsigned
from apex_creds.leases.lease import (
    REVEAL,
    AccessRequest,
    Authorization,
    ExpiryTimer,
    Invocation,
    Key,
    Lease,
    current_invocation,
    ended_error,
)
from apex_creds.model import Clock, CredentialInfo, DeliveryStyle, key_of, split_key
from apex_creds.oauth.refresh import refresher_of
from apex_creds.policy.decide import Reason
from apex_creds.policy.display import operator_command
from apex_creds.policy.grants import Grants
from apex_creds.policy.manifest import Manifest, Need
from apex_creds.rotators.dynamic import DynamicCredentials
from apex_creds.rotators.rotation import rotations_of
from apex_creds.telemetry import semconv, tracing
from apex_creds.telemetry.tracing import Step
from apex_creds.vault import Facts, Opened, Vault

if TYPE_CHECKING:
    import httpx

    from apex_creds.leases.http_messages import AnswerSearch

LONGEST_NAME: Final = 256
MOST_LEASES: Final = 10_000
"""Open ones of one invocation; only those that a plugin makes can be so many."""
"""Of a name that a plugin asked for, in errors and in the log."""
MANY_RECENT: Final = 256
_MANY_ACTORS: Final = 10_000
_MANY_EXPIRED: Final = 1024
_MANY_KEYS: Final = 4096
_NO_KEY: Final = ("", 0)

_OPEN: Final[dict[str, tuple[Lease, LeaseBroker]]] = {}
"""Every open lease of the process: handles find theirs here by id, and only here."""
_EXPIRED: Final[dict[str, None]] = {}
"""Ids of the last leases that ended by the clock, so that their handles can say so."""


def find_open(lease_id: str) -> tuple[Lease, LeaseBroker]:
    """The open lease of that id, and its broker.

    Raises:
        LeaseEndedError: There is none: it has ended.
    """
    found = _OPEN.get(lease_id)
    if found is None:
        raise ended_error(HandleExpiredError if lease_id in _EXPIRED else HandleRevokedError)
    return found


def keep_open(lease_id: str, close: Callable[[], object]) -> None:
    """Takes ``Lease.close_at_end`` back, for who holds the lease's id only."""
    found = _OPEN.get(lease_id)
    if found is not None:
        found[0].closers.pop(close, None)


class LeaseBroker:
    """Leases of one vault. It returns ``Lease``, never a handle.

    Args:
        vault: Unsealed.
        transport: Sends the requests of ``handle.client()``; one pool for all leases,
            made when first needed.
        sync_transport: The same for ``handle.sync_client()``.

    Attributes:
        search: Searches answers for the secrets that were sent; None: nothing does.
    """

    def __init__(
        self,
        vault: Vault,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sync_transport: httpx.BaseTransport | None = None,
    ) -> None:
        # httpx: long to import, and here in time
        from apex_creds.leases.connection_pool import ConnectionPools

        self._vault = vault
        self._audit = vault.audit
        self.clock: Clock = vault.clock
        self._lock = threading.RLock()
        self._actors: BoundedCache[tuple[str, str, str, str], Actor] = BoundedCache(
            _MANY_ACTORS
        )
        self.connections = ConnectionPools(transport, sync_transport)
        self.timer = ExpiryTimer(self.clock)
        self.recent = RecentRedeems()
        self.search: AnswerSearch | None = None
        self.authorizer = Authorizer(vault)
        self.refresher, self.rotations = refresher_of(vault), rotations_of(vault)
        self.dynamic = DynamicCredentials(vault)
        self.shared = vault.store.shared is not None
        vault.watch_revocations(self._on_revoked)
        vault.obey_lockdown()

    # -- leases ------------------------------------------------------------------

    def states_now(self, needs: tuple[Need, ...], principal: str = "") -> list[Facts] | None:
        """What decides on leases for ``needs``; None where memory is not current.

        That is a principal's credential of the name, else the shared one; where there is
        neither, the one that the principal would have.
        """
        found = []
        for need in needs:
            name = need.name
            state = self._vault.facts_now(key_of(name, principal) if principal else name)
            if principal and state is not None and state.record is None:
                shared = self._vault.facts_now(name)
                if shared is None or shared.record is not None:
                    state = shared
            if state is None:
                return None
            found.append(state)
        return found

    async def states(self, needs: tuple[Need, ...], principal: str = "") -> list[Facts]:
        """As ``states_now``, waiting for what has to be read."""
        found = []
        for need in needs:
            state = await self._vault.facts(key_of(need.name, principal))
            if principal and state.record is None:
                shared = await self._vault.facts(need.name)
                state = state if shared.record is None else shared
            found.append(state)
        return found

    def states_blocking(self, needs: tuple[Need, ...], principal: str = "") -> list[Facts]:
        """As ``states``, from code that can't wait."""
        if self.shared:
            self._vault.store.refresh_blocking()
        found = self.states_now(needs, principal)
        if found is None:
            found = BACKGROUND.call(partial(self.states, needs, principal))
        return found

    def _facts_blocking(self, key: str) -> Facts:
        if self.shared:
            self._vault.store.refresh_blocking()
        return self._vault.facts_now(key) or BACKGROUND.call(partial(self._vault.facts, key))

    def actor(self, manifest: Manifest, action: str, principal: str = "") -> Actor:
        """The beginning of the audit events of a plugin's action; remembered."""
        key = (manifest.plugin, manifest.version, action, principal)
        found = self._actors.get(key)
        if found is None:
            found = self._actors.remember(key, Actor(*key, shown=self._audit.shown))
        return found

    def issue(
        self,
        invocation: Invocation,
        need: Need,
        state: Facts,
        *,
        ttl: float,
        authorization: Authorization | None = None,
    ) -> Lease:
        """A lease on one declared credential, for at most ``ttl`` seconds.

        Raises:
            AccessDeniedError: Refused; the log says why.
            AuditUnavailableError: It could not be logged.
        """
        now, began = self.clock.time(), self.clock.monotonic()
        ends = self._vault.ends.at(now, began)
        policy = self.authorizer.policy_at(began)
        record = state.record
        permission = None
        if record is not None:
            permission = self.authorizer.permission(
                invocation, need, state.grants, record.info, ends, authorization=authorization
            )
        if permission is None or record is None:
            self.refuse(
                invocation,
                need.name,
                state,
                counted=need.required,
                authorization=authorization,
            )
        until = permission.until
        seconds = ttl if until is None else min(ttl, until - ends)
        lease = Lease(
            timer=self.timer,
            on_end=_ended,
            invocation=invocation,
            need=need,
            key=state.key,
            record_id=record.info.id,
            permission=permission,
            grants=state.grants,
            scopes=permission.scopes,
            expires=began + seconds,
            until=now + seconds,
            policy=policy,
            authorization=authorization,
        )
        return self._opened(lease, now, record)

    def attenuate(
        self,
        lease: Lease,
        *,
        scopes: tuple[str, ...] | None,
        ttl: float | None,
        max_uses: int | None,
    ) -> Lease:
        """See ``CredentialHandle.attenuate``."""
        invocation = self._check_caller(lease)
        now, began = self.clock.time(), self.clock.monotonic()
        with self._lock:
            lease.check_alive(began)
            if len(lease.invocation.leases) >= MOST_LEASES:
                raise InvalidInputError(
                    f"An invocation has at most {MOST_LEASES:,} handles.",
                    hint="Use one of them again.",
                )
            chosen = lease.scopes if scopes is None else scopes
            if not set(chosen) <= set(lease.scopes):
                self._deny(invocation, lease.key, Reason.SCOPE_NOT_GRANTED)
            expires = lease.expires if ttl is None else min(lease.expires, began + ttl)
            child = Lease(
                timer=self.timer,
                on_end=_ended,
                invocation=invocation,
                need=lease.need,
                key=lease.key,
                record_id=lease.record_id,
                permission=lease.permission,
                grants=lease.grants,
                scopes=chosen,
                expires=expires,
                until=now + expires - began,
                uses_left=max_uses,
                parent=lease,
                policy=lease.policy,
                authorization=lease.authorization,
            )
            lease.children.add(child)
            if lease.ended is not None:  # meanwhile, in another thread
                child.end(lease.ended)
        return self._opened(child, now)

    def _opened(self, lease: Lease, now: float, record: Record | None = None) -> Lease:
        """Logs a new lease; it ends if it can't be logged."""
        invocation = lease.invocation
        if lease.ended is None:
            _OPEN[lease.id] = lease, self
        body = invocation.actor.lease(
            now,
            invocation=invocation.id,
            lease=lease.id,
            parent=lease.parent.id if lease.parent else "",
            credential=lease.key,
        )
        try:
            self._audit.append_encoded(body, flush=False)
        except BaseException:
            lease.end()
            raise
        invocation.leases.add(lease)
        if lease.ended is not None:  # meanwhile, in another thread
            invocation.leases.discard(lease)
            _OPEN.pop(lease.id, None)
        if tracing.on():
            if record is None:
                state = self._vault.facts_now(lease.key)
                record = state.record if state is not None else None
            tracing.lease_made(
                lease=lease.id,
                parent=lease.parent.id if lease.parent else "",
                credential=self._audit.shown(lease.need.name),
                key=_key_of(record),
            )
            if lease.ended is not None:
                tracing.lease_ended(lease.id, expired=False)
        return lease

    def is_alive(self, lease: Lease) -> bool:
        """Whether the lease, and those it came from, could be used now."""
        try:
            lease.check_alive(self.clock.monotonic())
        except LeaseEndedError:
            return False
        return True

    def revoke(self, *, plugin: str | None = None, credential: str | None = None) -> int:
        """Ends the open leases of a plugin, a credential, or both; returns how many."""
        concerned = [
            lease
            for lease, broker in list(_OPEN.values())
            if broker is self
            and plugin in (None, lease.invocation.manifest.plugin)
            and credential in (None, lease.key)
        ]
        for lease in concerned:
            lease.end()
        return len(concerned)

    @property
    def open_leases(self) -> int:
        """How many leases are open."""
        mine = [lease for lease, broker in list(_OPEN.values()) if broker is self]
        return sum(self.is_alive(lease) or lease.ended is None for lease in mine)

    # -- redeem ------------------------------------------------------------------

    async def redeem(self, lease: Lease, request: AccessRequest) -> tuple[Record, Opened]:
        """Checks, audits, decrypts; the caller closes what it gets.

        Raises:
            AccessDeniedError: Not allowed, or the lease has ended.
            AuditUnavailableError: It could not be logged; nothing was decrypted.
        """
        if self.shared:
            await self._vault.store.refresh()
        state = self._vault.facts_now(lease.key)
        if state is None:
            state = await self._vault.facts(lease.key)
        signed, record = False, state.record
        if record is not None and record.info.challenge:
            await self._require_signature(lease, request, state)
            signed, state = True, await self._vault.facts(lease.key)
        if record is not None and record.info.expires is not None:
            state = await self._with_valid_token(lease, request, state, signed=signed)
        if self.authorizer.shared is not None:
            caller = self._permitted_now(lease, request, state, signed=signed)
            await self.authorizer.admit_across_processes(lease, caller)
            state = await self._vault.facts(lease.key)
        record = state.record
        if record is not None and record.info.rotation is not None and record.info.dynamic:
            state = await self._with_login(lease, request, state, signed=signed)
        return self._redeem(lease, request, state, signed=signed)

    def redeem_blocking(self, lease: Lease, request: AccessRequest) -> tuple[Record, Opened]:
        """As ``redeem``, from code that can't wait."""
        state = self._facts_blocking(lease.key)
        record = state.record
        if (
            record is not None
            and record.info.expires is not None
            and record.info.has_expired(self._vault.ends.now())
        ):
            caller = self._permitted_now(lease, request, state)
            left = max(0.0, lease.expires - self.clock.monotonic())
            with suppress(TimeoutError):  # then the lease is over, and that is what is said
                BACKGROUND.call(partial(self._refreshed, caller, record.info), timeout=left)
            state = self._facts_blocking(lease.key)
        if self.authorizer.shared is not None:
            caller = self._permitted_now(lease, request, state)
            self.authorizer.admit_across_processes_blocking(lease, caller)
            state = self._facts_blocking(lease.key)
        record = state.record
        if record is not None and record.info.rotation is not None and record.info.dynamic:
            state = BACKGROUND.call(partial(self._with_login, lease, request, state))
        return self._redeem(lease, request, state)

    async def _with_login(
        self, lease: Lease, request: AccessRequest, state: Facts, *, signed: bool = False
    ) -> Facts:
        """The state with a login of this lease's own, for a use that all else permits."""
        assert state.record is not None
        caller = self._permitted_now(lease, request, state, signed=signed)
        try:
            made = await self.dynamic.record_for(lease, state.record)
        except TokenError:
            self._log_denial(caller, state.record.info.key, Reason.NOT_REFRESHED)
            raise
        return state._replace(record=made)

    async def _with_valid_token(
        self, lease: Lease, request: AccessRequest, state: Facts, *, signed: bool
    ) -> Facts:
        """The state after an expired value was renewed, for a use that all else permits."""
        record = state.record
        if record is None or not record.info.has_expired(self._vault.ends.now()):
            return state
        caller = self._permitted_now(lease, request, state, signed=signed)
        await self._refreshed(caller, record.info)
        return await self._vault.facts(lease.key)

    async def _refreshed(self, caller: Invocation, info: CredentialInfo) -> None:
        try:
            with suppress(CredentialNotFoundError):  # deleted: then the lease is over
                renewed = self.refresher if info.rotation is None else self.rotations
                await renewed.ensure(info.name, principal=info.principal)
        except NeedsReconnectError:
            self._log_denial(caller, info.key, Reason.NEEDS_RECONNECT)
            raise
        except TokenError:
            self._log_denial(caller, info.key, Reason.NOT_REFRESHED)
            raise

    async def _require_signature(
        self, lease: Lease, request: AccessRequest, state: Facts
    ) -> None:
        """Returns when a client has signed for this use, which all else permits."""
        caller = self._permitted_now(lease, request, state, signed=True)
        try:
            await self.authorizer.require_signature(lease, caller, request)
        except (ChallengeError, InvalidInputError):
            self._log_denial(caller, lease.key, Reason.CHALLENGE_NEEDED, request=request)
            raise

    def _redeem(
        self, lease: Lease, request: AccessRequest, state: Facts, *, signed: bool = False
    ) -> tuple[Record, Opened]:
        if not tracing.on():
            return self._released(lease, request, state, signed)
        with self._redeem_span(lease, request.method, state.record):
            return self._released(lease, request, state, signed, tracing.current_ids())

    def _redeem_span(self, lease: Lease, method: str, record: Record | None) -> Step:
        step = tracing.redeem(
            plugin=lease.invocation.manifest.plugin,
            credential=self._audit.shown(lease.need.name),
            lease=lease.id,
            method=method,
            key=_key_of(record),
        )
        several = self._vault.store.shared
        if several is not None and (stale := several.stale_for()):
            step.set(semconv.STALE_MS, round(stale * 1000))  # the storage can't be reached
        return step

    def _released(
        self,
        lease: Lease,
        request: AccessRequest,
        state: Facts,
        signed: bool,
        ids: tuple[str, str] = tracing.NO_IDS,
    ) -> tuple[Record, Opened]:
        invocation = self._check_caller(lease, request)
        with self._lock:
            now = self.clock.monotonic()
            lease.check_alive(now)
            record = self._authorize(lease, invocation, request, state, now, signed)
            if self.authorizer.limited:
                self.authorizer.admit(lease, invocation)
            event = invocation.actor.redeem(
                self.clock.time(),
                invocation=invocation.id,
                lease=lease.id,
                parent=lease.parent.id if lease.parent else "",
                credential=lease.key,
                key=_key_of(record),
                method=request.logged or request.method,
                origin="" if request.origin is None else str(request.origin),
                ids=ids,
            )
            opened = self._vault.release(record, event)
            if lease.uses_left is not None or lease.parent is not None:
                lease.count_use()
            key = (lease.key, record.info.version)
            self.recent.register(key, record, invocation)
        invocation.redeemed[key] = record
        lease.invocation.redeemed[key] = record
        return record, opened

    def _permitted_now(
        self, lease: Lease, request: AccessRequest, state: Facts, *, signed: bool = False
    ) -> Invocation:
        """The caller, if the redeem would go well; before it is counted in the vault."""
        invocation = self._check_caller(lease, request)
        with self._lock:
            now = self.clock.monotonic()
            lease.check_alive(now)
            self._authorize(lease, invocation, request, state, now, signed)
        return invocation

    def _authorize(
        self,
        lease: Lease,
        invocation: Invocation,
        request: AccessRequest,
        state: Facts,
        at: float,
        signed: bool,
    ) -> Record:
        """The record, if policy as stored now still permits this use of it."""
        name = lease.key
        grants, record, _ = state
        if record is None or record.info.id != lease.record_id:
            lease.end()
            raise ended_error(HandleRevokedError)
        if self.authorizer.is_stale(lease, at) or grants is not lease.grants:
            self._reauthorize(lease, grants, record)
        until = lease.permission.until
        if until is not None and self._vault.ends.now() >= until:
            lease.end()
            raise ended_error(HandleRevokedError)
        if request.scope is not None and request.scope not in lease.scopes:
            self._deny(invocation, name, Reason.SCOPE_NOT_GRANTED, request)
        if request.origin is not None:
            self._check_request(lease, invocation, record.info, request)
        elif request.method == REVEAL and not lease.permission.reveal:
            self._deny(invocation, name, Reason.REVEAL_NOT_GRANTED, request)
        elif not (lease.permission.sign or lease.permission.reveal):
            self._refuse_signing(invocation, name, request)
        if record.info.challenge and not signed:
            self._log_denial(invocation, name, Reason.CHALLENGE_NEEDED, request=request)
            raise unsigned()
        return record

    def _check_request(
        self, lease: Lease, invocation: Invocation, info: CredentialInfo, request: AccessRequest
    ) -> None:
        origin, permission = request.origin, lease.permission
        assert origin is not None
        signs = info.delivery.style is DeliveryStyle.AWS4
        if signs and not permission.sign:
            self._refuse_signing(invocation, lease.key, request)
        known = origin in info.origins  # they may have been changed since the lease began
        sends = signs or permission.inject
        path = info.delivery.shown_path(request.path)
        if (
            sends
            and known
            and permission.allows_request(origin=origin, method=request.method, path=path)
        ):
            return
        request = msgspec.structs.replace(request, path=path)
        self._log_denial(invocation, lease.key, Reason.REQUEST_NOT_ALLOWED, request=request)
        raise RequestNotAllowedError(
            "This request is outside what the credential may be sent with.",
            hint="Check origin, method and path against the plugin's manifest."
            if known
            else f"The credential may not be sent to {origin}. If it should, its owner runs: "
            f"{origin_command(lease, origin)}",
        )

    def _refuse_signing(
        self, invocation: Invocation, name: str, request: AccessRequest
    ) -> NoReturn:
        self._log_denial(invocation, name, Reason.SIGN_NOT_GRANTED, request=request)
        raise RequestNotAllowedError(
            f"No signature is made with credential {_plain(name)!r} here.",
            hint='The manifest must say "access": "sign", and the owner: '
            "apex-creds grant PLUGIN NAME --sign",
        )

    def _reauthorize(self, lease: Lease, grants: Grants, record: Record) -> None:
        policy = self.authorizer.policy
        decision = self.authorizer.decide(
            lease.invocation,
            lease.need,
            grants,
            record.info,
            authorization=lease.authorization,
        )
        if decision.permission is None:
            lease.end()
            self._log_denial(lease.invocation, lease.key, decision.reason)
            raise ended_error(HandleRevokedError)
        lease.permission = decision.permission
        lease.grants, lease.policy = grants, policy

    # -- for the middleware --------------------------------------------------------

    def refuse(
        self,
        invocation: Invocation,
        name: str,
        state: Facts | None = None,
        *,
        counted: bool = True,
        authorization: Authorization | None = None,
    ) -> NoReturn:
        """Refuses a credential, and logs why.

        Raises:
            AccessDeniedError: Always.
        """
        if state is None:
            key = key_of(split_key(name)[0], invocation.principal)
            state = self._vault.facts_now(key) or Facts(Grants(), None, key)
        grants, record, key = state
        decision = self.authorizer.decide(
            invocation,
            invocation.manifest.need(name),
            grants,
            record.info if record else None,
            authorization=authorization,
        )
        self._log_denial(invocation, key, decision.reason, counted=counted)
        raise denied(name)

    def log_exposure(self, lease: Lease) -> None:
        """Audits that a plugin takes a revealed secret out of locked memory."""
        self.authorizer.log_exposure(lease, current_invocation() or lease.invocation)

    def log_refused_request(self, lease: Lease, request: AccessRequest | None = None) -> None:
        """Audits, and counts, a request that is sent with no credential at all."""
        invocation = self._check_caller(lease, request)
        self._log_denial(invocation, lease.key, Reason.REQUEST_NOT_ALLOWED, request=request)

    def reopen(self, record: Record) -> Opened:
        """What an invocation redeemed before, for the redaction of its output only."""
        return self._vault.reopen(record)

    def log(self, event: AuditEvent, *, flush: bool) -> None:
        """Writes an event."""
        self._audit.append(event, flush=flush)

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
        try:
            self._audit.append_encoded(body, flush=False)
        except AuditUnavailableError:
            return

    async def close(self) -> None:
        """Ends every lease and closes the pools."""
        self._vault.unwatch_revocations(self._on_revoked)
        self.revoke()
        self.recent.close()
        self.timer.close()
        self.authorizer.close()
        await self.connections.close()
        await self.dynamic.close()

    # -- inside ------------------------------------------------------------------

    def _on_revoked(self, plugin: str | None, credential: str | None) -> None:
        self.revoke(plugin=plugin, credential=credential)

    def _check_caller(self, lease: Lease, request: AccessRequest | None = None) -> Invocation:
        invocation = current_invocation()
        owner = lease.invocation
        if invocation is owner:
            return owner
        passed_on = lease.parent is not None
        if invocation is not None and passed_on and invocation.is_live_within(owner):
            return invocation
        self._log_denial(
            invocation, lease.key, Reason.FOREIGN_HANDLE, lease=lease, request=request
        )
        raise HandleForeignError(
            "This credential handle belongs to another invocation.",
            hint="Have it passed on with handle.attenuate(…).",
        )

    def _deny(
        self,
        invocation: Invocation,
        name: str,
        reason: Reason,
        request: AccessRequest | None = None,
    ) -> NoReturn:
        self._log_denial(invocation, name, reason, request=request)
        raise denied(name)

    def _log_denial(
        self,
        invocation: Invocation | None,
        name: str,
        reason: Reason,
        *,
        counted: bool = True,
        lease: Lease | None = None,
        request: AccessRequest | None = None,
    ) -> None:
        """Of the plugin that tried: never of the one whose handle it tried with."""
        self.authorizer.log_denial(invocation, name, reason, lease=lease, request=request)
        if counted:
            self.authorizer.count_denial(invocation, name)


def _ended(lease: Lease) -> None:
    """No handle finds the lease any more."""
    expired = lease.ended is HandleExpiredError
    if expired:
        _EXPIRED[lease.id] = None
        while len(_EXPIRED) > _MANY_EXPIRED:
            _EXPIRED.pop(next(iter(_EXPIRED)), None)
    _OPEN.pop(lease.id, None)
    if tracing.OPEN:
        tracing.lease_ended(lease.id, expired=expired)


def denied(name: str) -> AccessDeniedError:
    """The one refusal: the same whether a credential is unknown, undeclared or ungranted."""
    return AccessDeniedError(
        f"The use of credential {_plain(name)!r} was refused.",
        hint="The operator can see why in the audit log.",
    )


def origin_command(lease: Lease, origin: object) -> str:
    """How its owner lets the credential of a lease be sent to an origin, too."""
    _, principal = split_key(lease.key)
    return operator_command(
        "edit", lease.need.name, principal=principal, options=f"--origin {origin}"
    )


def _plain(key: str) -> str:
    return split_key(key)[0][:LONGEST_NAME]


_known_keys: Final[BoundedCache[bytes, tuple[str, int]]] = BoundedCache(_MANY_KEYS)


def _key_of(record: Record | None) -> tuple[str, int]:
    """Id (hexadecimal) and version of a record's key, remembered by its ciphertext."""
    if record is None:
        return _NO_KEY
    found = _known_keys.get(record.sealed)
    if found is None:
        key_id, version = record.key
        found = _known_keys.remember(record.sealed, (key_id.hex(), version))
    return found


class RedeemedRecord(NamedTuple):
    """One version of a credential, and where it was redeemed last.

    Attributes:
        record: Sealed.
        plugin: The plugin's id.
        version: The plugin's version.
        action: What it was doing.
        invocation: Its id.
    """

    record: Record
    plugin: str
    version: str
    action: str
    invocation: str


_redeemed: Final = partial(tuple.__new__, RedeemedRecord)  # without a call of Python's


class RecentRedeems:
    """The last ``MANY_RECENT`` versions of credentials that one broker released.

    For output that belongs to no invocation any more. Sealed records and keyed hashes only,
    never plaintext; the oldest go first.
    """

    __slots__ = ("_found", "marks", "reported", "salt")

    def __init__(self) -> None:
        self._found: dict[Key, RedeemedRecord] = {}
        self.reported: dict[Key, str] = {}
        """Of which invocation a leak of it was audited already."""
        self.marks: dict[Key, frozenset[int]] = {}
        """Hashes, under the salt, that a text with it has; made by whom it is searched for."""
        self.salt = SecretBytes.random(8)

    def __bool__(self) -> bool:
        return bool(self._found)

    def register(self, key: Key, record: Record, invocation: Invocation) -> None:
        """A redeem happened; the caller holds the broker's lock."""
        found, manifest = self._found, invocation.manifest
        found.pop(key, None)
        found[key] = _redeemed(
            (record, manifest.plugin, manifest.version, invocation.action, invocation.id)
        )
        if len(found) > MANY_RECENT:
            self.drop(next(iter(found)))

    def drop(self, key: Key) -> None:
        """It is not searched for any more."""
        self._found.pop(key, None)
        self.reported.pop(key, None)
        self.marks.pop(key, None)

    def all(self) -> dict[Key, RedeemedRecord]:
        """As it is now."""
        return self._found.copy()

    def close(self) -> None:
        """Nothing is searched for any more."""
        for table in (self._found, self.reported, self.marks):
            table.clear()
        self.salt.close()
