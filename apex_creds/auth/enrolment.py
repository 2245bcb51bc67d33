"""Second factors of a vault: enrolled, verified, counted, removed.

Guarantee: what an answer did (a step used, a code struck out, a failure counted) is durable
before its outcome is returned, and is decided by compare-and-set, so that restarts and other
processes change nothing. Every outcome is in the audit log, and no answer is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

import msgspec

from apex_creds.audit.events import EventKind, FactorOutcome
from apex_creds.auth import second_factor, totp
from apex_creds.auth.access_document import (
    OPERATOR,
    AccessState,
    Factor,
    HasAccess,
    RecoverySet,
)
from apex_creds.auth.second_factor import (
    Evidence,
    SecondFactor,
    Subject,
    TimeBased,
    Verdict,
)
from apex_creds.auth.totp import Totp, TotpSettings
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.keystore import Keystore
from apex_creds.errors import (
    InvalidInputError,
    LockedOutError,
    NotFoundError,
    SecondFactorError,
    UnknownKeyError,
)
from apex_creds.model import Closes, check_name, new_id

MAX_FACTORS: Final = 16
_MAX_ANSWER: Final = 64 * 1024
_ENROL: Final = "Enrol one: apex-creds factor enrol"


class Enrolment(Closes):
    """A TOTP factor that is not stored yet: its owner has still to show a code.

    ``uri`` and ``base32`` hold the seed, and are for the owner's eyes only. A context
    manager that wipes the seed.
    """

    def __init__(
        self, seed: SecretBytes, *, label: str, principal: str, settings: TotpSettings
    ) -> None:
        self._seed = seed
        self.label = label
        self.principal = principal
        self.settings = settings
        self._account = label if principal == OPERATOR else f"{principal} {label}"

    @property
    def seed(self) -> SecretBytes:
        """The seed, in locked memory."""
        return self._seed

    def uri(self) -> str:
        """The ``otpauth://`` URI, with the seed in it."""
        return totp.provisioning_uri(self._seed, settings=self.settings, account=self._account)

    def base32(self) -> str:
        """The seed, to type into an app that has no camera."""
        return totp.base32_of(self._seed)

    def close(self) -> None:
        """Wipes the seed; idempotent."""
        self._seed.close()


