"""All that a use must pass besides being alive: policy, limits, a signed challenge.

Guarantee: a decision is made under the policy that is in force now; a use that is over a
limit is refused before anything is decrypted, and audited. A limit that is kept in the vault
counts a use durably, by compare-and-set, before it is admitted, so that no two processes admit
the same last one; if the count can't be written, it is not admitted.

A signature is asked for only after everything else permits the use, and counts for that one
use: by the plugin that makes it, of that credential, in its scopes. Who is asked was named by
the runtime before the plugin's code began, never by the handle or by what runs in an
invocation; no client, no answer in time, an answer by another, and any failure on the way to
it are a refusal that is in the log.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import anyio.to_thread

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import ChallengeGate, Responder, no_responder
from apex_creds.concurrency import BoundedCache, LoopThread
from apex_creds.errors import (
    ApexCredsError,
    ChallengeError,
    RateLimitedError,
    StorageLockedError,
)
from apex_creds.leases.lease import (
    AccessRequest,
    Authorization,
    Invocation,
    Lease,
    caller,
    effective_grant,
)
from apex_creds.model import CredentialInfo, split_key
from apex_creds.policy.decide import REFUSALS, Decision, Permission, Reason, decide
from apex_creds.policy.decision_cache import DecisionCache, Pins
from apex_creds.policy.display import shown
from apex_creds.policy.grants import Grants
from apex_creds.policy.manifest import Manifest, Need
from apex_creds.policy.policy_file import Change, PolicySource
from apex_creds.policy.rules import NO_POLICY, LimitRule, Policy
from apex_creds.telemetry import instruments
from apex_creds.vault import Vault

if TYPE_CHECKING:  # loaded where there are limits only
    from apex_creds.policy.rate_limits import (
        Breach,
        DenialsExceeded,
        LimitState,
        Persistence,
        RateLimits,
        Windows,
    )

DEADLINE: Final = 10.0
"""Seconds for a count to be written."""
MAX_WINDOWS: Final = 5_000
"""The document is written whole for each use that is counted."""
_MANY: Final = 10_000
_LONGEST_METHOD: Final = 32
_LONGEST_PATH: Final = 256
_LOCKED_DOWN: Final = Decision(reason=Reason.LOCKED_DOWN)
_log = logging.getLogger(__name__)
instruments.expect_denials(reason.value for reason in REFUSALS)

T = TypeVar("T")
OnDenials = Callable[["DenialsExceeded"], None]


class AccessSubject(Protocol):
    """What is decided about: an invocation, or one that is still to be made."""

    @property
    def manifest(self) -> Manifest:
        """The plugin's."""

    @property
    def action(self) -> str:
        """What it is about to do."""

    @property
    def principal(self) -> str:
        """Who it is for; empty: nobody."""


