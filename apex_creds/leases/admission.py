"""What policy says to the broker: the rules in force, what they permit, and the limits.

Guarantee: a decision is made under the policy that is in force now; a use that is over a
limit is refused before anything is decrypted, and audited. Without a policy file this is a
comparison of two numbers and a look-up.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.errors import ApexCredsError, RateLimitedError
from apex_creds.leases.basis import Basis, resting
from apex_creds.leases.invocation import Invocation, caller
from apex_creds.model import CredentialInfo
from apex_creds.policy.decide import REFUSALS, Decision, Permission, Reason, decide
from apex_creds.policy.decision_cache import DecisionCache, Pins
from apex_creds.policy.grants import Grants
from apex_creds.policy.manifest import Manifest, Need
from apex_creds.policy.policy_file import Change, PolicySource
from apex_creds.policy.rules import NO_POLICY, LimitRule, Policy
from apex_creds.telemetry import instruments
from apex_creds.vault import Vault

if TYPE_CHECKING:
    from apex_creds.leases.lease import Lease
    from apex_creds.leases.shared_limits import SharedLimits
    from apex_creds.policy.rate_limits import Breach, DenialsExceeded, RateLimits, Windows

_MANY: Final = 10_000
instruments.expect_denials(reason.value for reason in REFUSALS)
_log = logging.getLogger(__name__)

OnDenials = Callable[["DenialsExceeded"], None]


_LOCKED_DOWN: Final = Decision(reason=Reason.LOCKED_DOWN)


class Asking(Protocol):
    """What is decided about: an invocation, or one that is still to be made."""

    @property
    def manifest(self) -> Manifest:
        """The plugin's."""

    @property
    def action(self) -> str:
        """What it is about to do."""


