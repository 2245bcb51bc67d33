"""Has a person decide before leases are made: asks once, remembers, shows a second factor.

Guarantee: what comes out of here is only an authorization, which ``decide`` weighs again with
everything that is stored then; so a lockdown, a revocation or a change of the plugin while
the question was open wins over its answer. No answer, and a provider that fails, is a
denial. Invocations that ask the same at once ask once, and share the answer; the question
stands until all of them are gone. What does not exist is asked about, too, and then denied: a
plugin waits for it, and sees it refused, like any other.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from functools import partial
from typing import Final, NamedTuple

import anyio

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.auth.access_document import Passed
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import Ask, SecondFactorGate, asking
from apex_creds.concurrency import SingleFlight
from apex_creds.errors import AccessDeniedError, GrantVoidError, StorageReadOnlyError
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.lease import Authorization, effective_grant
from apex_creds.model import (
    CredentialInfo,
    CredentialKind,
    Delivery,
    DeliveryStyle,
    new_id,
    split_key,
)
from apex_creds.policy.consent import (
    DENIED,
    Choice,
    ConsentAnswer,
    ConsentProvider,
    ConsentRequest,
)
from apex_creds.policy.decide import UNVERIFIED, Decision, Outcome, Reason
from apex_creds.policy.decision_cache import added
from apex_creds.policy.grants import Grant, GrantDecision, Grants
from apex_creds.policy.manifest import Access, Manifest, Need
from apex_creds.policy.rules import EACH_LEASE, NEVER
from apex_creds.vault import Facts, Vault

_log = logging.getLogger(__name__)

Authorizations = dict[str, Authorization]
_INSTANT: Final = 1e-3
_ROUNDS: Final = 4
"""An answer, a factor, and each of them once more where the ground moved."""


class ConsentFlow:
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
        self._session: dict[tuple[str, str], Authorization] = {}
        self._questions: SingleFlight[Hashable, ConsentAnswer] = SingleFlight()
        self._gates: dict[float, SecondFactorGate] = {}
        self._factors: Factors | None = None
        self._pinned: dict[str, tuple[Manifest, Grants]] = {}

    # -- before an invocation ------------------------------------------------------

    def has_consent(
        self, manifest: Manifest, action: str, states: list[Facts], principal: str = ""
    ) -> bool:
        """Whether there is nothing to ask or to remember.

        Where nobody can be asked: two look-ups, whatever the number of credentials.
        """
        known = self._pinned.get(manifest.plugin) if states else None
        pinned = known is not None and known[0] is manifest and known[1] is states[0].grants
        pinned = pinned and not principal
        if not pinned and not self._is_pinned(manifest, states):
            return False
        if not self._asks:
            return True
        authorizer, clock = self._broker.authorizer, self._broker.clock
        authorizer.policy_at(clock.monotonic())
        wanted, now = RequestedAccess(manifest, action, principal), clock.time()
        return all(
            authorizer.permission(wanted, need, known.grants, info_of(need, known), now)
            for need, known in zip(manifest.needs, states, strict=True)
        )

    async def questions(
        self, manifest: Manifest, action: str, principal: str = ""
    ) -> list[ConsentRequest]:
        """What a person would be asked now; nobody is."""
        if self._provider is None:
            return []
        wanted, found = RequestedAccess(manifest, action, principal), []
        states = await self._broker.states(manifest.needs, principal)
        for need, known in zip(manifest.needs, states, strict=True):
            session = self._session.get((manifest.plugin, known.key))
            session = _still(session, wanted, known)
            decision = self._decide(wanted, need, known, session)
            asks = decision.outcome is Outcome.ASK
            if asks and decision.reason is not Reason.SECOND_FACTOR_NEEDED:
                found.append(request_for(wanted, need, known, decision))
        return found

    async def ask(
        self, manifest: Manifest, action: str, states: list[Facts], principal: str = ""
    ) -> tuple[list[Facts], Authorizations]:
        """Asks for what is not decided yet.

        Returns:
            The states as they are afterwards, and what leases may rest on besides.

        Raises:
            ApexCredsError: What was decided could not be stored.
        """
        # An unverified plugin's grants are not bound to it: they do not count for it.
        if not (self._is_pinned(manifest, states) or manifest.checksum.startswith(UNVERIFIED)):
            with anyio.CancelScope(shield=True):
                try:
                    await self._vault.pin(manifest)
                except StorageReadOnlyError:
                    _log.warning("Grants can't be bound to a plugin: the vault is read-only.")
                    self._pinned[manifest.plugin] = (manifest, states[0].grants)
            states = await self._broker.states(manifest.needs, principal)
        authorizations: Authorizations = {}
        if self._asks:
            wanted = RequestedAccess(manifest, action, principal)
            for need in manifest.needs:
                authorization = await self._authorization(wanted, need)
                if authorization is not None:
                    authorizations[need.name] = authorization
            states = await self._broker.states(manifest.needs, principal)
        return states, authorizations

    def known(
        self, manifest: Manifest, action: str, states: list[Facts], principal: str = ""
    ) -> Authorizations:
        """As ``ask``, from code that can't wait: what is known already, no questions."""
        wanted, authorizations = (
            RequestedAccess(manifest, action, principal),
            Authorizations(),
        )
        for need, known in zip(manifest.needs, states, strict=True):
            authorization = (
                self._known_authorization(wanted, need, known) if self._asks else None
            )
            if authorization is not None:
                authorizations[need.name] = authorization
        return authorizations

    async def close(self) -> None:
        """Withdraws every question; what was allowed for the session is over."""
        self._session.clear()
        await self._questions.withdraw()

    # -- pinning -----------------------------------------------------------------------

    def _is_pinned(self, manifest: Manifest, states: list[Facts]) -> bool:
        if not states:
            return True
        grants = states[0].grants
        if grants.lockdown is not None:
            return True  # none has any force, and none can be changed
        found = [grants.find(manifest.plugin, state.key) for state in states]
        if any(grant is not None and not grant.manifest for grant in found):
            return False
        if all(
            state.key == need.name for need, state in zip(manifest.needs, states, strict=True)
        ):
            self._pinned[manifest.plugin] = (manifest, grants)
        return True

    # -- deciding ----------------------------------------------------------------------

    def _decide(
        self,
        wanted: RequestedAccess,
        need: Need,
        known: Facts,
        authorization: Authorization | None,
    ) -> Decision:
        authorizer = self._broker.authorizer
        authorizer.policy_at(self._broker.clock.monotonic())
        info = info_of(need, known)
        return authorizer.decide(wanted, need, known.grants, info, authorization=authorization)

    async def _authorization(self, wanted: RequestedAccess, need: Need) -> Authorization | None:
        """What a lease on one credential may rest on besides what is stored."""
        began = self._broker.clock.time()
        authorization: Authorization | None = None
        session: Authorization | None = None
        key = ""
        for _ in range(_ROUNDS):
            known = (await self._broker.states((need,), wanted.principal))[0]
            if known.key != key:  # somebody has a credential of the name meanwhile, or none
                key, authorization = known.key, None
                session = self._session.get((wanted.manifest.plugin, key))
            authorization = _still(authorization, wanted, known)
            decision = self._decide(wanted, need, known, authorization)
            if decision.outcome is not Outcome.ASK:
                return authorization
            if decision.reason is Reason.SECOND_FACTOR_NEEDED:
                shown = await self._factor(wanted, need, key, decision.second_factor, began)
                if shown is None:
                    return authorization
                authorization = _with_factor(authorization, shown, known)
                continue
            if session is not None:
                authorization, session = session, None
                continue
            answered = await self._consent(wanted, need, known, decision)
            if answered is None:
                return authorization
            authorization = answered
        return authorization

    def _known_authorization(
        self, wanted: RequestedAccess, need: Need, known: Facts
    ) -> Authorization | None:
        session = self._session.get((wanted.manifest.plugin, known.key))
        for authorization in (None, _still(session, wanted, known)):
            decision = self._decide(wanted, need, known, authorization)
            if decision.reason is Reason.SECOND_FACTOR_NEEDED:
                window, subject = decision.second_factor, _subject(wanted, need, known.key)
                state = self._known_factors().access.now() if window > EACH_LEASE else None
                passed = () if state is None else state.passed
                at = max((each.at for each in passed if _is_for(each, subject)), default=None)
                return authorization if at is None else _with_factor(authorization, at, known)
            if decision.allowed:
                return authorization
        return None

    # -- a person ----------------------------------------------------------------------

    async def _consent(
        self,
        wanted: RequestedAccess,
        need: Need,
        known: Facts,
        decision: Decision,
    ) -> Authorization | None:
        """What the answer comes to; None: a denial."""
        if self._provider is None:
            return None
        request = request_for(wanted, need, known, decision)
        mark = known.grants.mark
        key = (request, wanted.manifest.digest, wanted.manifest.checksum, mark)
        with asking(wanted.manifest.plugin, "person"):
            work = partial(self._question, wanted, need, known.key, request, mark)
            answer = await self._questions.shared(key, work)
        if answer is None or not answer.choice.allows:
            return None
        if answer.choice in (Choice.UNTIL, Choice.ALWAYS):
            return Authorization(mark=mark)  # it is stored
        manifest = wanted.manifest
        name, whose = split_key(known.key)
        grant = Grant(  # an answer that is not stored, as ``decide`` wants it
            id=new_id(),
            plugin=manifest.plugin,
            credential=name,
            principal=whose,
            scopes=need.scopes,
            reveal=need.access is Access.REVEAL,
            sign=need.access is Access.SIGN,
            created=self._broker.clock.time(),
            manifest=manifest.digest,
            checksum=manifest.checksum,
            created_by=answer.by,
        )
        authorization = Authorization(grant, None, mark)
        if answer.choice is Choice.SESSION:
            self._session[manifest.plugin, known.key] = authorization
        return authorization

    async def _question(
        self, wanted: RequestedAccess, need: Need, key: str, request: ConsentRequest, mark: int
    ) -> ConsentAnswer:
        """Asks, and stores what is to be stored, even if nobody waits any more."""
        answer = await self._answer_to(request)
        grants = await self._vault.grants()
        manifest = wanted.manifest
        void = grants.lockdown or grants.revoked_since(mark, manifest.plugin, key)
        if void and answer.choice.allows:
            answer = DENIED
        allows = answer.choice.allows
        self._broker.log(
            AuditEvent(
                time=self._broker.clock.time(),
                kind=EventKind.GRANT,
                plugin=manifest.plugin,
                plugin_version=manifest.version,
                action=wanted.action,
                principal=wanted.principal,
                credential=key,
                decision="allow" if allows else "deny",
                reason=f"consent_{answer.choice.value}",
                detail=answer.by,
            ),
            flush=True,
        )
        if answer.choice not in (Choice.UNTIL, Choice.ALWAYS, Choice.NEVER):
            return answer
        try:
            name, whose = split_key(key)
            with anyio.CancelScope(shield=True):
                await self._vault.grant(
                    manifest.plugin,
                    name,
                    principal=whose,
                    scopes=need.scopes,
                    reveal=allows and need.access is Access.REVEAL,
                    sign=allows and need.access is Access.SIGN,
                    until=answer.until,
                    decision=GrantDecision.ALLOW if allows else GrantDecision.DENY,
                    manifest=manifest if allows else None,
                    created_by=answer.by,
                    since_mark=mark if allows else None,
                )
        except GrantVoidError:  # another process was between the two
            return DENIED
        return answer

    async def _answer_to(self, request: ConsentRequest) -> ConsentAnswer:
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

    # -- a second factor ---------------------------------------------------------------

    async def _factor(
        self, wanted: RequestedAccess, need: Need, key: str, window: float, began: float
    ) -> float | None:
        """When a second factor was shown for this; None: it was not. The log says why."""
        subject = _subject(wanted, need, key)
        gate = self._gates.get(window)
        if gate is None:
            gate = self._gates[window] = SecondFactorGate(
                self._known_factors(),
                ask=self._ask_factor,
                # One that was shown a whole window ago counts no more for ``decide``.
                window=max(window - _INSTANT, 0.0),
                deadline=self._deadline,
            )
        try:
            await gate.require_second_factor(subject, since=began)
        except AccessDeniedError as error:
            _log.info("No second factor was shown: %s.", type(error).__name__)
            return None
        now = self._broker.clock.time()
        if window == EACH_LEASE:
            return now
        state = await self._known_factors().access.read()
        return max((p.at for p in state.passed if _is_for(p, subject)), default=now)

    def _known_factors(self) -> Factors:
        if self._factors is None:
            self._factors = Factors(self._vault)
        return self._factors