class Authorizer:
    """The policy of one vault, applied to leases.

    Args:
        vault: Unsealed.

    Attributes:
        policy: The one in force when it was read last.
        limited: Whether uses are counted: it has limits, or something was denied.
        shared: Those that are kept in the vault; None: there are none.
        on_denials: Called when a plugin was refused too often, from any thread.
        responder: Signs challenges where an invocation names nobody; None: nobody does.

    Raises:
        InvalidPolicyError: There is a policy file, and it is not valid.
        StorageError: It can't be read safely.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._source = PolicySource(vault.home, changed=self._log_change)
        self._pins = Pins()
        self._cache = DecisionCache(self._pins)
        self._lock = threading.RLock()
        self._limits: RateLimits | None = None
        self._windows: Windows | None = None
        self._reported: BoundedCache[tuple[str, str, str], float] = BoundedCache(_MANY)
        self._gate: ChallengeGate | None = None
        self.on_denials: OnDenials | None = None
        self.responder: Responder | None = None
        self.shared: SharedLimits | None = None
        self.limited = False
        self.policy: Policy = NO_POLICY
        if self._source.policy is not NO_POLICY:
            self._adopt(self._source.policy)

    # -- policy ------------------------------------------------------------------

    def policy_at(self, now: float) -> Policy:
        """The policy in force; ``now`` is on the monotonic clock, in seconds."""
        source = self._source
        if now >= source.due:
            source.current(now)
        if source.policy is not self.policy:
            self._adopt(source.policy)
        return self.policy

    def is_stale(self, lease: Lease, now: float) -> bool:
        """Whether policy, or the hour that it goes by, is another than the lease's."""
        source, policy = self._source, self.policy
        if now >= source.due or source.policy is not policy:
            policy = self.policy_at(now)
        if policy is not lease.policy:
            return True
        recheck = lease.permission.recheck
        return recheck is not None and self._vault.ends.now() >= recheck

    def reload(self) -> Policy:
        """Reads the policy file now."""
        self._source.reload()
        return self.policy_at(0.0)

    # -- decisions ---------------------------------------------------------------

    def permission(
        self,
        subject: AccessSubject,
        need: Need,
        grants: Grants,
        info: CredentialInfo,
        now: float,
        *,
        authorization: Authorization | None = None,
    ) -> Permission | None:
        """What the policy that was read last permits; None: nothing, or to be asked."""
        if grants.lockdown is not None:
            return None
        if authorization is not None:
            decision = self.decide(subject, need, grants, info, authorization=authorization)
            return decision.permission
        manifest = subject.manifest
        return self._cache.permission(
            need,
            info,
            now,
            manifest=manifest,
            grants=grants,
            policy=self.policy,
            action=subject.action,
            principal=subject.principal,
        )

    def decide(
        self,
        subject: AccessSubject,
        need: Need | None,
        grants: Grants,
        info: CredentialInfo | None,
        *,
        authorization: Authorization | None = None,
    ) -> Decision:
        """The decision behind ``permission``, with its reason and rule."""
        if grants.lockdown is not None:
            return _LOCKED_DOWN
        manifest, grant, factor = subject.manifest, None, None
        if need is not None:
            key = need.name if info is None else info.key
            grant, factor = effective_grant(grants, manifest.plugin, key, authorization)
        keep = self.policy.keep_grants
        grant, identity = self._pins.bind(manifest, grant, grants, keep=keep)
        return decide(
            need=need,
            grant=grant,
            info=info,
            now=self._vault.ends.now(),
            policy=self.policy,
            plugin=manifest.plugin,
            action=subject.action,
            factor=factor,
            identity=identity,
            principal=subject.principal,
        )

    # -- audit -------------------------------------------------------------------

    def log_denial(
        self,
        invocation: Invocation | None,
        credential: str,
        reason: Reason,
        *,
        lease: Lease | None = None,
        detail: str = "",
        request: AccessRequest | None = None,
    ) -> None:
        """Audits a refusal, and where a request went; ``invocation`` is who tried, if any."""
        instruments.denied(reason.value)
        path = request.path.partition("?")[0] if request else ""
        if path and invocation is not None:  # a plugin wrote it
            path = invocation.shown(path)
        self._vault.audit.append(
            AuditEvent(
                time=self._vault.clock.time(),
                kind=EventKind.DENIAL,
                plugin=invocation.manifest.plugin if invocation else caller(),
                plugin_version=invocation.manifest.version if invocation else "",
                action=invocation.action if invocation else "",
                principal=invocation.principal if invocation else "",
                invocation=invocation.id if invocation else "",
                lease=lease.id if lease else "",
                credential=credential,
                decision="deny",
                reason=reason.value,
                origin=str(request.origin) if request and request.origin else "",
                method=shown(request.method, longest=_LONGEST_METHOD) if request else "",
                path=shown(path, longest=_LONGEST_PATH),
                detail=detail,
            )
        )

    def log_exposure(self, lease: Lease, invocation: Invocation) -> None:
        """Audits that a plugin takes a revealed secret out of locked memory."""
        self._vault.audit.append(
            AuditEvent(
                time=self._vault.clock.time(),
                kind=EventKind.EXPOSE,
                plugin=invocation.manifest.plugin,
                plugin_version=invocation.manifest.version,
                action=invocation.action,
                principal=invocation.principal,
                invocation=invocation.id,
                lease=lease.id,
                credential=lease.key,
                decision="allow",
                method="expose",
            )
        )

    def _log_change(self, change: Change) -> None:
        # A log that can't be written refuses the next redeem by itself.
        with contextlib.suppress(ApexCredsError):
            self._vault.audit.append(
                AuditEvent(
                    time=self._vault.clock.time(),
                    kind=EventKind.POLICY,
                    outcome="ok" if change.ok else "InvalidPolicyError",
                    detail=change.detail,
                )
            )

    # -- limits ------------------------------------------------------------------

    def admit(self, lease: Lease, invocation: Invocation) -> None:
        """Counts a redeem in memory; called where ``limited`` only.

        Raises:
            RateLimitedError: A limit is reached.
        """
        with self._lock:
            limits, windows = self._limits, self._windows
            if limits is None or windows is None:
                return
            breach = limits.admit(
                windows, plugins_of(lease, invocation), lease.key, invocation.principal
            )
        if breach is not None:
            self._refuse(invocation, lease.key, breach)

    async def admit_across_processes(self, lease: Lease, invocation: Invocation) -> None:
        """Counts a redeem in the vault, where there is a limit that is kept there.

        Raises:
            RateLimitedError: A limit is reached.
            StorageError: It could not be counted.
        """
        await anyio.to_thread.run_sync(self.admit_across_processes_blocking, lease, invocation)

    def admit_across_processes_blocking(self, lease: Lease, invocation: Invocation) -> None:
        """As ``admit_across_processes``, from code that can't wait."""
        shared = self.shared
        if shared is None:
            return
        breach = shared.admit(plugins_of(lease, invocation), lease.key, invocation.principal)
        if breach is not None:
            self._refuse(invocation, lease.key, breach)

    def count_denial(self, invocation: Invocation | None, credential: str) -> None:
        """Counts a denial that was audited, of the plugin that tried.

        Raises:
            RateLimitedError: There were too many.
        """
        plugin = invocation.manifest.plugin if invocation else caller()
        principal = invocation.principal if invocation else ""
        full: list[tuple[LimitRule, Breach]] = []
        with self._lock:
            if not self.limited:
                self._limit(self.policy)
            if self._limits is not None and self._windows is not None:
                full += self._limits.deny(self._windows, [plugin], credential, principal)
            shared = self.shared
        if shared is not None:
            try:
                full += shared.deny((plugin,), credential, principal)
            except ApexCredsError as error:  # it is refused, and in the log, all the same
                _log.error("A denial could not be counted: %s", error.message)
        if not full:
            return
        for rule, breach in full:
            self._report_once(rule, breach, plugin, credential)
        worst = max((breach for _, breach in full), key=lambda breach: breach.retry_after)
        self._refuse(invocation, credential, worst)

    def close(self) -> None:
        """Ends the thread that counts in the vault."""
        with self._lock:
            shared, self.shared = self.shared, None
        if shared is not None:
            shared.close()

    def _adopt(self, policy: Policy) -> None:
        with self._lock:
            if policy is self.policy:
                return
            old, self.shared, self._limits = self.shared, None, None
            self.limited = False
            # The limit that goes without saying costs nothing until something is denied.
            if policy.limits or self._windows is not None:
                self._limit(policy)
            self.policy = policy
        if old is not None:
            old.close()

    def _limit(self, policy: Policy) -> None:
        from apex_creds.policy.rate_limits import RateLimits, Windows, with_default
        from apex_creds.vault.config import limit_document

        clock = self._vault.clock
        # Kept when the policy changes: what was counted stays counted.
        self._windows = self._windows or Windows(clock.monotonic)
        limits = with_default(policy.limits)
        self._limits = RateLimits(rule for rule in limits if not rule.persist)
        kept = RateLimits(rule for rule in limits if rule.persist)
        self.limited = True
        if kept.rules:
            self.shared = SharedLimits(
                kept, open_state=lambda: limit_document(self._vault.store), now=clock.time
            )

    def _refuse(self, invocation: Invocation | None, credential: str, breach: Breach) -> None:
        """Audits a breach, and refuses.

        Raises:
            RateLimitedError: Always.
        """
        self.log_denial(invocation, credential, Reason.RATE_LIMITED, detail=breach.rule)
        error = RateLimitedError(
            f"The use of credential {split_key(credential)[0][:256]!r} was refused: too often.",
            hint=f"Try again in {breach.retry_after:.1f} seconds.",
        )
        error.retry_after = breach.retry_after
        raise error

    def _report_once(
        self, rule: LimitRule, breach: Breach, plugin: str, credential: str
    ) -> None:
        """Emits ``DenialsExceeded``, once in a window for each that exceeds it."""
        from apex_creds.policy.rate_limits import DenialsExceeded

        now, wall = self._vault.clock.monotonic(), self._vault.clock.time()
        key = (rule.id, breach.plugin, breach.credential)
        with self._lock:
            if now - self._reported.get(key, float("-inf")) < rule.seconds:
                return
            self._reported.remember(key, now)
        event = DenialsExceeded(
            rule.id, rule.per, plugin, credential, rule.amount, rule.seconds, wall
        )
        try:
            if self.on_denials is not None:
                self.on_denials(event)
        except Exception as error:  # noqa: BLE001 - a listener must not undo the refusal
            _log.error("A listener for denials failed: %s", type(error).__name__)

    # -- a signed challenge --------------------------------------------------------

    async def require_signature(
        self, lease: Lease, invocation: Invocation, request: AccessRequest
    ) -> None:
        """Returns when a client has signed for this use by ``invocation``.

        Raises:
            ChallengeError: None did.
        """
        subject = Subject(
            plugin=invocation.manifest.plugin,
            plugin_version=invocation.manifest.version,
            action=invocation.action,
            invocation=invocation.id,
            credential=lease.key,
            scopes=lease.scopes if request.scope is None else (request.scope,),
        )
        if self._gate is None:
            from apex_creds.auth.challenge_issuer import Challenger

            self._gate = ChallengeGate(Challenger(self._vault))
        first = invocation  # the client is that of this call, or of the one that led to it
        while first.parent is not None:
            first = first.parent
        responder = self.responder if first.responder is None else first.responder
        if responder is None or first.ended:
            raise no_responder()
        await self._gate.require_challenge(subject, responder)
        await self._vault.store.refresh()  # it may have taken a minute