class Admission:
    """The policy of one vault, applied.

    Args:
        vault: Unsealed.

    Attributes:
        policy: The one in force when it was looked at last.
        limited: Whether uses are counted: it has limits, or something was denied.
        shared: Those that are kept in the vault; None: there are none.
        on_denials: Told when a plugin was refused too often, from any thread.

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
        self._told: dict[tuple[str, str, str], float] = {}
        self.on_denials: OnDenials | None = None
        self.shared: SharedLimits | None = None
        self.limited = False
        self.policy: Policy = NO_POLICY
        if self._source.policy is not NO_POLICY:
            self._adopt(self._source.policy)

    def policy_at(self, now: float) -> Policy:
        """The policy in force; ``now`` is on the monotonic clock, in seconds."""
        source = self._source
        if now >= source.due:
            source.look(now)
        if source.policy is not self.policy:
            self._adopt(source.policy)
        return self.policy

    def moved(self, lease: Lease, now: float) -> bool:
        """Whether policy, or the hour that it goes by, is another than the lease's."""
        if self.policy_at(now) is not lease.policy:
            return True
        recheck = lease.permission.recheck
        return recheck is not None and self._vault.ends.now() >= recheck

    def reload(self) -> Policy:
        """Looks at the policy file now."""
        self._source.reload()
        return self.policy_at(0.0)

    # -- decisions ---------------------------------------------------------------

    def permission(
        self,
        invocation: Asking,
        need: Need,
        grants: Grants,
        info: CredentialInfo,
        now: float,
        *,
        basis: Basis | None = None,
    ) -> Permission | None:
        """What the policy that was looked at last permits; None: nothing, or to be asked."""
        if grants.lockdown is not None:
            return None
        if basis is not None:
            return self.decide(invocation, need, grants, info, basis=basis).permission
        manifest = invocation.manifest
        return self._cache.permission(
            need,
            grants.find(manifest.plugin, need.name),
            info,
            now,
            manifest=manifest,
            grants=grants,
            policy=self.policy,
            action=invocation.action,
        )

    def decide(
        self,
        invocation: Asking,
        need: Need | None,
        grants: Grants,
        info: CredentialInfo | None,
        *,
        basis: Basis | None = None,
    ) -> Decision:
        """The decision behind ``permission``, with its reason and rule."""
        if grants.lockdown is not None:
            return _LOCKED_DOWN
        manifest, grant, factor = invocation.manifest, None, None
        if need is not None:
            grant, factor = resting(grants, manifest.plugin, need.name, basis)
        keep = self.policy.keep_grants
        grant, identity = self._pins.look(manifest, grant, grants, keep=keep)
        return decide(
            need=need,
            grant=grant,
            info=info,
            now=self._vault.ends.now(),
            policy=self.policy,
            plugin=manifest.plugin,
            action=invocation.action,
            factor=factor,
            identity=identity,
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
    ) -> None:
        """Audits a refusal; ``invocation`` is that of the plugin that tried, if any."""
        instruments.denied(reason.value)
        self._vault.audit.append(
            AuditEvent(
                time=self._vault.clock.time(),
                kind=EventKind.DENIAL,
                plugin=invocation.manifest.plugin if invocation else caller(),
                plugin_version=invocation.manifest.version if invocation else "",
                action=invocation.action if invocation else "",
                invocation=invocation.id if invocation else "",
                lease=lease.id if lease else "",
                credential=credential,
                decision="deny",
                reason=reason.value,
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
                invocation=invocation.id,
                lease=lease.id,
                credential=lease.need.name,
                decision="allow",
                method="expose",
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
            breach = limits.admit(windows, plugins_of(lease, invocation), lease.need.name)
        if breach is not None:
            self._refuse(invocation, lease.need.name, breach)

    async def admit_shared(self, lease: Lease, invocation: Invocation) -> None:
        """Counts a redeem in the vault, where there is a limit that is kept there.

        Raises:
            RateLimitedError: A limit is reached.
            StorageError: It could not be counted.
        """
        shared = self.shared
        if shared is None:
            return
        breach = await shared.admit(plugins_of(lease, invocation), lease.need.name)
        if breach is not None:
            self._refuse(invocation, lease.need.name, breach)

    def admit_shared_blocking(self, lease: Lease, invocation: Invocation) -> None:
        """As ``admit_shared``, from code that can't wait."""
        shared = self.shared
        if shared is None:
            return
        breach = shared.admit_blocking(plugins_of(lease, invocation), lease.need.name)
        if breach is not None:
            self._refuse(invocation, lease.need.name, breach)

    def count_denial(self, invocation: Invocation | None, credential: str) -> None:
        """Counts a denial that was audited, of the plugin that tried.

        Raises:
            RateLimitedError: There were too many.
        """
        plugin = invocation.manifest.plugin if invocation else caller()
        full: list[tuple[LimitRule, Breach]] = []
        with self._lock:
            if not self.limited:
                self._limit(self.policy)
            if self._limits is not None and self._windows is not None:
                full += self._limits.deny(self._windows, [plugin], credential)
        if self.shared is not None:
            full += self._deny_shared(self.shared, plugin, credential)
        if not full:
            return
        for rule, breach in full:
            self._tell(rule, breach, plugin, credential)
        worst = max((breach for _, breach in full), key=lambda breach: breach.retry_after)
        self._refuse(invocation, credential, worst)

    @staticmethod
    def _deny_shared(
        shared: SharedLimits, plugin: str, credential: str
    ) -> list[tuple[LimitRule, Breach]]:
        try:
            return shared.deny((plugin,), credential)
        except ApexCredsError as error:  # it is refused, and in the log, all the same
            _log.error("A denial could not be counted: %s", error.message)
            return []

    def close(self) -> None:
        """Lets go of the thread that counts in the vault."""
        with self._lock:
            shared, self.shared = self.shared, None
        if shared is not None:
            shared.close()

    # -- inside ------------------------------------------------------------------

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
        from apex_creds.leases.shared_limits import SharedLimits
        from apex_creds.policy.rate_limits import RateLimits, Windows, with_default
        from apex_creds.vault.limit_state import limit_document

        clock = self._vault.clock
        # Kept when the policy changes: what was counted stays counted.
        self._windows = self._windows or Windows(clock.monotonic)
        limits = with_default(policy.limits)
        self._limits = RateLimits(rule for rule in limits if not rule.persist)
        kept = RateLimits(rule for rule in limits if rule.persist)
        self.limited = True
        if kept.rules:
            self.shared = SharedLimits(
                kept, open_state=lambda: limit_document(self._vault), now=clock.time
            )

    def _refuse(self, invocation: Invocation | None, credential: str, breach: Breach) -> None:
        """Audits a breach, and refuses.

        Raises:
            RateLimitedError: Always.
        """
        self.log_denial(invocation, credential, Reason.RATE_LIMITED, detail=breach.rule)
        error = RateLimitedError(
            f"The use of credential {credential[:256]!r} was refused: too often.",
            hint=f"Try again in {breach.retry_after:.1f} seconds.",
        )
        error.retry_after = breach.retry_after
        raise error

    def _tell(self, rule: LimitRule, breach: Breach, plugin: str, credential: str) -> None:
        """Emits ``DenialsExceeded``, once in a window for each that exceeds it."""
        from apex_creds.policy.rate_limits import DenialsExceeded

        now, wall = self._vault.clock.monotonic(), self._vault.clock.time()
        key = (rule.id, breach.plugin, breach.credential)
        with self._lock:
            if now - self._told.get(key, float("-inf")) < rule.seconds:
                return
            if len(self._told) >= _MANY:
                self._told.clear()
            self._told[key] = now
        event = DenialsExceeded(
            rule.id, rule.per, plugin, credential, rule.amount, rule.seconds, wall
        )
        try:
            if self.on_denials is not None:
                self.on_denials(event)
        except Exception as error:  # noqa: BLE001 - a listener must not undo the refusal
            _log.error("A listener for denials failed: %s", type(error).__name__)

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


def plugins_of(lease: Lease, invocation: Invocation) -> tuple[str, ...]:
    """The plugin that uses a lease, and every one that the lease came through."""
    return tuple(dict.fromkeys(_chain(lease, invocation)))


def _chain(lease: Lease, invocation: Invocation) -> Iterator[str]:
    yield invocation.manifest.plugin
    step: Lease | None = lease
    while step is not None:
        yield step.invocation.manifest.plugin
        step = step.parent