def _still(
    authorization: Authorization | None, wanted: RequestedAccess, known: Facts
) -> Authorization | None:
    """The authorization, if nothing was revoked since."""
    if authorization is None or known.grants.revoked_since(
        authorization.mark, wanted.manifest.plugin, known.key
    ):
        return None
    return authorization


def _with_factor(
    authorization: Authorization | None, shown: float, known: Facts
) -> Authorization:
    return (authorization or Authorization())._replace(factor=shown, mark=known.grants.mark)


def _is_for(passed: Passed, subject: Subject) -> bool:
    wanted = (subject.principal, subject.plugin, subject.credential)
    return wanted == (passed.principal, passed.plugin, passed.credential)


def _subject(wanted: RequestedAccess, need: Need, key: str) -> Subject:
    return Subject(
        plugin=wanted.manifest.plugin,
        credential=key,
        plugin_version=wanted.manifest.version,
        action=wanted.action,
        scopes=need.scopes,
        reason=need.reason,
    )


__all__ = ["RequestedAccess", "info_of", "request_for"]

_BEARER: Final = Delivery(DeliveryStyle.BEARER)


class RequestedAccess(NamedTuple):
    """An invocation that is still to be made."""

    manifest: Manifest
    action: str
    principal: str = ""


def info_of(need: Need, known: Facts) -> CredentialInfo:
    """The credential's; where there is none, that of one like most.

    So a plugin waits, or does not, for what does not exist as for what it is not granted:
    how long a refusal takes does not tell it which credentials there are.
    """
    if known.record is not None:
        return known.record.info
    return CredentialInfo(
        id="",
        name=need.name,
        principal=split_key(known.key)[1],
        service=need.name,
        kind=CredentialKind.API_KEY,
        version=0,
        delivery=_BEARER,
        origins=need.origins,
        created=0.0,
        updated=0.0,
    )


