"""Has a person decide before leases are made: asks once, remembers, shows a second factor.

Guarantee: what comes out of here is only a basis that ``decide`` looks at again with
everything that is stored then; so a lockdown, a revocation or a change of the plugin while
the question was open wins over its answer. No answer, and a provider that fails, is a
denial. Invocations that ask the same at once ask once, and share the answer; the question
stands until all of them are gone. What does not exist is asked about, too, and then denied.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import partial
from typing import Final

import anyio

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.auth.access_document import Passed
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import Ask, SecondFactorGate, asking
from apex_creds.concurrency import SingleFlight
from apex_creds.errors import AccessDeniedError, GrantVoidError, StorageReadOnlyError
from apex_creds.leases.basis import Basis
from apex_creds.leases.broker import LeaseBroker
from apex_creds.middleware.question import Wanted, info_of, request_for
from apex_creds.model import new_id
from apex_creds.policy.consent import (
    DENIED,
    Choice,
    ConsentAnswer,
    ConsentProvider,
    ConsentRequest,
)
from apex_creds.policy.decide import UNVERIFIED, Decision, Outcome, Reason
from apex_creds.policy.grants import Grant, GrantDecision, Grants
from apex_creds.policy.manifest import Access, Manifest, Need
from apex_creds.policy.rules import EACH_LEASE
from apex_creds.vault import Facts, Vault

_log = logging.getLogger(__name__)

Bases = dict[str, Basis]
_INSTANT: Final = 1e-3
_ROUNDS: Final = 4
"""An answer, a factor, and each of them once more where the ground moved."""


class Consent:
    """What the middleware asks before it makes leases.

    Args:
        vault: Unsealed.
        broker: Of the same vault.
        provider: Who is asked; None: nobody, so that it is denied.
        second_factor: Asks for a code. None: where somebody can be asked, the gate waits
            for ``apex-creds factor verify``; else it is denied.
        deadline: Seconds that a question waits.
    """

    def __init__(
        self,
        vault: Vault,
        broker: LeaseBroker,
        *,
        provider: ConsentProvider | None,
        second_factor: Ask | None,
        deadline: float,
    ) -> None:
        self._vault = vault
        self._broker = broker
        self._provider = provider
        self._ask_factor = second_factor
        self._deadline = deadline
        self._asks = provider is not None or second_factor is not None
        self._session: dict[tuple[str, str], Basis] = {}
        self._questions: SingleFlight[Hashable, ConsentAnswer] = SingleFlight()
        self._gates: dict[float, SecondFactorGate] = {}
        self._factors: Factors | None = None
        self._pinned: dict[str, tuple[Manifest, Grants]] = {}

    # -- before an invocation ------------------------------------------------------

    def is_settled(self, manifest: Manifest, action: str, facts: list[Facts]) -> bool:
        """Whether there is nothing to ask or to remember; in well under a microsecond each.

        Where nobody can be asked: two look-ups, whatever the number of credentials.
        """
        if not self._is_pinned(manifest, facts):
            return False
        if not self._asks:
            return True
        admission, clock = self._broker.admission, self._broker.clock
        admission.policy_at(clock.monotonic())
        wanted, now = Wanted(manifest, action), clock.time()
        return all(
            admission.permission(wanted, need, known.grants, info_of(need, known), now)
            for need, known in zip(manifest.needs, facts, strict=True)
        )

    async def settle(
        self, manifest: Manifest, action: str, facts: list[Facts]
    ) -> tuple[list[Facts], Bases]:
        """Asks for what is not decided yet.

        Returns:
            The facts as they are afterwards, and what leases may rest on besides.

        Raises:
            ApexCredsError: What was decided could not be stored.
        """
        if not self._is_pinned(manifest, facts):
            facts = await self._pin(manifest, facts)
        bases: Bases = {}
        if self._asks:
            wanted = Wanted(manifest, action)
            for need in manifest.needs:
                basis = await self._basis(wanted, need)
                if basis is not None:
                    bases[need.name] = basis
            facts = await self._broker.facts(manifest.needs)
        return facts, bases

    def settle_blocking(self, manifest: Manifest, action: str, facts: list[Facts]) -> Bases:
        """As ``settle``, from code that can't wait: what is known already, no questions."""
        wanted, bases = Wanted(manifest, action), Bases()
        for need, known in zip(manifest.needs, facts, strict=True):
            basis = self._known_basis(wanted, need, known) if self._asks else None
            if basis is not None:
                bases[need.name] = basis
        return bases

    async def close(self) -> None:
        """Withdraws every question; what was allowed for the session is over."""
        self._session.clear()
        await self._questions.withdraw()

    # -- pinning -----------------------------------------------------------------------

    def _is_pinned(self, manifest: Manifest, facts: list[Facts]) -> bool:
        if not facts:
            return True
        grants = facts[0].grants
        known = self._pinned.get(manifest.plugin)
        if known is not None and known[0] is manifest and known[1] is grants:
            return True
        if grants.lockdown is not None:
            return True  # none has any force, and none can be changed
        found = [grants.find(manifest.plugin, need.name) for need in manifest.needs]
        if any(grant is not None and not grant.manifest for grant in found):
            return False
        self._pinned[manifest.plugin] = (manifest, grants)
        return True

    async def _pin(self, manifest: Manifest, facts: list[Facts]) -> list[Facts]:
        if manifest.checksum.startswith(UNVERIFIED):
            return facts  # such grants do not count for it
        with anyio.CancelScope(shield=True):
            try:
                await self._vault.pin(manifest)
            except StorageReadOnlyError:
                _log.warning("Grants can't be bound to a plugin: the vault is read-only.")
                self._pinned[manifest.plugin] = (manifest, facts[0].grants)
        return await self._broker.facts(manifest.needs)

    # -- deciding ----------------------------------------------------------------------

    def _decide(
        self, wanted: Wanted, need: Need, known: Facts, basis: Basis | None
    ) -> Decision:
        admission = self._broker.admission
        admission.policy_at(self._broker.clock.monotonic())
        info = info_of(need, known)
        return admission.decide(wanted, need, known.grants, info, basis=basis)

    async def _basis(self, wanted: Wanted, need: Need) -> Basis | None:
        """What a lease on one credential may rest on besides what is stored."""
        began = self._broker.clock.time()
        basis: Basis | None = None
        session = self._session.get((wanted.manifest.plugin, need.name))
        for _ in range(_ROUNDS):
            known = (await self._broker.facts((need,)))[0]
            basis = _still(basis, wanted, need, known.grants)
            decision = self._decide(wanted, need, known, basis)
            if decision.outcome is not Outcome.ASK:
                return basis
            if decision.reason is Reason.SECOND_FACTOR_NEEDED:
                shown = await self._factor(wanted, need, decision.second_factor, began)
                if shown is None:
                    return basis
                basis = (basis or Basis())._replace(factor=shown, mark=known.grants.mark)
                continue
            if session is not None:
                basis, session = session, None
                continue
            answered = await self._consent(wanted, need, known, decision)
            if answered is None:
                return basis
            basis = answered
        return basis

    def _known_basis(self, wanted: Wanted, need: Need, known: Facts) -> Basis | None:
        session = self._session.get((wanted.manifest.plugin, need.name))
        for basis in (None, _still(session, wanted, need, known.grants)):
            decision = self._decide(wanted, need, known, basis)
            if decision.reason is Reason.SECOND_FACTOR_NEEDED:
                return self._with_known_factor(wanted, need, known, decision, basis)
            if decision.allowed:
                return basis
        return None

    # -- a person ----------------------------------------------------------------------

    async def _consent(
        self,
        wanted: Wanted,
        need: Need,
        known: Facts,
        decision: Decision,
    ) -> Basis | None:
        """What the answer comes to; None: a denial."""
        if self._provider is None:
            return None
        request = request_for(wanted, need, known, decision)
        mark = known.grants.mark
        key = (request, wanted.manifest.digest, wanted.manifest.checksum, mark)
        with asking(wanted.manifest.plugin, "person"):
            work = partial(self._question, wanted, need, request, mark)
            answer = await self._questions.shared(key, work)
        if answer is None or not answer.choice.allows:
            return None
        if answer.choice in (Choice.UNTIL, Choice.ALWAYS):
            return Basis(mark=mark)  # it is stored
        pair = (wanted.manifest.plugin, need.name)
        basis = Basis(_given(wanted, need, answer, self._broker.clock.time()), None, mark)
        if answer.choice is Choice.SESSION:
            self._session[pair] = basis
        return basis

    async def _question(
        self, wanted: Wanted, need: Need, request: ConsentRequest, mark: int
    ) -> ConsentAnswer:
        """Asks, and stores what is to be stored, whoever still waits then."""
        answer = await self._ask(request)
        grants = await self._vault.grants()
        plugin = wanted.manifest.plugin
        void = grants.lockdown or grants.revoked_since(mark, plugin, need.name)
        if void and answer.choice.allows:
            answer = DENIED
        self._record(wanted, need, answer)
        if answer.choice in (Choice.UNTIL, Choice.ALWAYS, Choice.NEVER):
            try:
                await self._store(wanted, need, answer, mark)
            except GrantVoidError:  # another process was between the two
                return DENIED
        return answer

    async def _ask(self, request: ConsentRequest) -> ConsentAnswer:
        assert self._provider is not None
        answer: object = None
        try:
            with anyio.move_on_after(self._deadline):
                answer = await self._provider.ask(request)
        except Exception as error:
            _log.warning("Asking for consent failed: %s.", type(error).__name__)
        if not isinstance(answer, ConsentAnswer):
            return DENIED
        over = answer.until is not None and answer.until <= self._broker.clock.time()
        return DENIED if over else answer

    async def _store(
        self, wanted: Wanted, need: Need, answer: ConsentAnswer, mark: int
    ) -> None:
        yes = answer.choice.allows
        with anyio.CancelScope(shield=True):
            await self._vault.grant(
                wanted.manifest.plugin,
                need.name,
                scopes=need.scopes,
                reveal=yes and need.access is Access.REVEAL,
                until=answer.until,
                decision=GrantDecision.ALLOW if yes else GrantDecision.DENY,
                manifest=wanted.manifest if yes else None,
                created_by=answer.by,
                since_mark=mark if yes else None,
            )

    def _record(self, wanted: Wanted, need: Need, answer: ConsentAnswer) -> None:
        self._broker.log(
            AuditEvent(
                time=self._broker.clock.time(),
                kind=EventKind.GRANT,
                plugin=wanted.manifest.plugin,
                plugin_version=wanted.manifest.version,
                action=wanted.action,
                credential=need.name,
                decision="allow" if answer.choice.allows else "deny",
                reason=f"consent_{answer.choice.value}",
                detail=answer.by,
            ),
            flush=True,
        )

    # -- a second factor ---------------------------------------------------------------

    async def _factor(
        self, wanted: Wanted, need: Need, window: float, began: float
    ) -> float | None:
        """When a second factor was shown for this; None: it was not. The log says why."""
        subject = _subject(wanted, need)
        try:
            await self._gate(window).require_second_factor(subject, since=began)
        except AccessDeniedError as error:
            _log.info("No second factor was shown: %s.", type(error).__name__)
            return None
        now = self._broker.clock.time()
        if window == EACH_LEASE:
            return now
        state = await self._known_factors().access.read()
        return max((p.at for p in state.passed if _is_for(p, subject)), default=now)

    def _with_known_factor(
        self,
        wanted: Wanted,
        need: Need,
        known: Facts,
        decision: Decision,
        basis: Basis | None,
    ) -> Basis | None:
        window = decision.second_factor
        state = self._known_factors().access.now() if window > EACH_LEASE else None
        if state is None:
            return basis
        subject = _subject(wanted, need)
        at = [passed.at for passed in state.passed if _is_for(passed, subject)]
        if not at:
            return basis
        return (basis or Basis())._replace(factor=max(at), mark=known.grants.mark)

    def _known_factors(self) -> Factors:
        if self._factors is None:
            self._factors = Factors(self._vault)
        return self._factors

    def _gate(self, window: float) -> SecondFactorGate:
        found = self._gates.get(window)
        if found is None:
            found = self._gates[window] = SecondFactorGate(
                self._known_factors(),
                ask=self._ask_factor,
                # One that was shown a whole window ago counts no more for ``decide``.
                window=max(window - _INSTANT, 0.0),
                deadline=self._deadline,
            )
        return found


def _still(basis: Basis | None, wanted: Wanted, need: Need, grants: Grants) -> Basis | None:
    """The basis, if nothing was revoked since."""
    if basis is None or grants.revoked_since(basis.mark, wanted.manifest.plugin, need.name):
        return None
    return basis


def _is_for(passed: Passed, subject: Subject) -> bool:
    wanted = (subject.principal, subject.plugin, subject.credential)
    return wanted == (passed.principal, passed.plugin, passed.credential)


def _subject(wanted: Wanted, need: Need) -> Subject:
    return Subject(
        plugin=wanted.manifest.plugin,
        credential=need.name,
        plugin_version=wanted.manifest.version,
        action=wanted.action,
        scopes=need.scopes,
        reason=need.reason,
    )


def _given(wanted: Wanted, need: Need, answer: ConsentAnswer, now: float) -> Grant:
    """An answer that is not stored, as ``decide`` wants it."""
    manifest = wanted.manifest
    return Grant(
        id=new_id(),
        plugin=manifest.plugin,
        credential=need.name,
        scopes=need.scopes,
        reveal=need.access is Access.REVEAL,
        created=now,
        manifest=manifest.digest,
        checksum=manifest.checksum,
        created_by=answer.by,
    )