class Factors:
    """The second factors in a vault.

    Args:
        vault: Unsealed.
        kinds: What can check an answer; TOTP alone by default.
    """

    def __init__(
        self, vault: HasAccess, *, kinds: Iterable[SecondFactor] | None = None
    ) -> None:
        self.access = vault.access
        chosen: Iterable[SecondFactor] = (Totp(),) if kinds is None else kinds
        self._kinds = {kind.kind: kind for kind in chosen}

    # -- enrolment ---------------------------------------------------------------

    def begin(
        self,
        label: str,
        *,
        principal: str = OPERATOR,
        settings: TotpSettings | None = None,
    ) -> Enrolment:
        """A new TOTP factor with a random seed; nothing is stored before ``confirm``.

        Raises:
            InvalidNameError: The label or principal is not acceptable.
        """
        return Enrolment(
            SecretBytes.random(totp.SEED_BYTES),
            label=check_name(label, what="label"),
            principal=check_name(principal, what="principal"),
            settings=settings or TotpSettings(),
        )

    async def confirm(self, enrolment: Enrolment, answer: str) -> Factor:
        """Stores a factor, if ``answer`` is a code of it; that code is used up.

        Raises:
            SecondFactorError: It is not. Nothing was stored.
            InvalidInputError: The label is taken, or there are too many.
        """
        step = totp.matching_step(
            enrolment.seed, answer, settings=enrolment.settings, now=self.access.clock.time()
        )
        if step is None:
            raise SecondFactorError(
                "That is not the code of the new factor; it was not enrolled.",
                hint="Check the clocks of this machine and of the phone, and try again.",
            )
        return await self.add(
            kind=Totp.kind,
            label=enrolment.label,
            principal=enrolment.principal,
            secret=enrolment.seed,
            settings=enrolment.settings.stored(),
            counter=step,
        )

    async def add(
        self,
        *,
        kind: str,
        label: str,
        secret: SecretBytes,
        principal: str = OPERATOR,
        settings: dict[str, str] | None = None,
        counter: int = -1,
    ) -> Factor:
        """Stores a factor of any kind, that its owner has shown to work.

        Args:
            kind: Of a ``SecondFactor``.
            label: Unique for the principal.
            secret: What ``SecondFactor.check`` gets; sealed. The caller closes it.
            principal: Whose it is.
            settings: As the kind wants them.
            counter: The highest that must not pass any more.

        Raises:
            InvalidInputError: The label is taken, or there are too many.
        """
        bare = Factor(
            id=new_id(),
            kind=kind,
            principal=check_name(principal, what="principal"),
            label=check_name(label, what="label"),
            created=self.access.clock.time(),
            sealed=b"",
            settings=settings or {},
            counter=counter,
        )
        _check_room(await self.access.read(), bare)
        await self.access.ensure_key()

        def change(state: AccessState, keystore: Keystore) -> AccessState:
            _check_room(state, bare)
            sealed = self.access.seal(keystore, bare.id, secret)
            return second_factor.with_factor(
                state, msgspec.structs.replace(bare, sealed=sealed)
            )

        self._log("enrol", bare.principal, bare.id)
        state = await self.access.change(change)
        return next(factor for factor in state.factors if factor.id == bare.id)

    async def listed(self, principal: str | None = None) -> list[Factor]:
        """The factors, of one principal or all, oldest first."""
        state = await self.access.read()
        return [f for f in state.factors if principal in (None, f.principal)]

    async def remove(self, factor_id: str) -> None:
        """Takes a factor away. Ask for a factor first: ``verify``.

        Raises:
            NotFoundError: There is none of that id.
        """
        if all(factor.id != factor_id for factor in await self.listed()):
            raise NotFoundError(
                "There is no such second factor.", hint="See: apex-creds factor list"
            )
        self._log("remove", "", factor_id)
        await self.access.change(
            lambda state, _: second_factor.without_factor(state, factor_id)
        )

    # -- recovery codes ----------------------------------------------------------

    async def new_recovery_codes(self, principal: str = OPERATOR) -> list[str]:
        """Ten new codes, shown this once; the earlier ones are void.

        Raises:
            SecondFactorError: The principal has no second factor.
        """
        if not second_factor.enrolled(await self.access.read(), principal):
            raise SecondFactorError("There is no second factor to recover.", hint=_ENROL)
        await self.access.ensure_key()
        codes = totp.make_recovery_codes(os.urandom(totp.RECOVERY_RANDOM_BYTES))
        with SecretBytes.random(totp.RECOVERY_KEY_BYTES) as key:
            digests = tuple(totp.recovery_digest(key, totp.normalised(c)) for c in codes)
            bare = RecoverySet(
                id=new_id(),
                principal=principal,
                created=self.access.clock.time(),
                sealed=b"",
                digests=digests,
            )

            def change(state: AccessState, keystore: Keystore) -> AccessState:
                sealed = self.access.seal(keystore, bare.id, key)
                others = tuple(r for r in state.recovery if r.principal != principal)
                made = msgspec.structs.replace(bare, sealed=sealed)
                return msgspec.structs.replace(state, recovery=(*others, made))

            self._log("recovery_codes", principal, bare.id)
            await self.access.change(change)
        return codes

    async def recovery_codes_left(self, principal: str = OPERATOR) -> int:
        """How many codes are not used yet."""
        sets = (await self.access.read()).recovery
        return sum(len(codes.digests) for codes in sets if codes.principal == principal)

    # -- showing one -------------------------------------------------------------

    async def enrolled(self, principal: str = OPERATOR) -> bool:
        """Whether the principal has a second factor."""
        return second_factor.enrolled(await self.access.read(), principal)

    async def locked_for(self, principal: str = OPERATOR) -> float:
        """Seconds until a code of the principal is checked; 0: now."""
        state = await self.access.read()
        return second_factor.locked_for(state, principal, self.access.moment())

    async def verify(
        self,
        answer: str,
        *,
        principal: str = OPERATOR,
        subject: Subject | None = None,
        remember: bool = True,
    ) -> str:
        """Takes a code, or a recovery code; returns the id of what passed.

        Args:
            answer: As typed.
            principal: Who answers; with a ``subject``, its principal.
            subject: What it is shown for.
            remember: Whether a gate, in any process, may find that it was.

        Raises:
            LockedOutError: Too many failures; ``retry_after`` says how long.
            SecondFactorError: It is wrong or was used before, or there is no factor.
        """
        who = subject.principal if subject is not None else principal
        answer = answer if len(answer) <= _MAX_ANSWER else ""
        try:
            evidence = await self._evidence(answer, who)
        except UnknownKeyError:
            # Moved to another key meanwhile; if it was not, the error is raised again.
            evidence = await self._evidence(answer, who)
        verdict: Verdict | None = None

        def change(state: AccessState, _: Keystore) -> AccessState:
            nonlocal verdict
            verdict = second_factor.verify(
                state,
                evidence,
                principal=who,
                now=self.access.moment(),
                subject=subject if remember else None,
            )
            return verdict.state

        await self.access.change(change)
        assert verdict is not None
        passed = verdict.outcome is FactorOutcome.PASSED
        self.access.record(
            EventKind.FACTOR,
            action="verify",
            decision="allow" if passed else "deny",
            reason=verdict.outcome.value,
            plugin=subject.plugin if subject else "",
            credential=subject.credential if subject else "",
            principal=who,
            detail=verdict.factor,
        )
        if not passed:
            raise _refusal(verdict)
        return verdict.factor

    def passed_now(self, subject: Subject, *, since: float) -> bool:
        """Whether a factor was shown for it since then, if memory is current; else False."""
        state = self.access.now()
        now = self.access.moment()
        return state is not None and second_factor.passed_since(
            state, subject, since=since, now=now
        )

    async def passed(self, subject: Subject, *, since: float) -> bool:
        """Whether a factor was shown for the subject since then, in any process."""
        state = await self.access.read()
        now = self.access.moment()
        return second_factor.passed_since(state, subject, since=since, now=now)

    async def claim(self, subject: Subject, *, since: float) -> bool:
        """As ``passed``, and uses it up: of two that ask at once, one gets True."""
        claimed = False

        def change(state: AccessState, _: Keystore) -> AccessState:
            nonlocal claimed
            now = self.access.moment()
            after = second_factor.claim(state, subject, since=since, now=now)
            claimed = after is not None
            return state if after is None else after

        await self.access.change(change)
        return claimed

    # -- inside ------------------------------------------------------------------

    async def _evidence(self, answer: str, principal: str) -> Evidence:
        state = await self.access.read()
        counters, newest = dict[str, int](), dict[str, int]()
        for factor in state.factors:
            kind = self._kinds.get(factor.kind)
            if factor.principal == principal and kind is not None:
                now = self.access.clock.time()
                with await self.access.open(factor.id, factor.sealed) as secret:
                    counter = await kind.check(factor, secret, answer, now=now)
                if counter is not None:
                    counters[factor.id] = counter
                    if isinstance(kind, TimeBased):
                        newest[factor.id] = kind.newest(factor, now=now)
        code, digest = totp.normalised(answer), b""
        codes = next((r for r in state.recovery if r.principal == principal), None)
        if code and codes is not None:
            with await self.access.open(codes.id, codes.sealed) as key:
                digest = totp.recovery_digest(key, code)
        return Evidence(counters=counters, newest=newest, recovery=digest)

    def _log(self, action: str, principal: str, factor: str) -> None:
        self.access.record(EventKind.FACTOR, action=action, principal=principal, detail=factor)


def _check_room(state: AccessState, made: Factor) -> None:
    of_one = [f for f in state.factors if f.principal == made.principal]
    if any(f.label == made.label for f in of_one):
        raise InvalidInputError(
            "There is a second factor of that label.", hint="Choose another, or remove it."
        )
    if len(of_one) >= MAX_FACTORS:
        raise InvalidInputError("There are too many second factors.", hint="Remove some.")


def _refusal(verdict: Verdict) -> SecondFactorError:
    wait = verdict.retry_after
    if verdict.outcome is FactorOutcome.NOT_ENROLLED:
        return SecondFactorError("There is no second factor.", hint=_ENROL)
    if verdict.outcome is FactorOutcome.LOCKED:
        return LockedOutError(
            f"Too many wrong codes; no code is looked at for {wait:.0f} seconds.",
            hint="Wait, or use a recovery code.",
            retry_after=wait,
        )
    locked = f" No other is looked at for {wait:.0f} seconds." if wait else ""
    # The same for a wrong code and for one that was used: only the log has it.
    return SecondFactorError(
        f"The code was not accepted.{locked}", hint="A code works once; wait for the next."
    )