def unsigned() -> ChallengeError:
    """The refusal of a use that can't be, or was not, signed for."""
    return ChallengeError(
        "Each use of this credential takes a signed challenge.",
        hint="Use it with `async with`, in an invocation within answering(…); see "
        "docs/CHALLENGE.md.",
    )


def plugins_of(lease: Lease, invocation: Invocation) -> tuple[str, ...]:
    """The plugin that uses a lease, and every one that the lease came through."""
    found, step = [invocation.manifest.plugin], lease
    while True:
        found.append(step.invocation.manifest.plugin)
        if step.parent is None:
            return tuple(dict.fromkeys(found))
        step = step.parent


class SharedLimits:
    """The limits whose counts are kept in the vault: for all processes, and over restarts.

    A thread runs what writes, so that code that can't wait (and may stand on the event loop)
    can have its answer too. An admission costs a write of the document.

    Args:
        limits: Those of a policy.
        open_state: Makes the place where counts are kept; called in the thread.
        now: Unix seconds: processes share no other clock.
    """

    def __init__(
        self,
        limits: RateLimits,
        *,
        open_state: Callable[[], Persistence],
        now: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._open_state = open_state
        self._now = now
        self._thread = LoopThread("apex-creds-limits")
        self._state: Persistence | None = None

    def admit(self, plugins: tuple[str, ...], credential: str, principal: str) -> Breach | None:
        """See ``RateLimits.admit``; durable on return.

        Raises:
            StorageError: It could not be counted.
        """
        return self._count(
            lambda windows: self._limits.admit(windows, plugins, credential, principal)
        )

    def deny(
        self, plugins: tuple[str, ...], credential: str, principal: str
    ) -> list[tuple[LimitRule, Breach]]:
        """See ``RateLimits.deny``; durable on return."""
        return self._count(
            lambda windows: self._limits.deny(windows, plugins, credential, principal)
        )

    def close(self) -> None:
        """Stops the thread; idempotent."""
        self._thread.close(wait=False)
        self._state = None

    def _count(self, count: Callable[[Windows], T]) -> T:
        """Runs ``count`` on the windows as stored, and stores them."""
        from apex_creds.policy.rate_limits import LimitState, Windows

        found: list[T] = []

        def change(state: LimitState) -> LimitState:
            windows = Windows(self._now, state.windows, most=MAX_WINDOWS)
            found[:] = [count(windows)]
            after = windows.export()
            return state if after == state.windows else LimitState(windows=after)

        async def work() -> None:
            if self._state is None:
                self._state = self._open_state()
            await self._state.change(change)

        try:
            self._thread.call(work, timeout=DEADLINE)
        except TimeoutError:
            raise StorageLockedError(
                "The count of a limit could not be written in time.", hint="Try again."
            ) from None
        return found[0]