def request_for(
    wanted: RequestedAccess, need: Need, known: Facts, decision: Decision
) -> ConsentRequest:
    """What a person is asked, in full."""
    grants, info = known.grants, info_of(need, known)
    exists = known.record is not None
    manifest = wanted.manifest
    before, _ = effective_grant(grants, manifest.plugin, known.key, None)
    in_words = ""
    if before is not None:
        signs = "to sign with it" if before.sign else "to use it"
        in_words = "to read it" if before.reveal else signs
        in_words += f", scopes {', '.join(before.scopes)}" if before.scopes else ""
        in_words += f", until @{before.until:.0f}" if before.until is not None else ""
    return ConsentRequest(
        plugin=manifest.plugin,
        version=manifest.version,
        action=wanted.action,
        credential=need.name,
        owner=info.principal,
        principal=wanted.principal,
        level=info.sensitivity.value if exists else "",
        scopes=need.scopes,
        origins=tuple(map(str, need.origins or info.origins)),
        methods=need.methods,
        paths=need.paths,
        access=need.access,
        reason=need.reason,
        why=(decision.reason if exists else Reason.UNKNOWN_CREDENTIAL).value,
        before=in_words,
        changes=_changes(manifest, need, before, grants),
        unverified=manifest.checksum.startswith(UNVERIFIED),
        second_factor=decision.second_factor < NEVER,
    )


def _changes(
    manifest: Manifest, need: Need, before: Grant | None, grants: Grants
) -> tuple[str, ...]:
    """What the plugin asks for beyond what the grant was given for; the weightiest first."""
    if before is None:
        return ()
    seen = grants.seen(before.manifest) if before.manifest else None
    if seen is not None:
        # First what would be read, then what is required: a long list is cut.
        needs = sorted(
            manifest.needs, key=lambda n: (n.access is not Access.REVEAL, not n.required)
        )
        found = list(added(seen, tuple(needs)))
    else:
        new = [scope for scope in need.scopes if scope not in before.scopes]
        found = [f"{need.name}: scope {scope}" for scope in new]
    if before.checksum != manifest.checksum:
        found.insert(0, "its code is another than it was")
    return tuple(found)
