"""Second factors: what one is, and what an answer changes. Pure; no I/O.

Guarantee: ``verify`` is the only way past. It is a function of the state that it is
committed against, so that answers which race, in one process or several, are judged one
after the other: a counter or a recovery code passes once, and an answer that comes in
while its principal is locked out is refused even if it is right.

A counter that passed never passes again, whatever the clock says. One that is lower than
another that passed does not pass either, unless that other one is from the future: it was
taken while the clock was wrong, and is no obstacle once it is right. What is remembered are
runs, from the first to the last counter of a time in which codes were used, so that what lies
between them is spent; a pause of ``PAUSE`` begins a new run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Protocol, runtime_checkable

import msgspec

from apex_creds.audit.events import FactorOutcome
from apex_creds.auth.access_document import (
    OPERATOR,
    AccessState,
    Factor,
    Lockout,
    Passed,
    RecoverySet,
)
from apex_creds.clocks import Moment
from apex_creds.crypto import kdf
from apex_creds.crypto.memory import SecretBytes

LOCKING_FAILURE: Final = 3
"""From so many wrong answers in a row on, each takes a wait, twice as long as the last."""
FIRST_DELAY: Final = 30.0
MAX_DELAY: Final = 86_400.0
MAX_WINDOW: Final = 86_400.0
"""A factor that was shown counts for a day at most, whatever a gate asks for."""
_MANY: Final = 256


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: who wants to use which credential, and whose consent it takes."""

    plugin: str
    credential: str
    principal: str = OPERATOR
    plugin_version: str = ""
    action: str = ""
    invocation: str = ""
    scopes: tuple[str, ...] = ()
    reason: str = ""


class SecondFactor(Protocol):
    """A kind of second factor. TOTP is one; WebAuthn would be another.

    Attributes:
        kind: What ``Factor.kind`` says of factors of this kind.
    """

    kind: ClassVar[str]

    async def check(
        self, factor: Factor, secret: SecretBytes, answer: str, *, now: float
    ) -> int | None:
        """Whether ``answer`` is right, as far as this factor alone shows.

        Args:
            factor: As stored.
            secret: Its secret (or public key, of a kind that has no secret).
            answer: What was typed; of an authenticator, its response as text.
            now: Unix seconds.

        Returns:
            The counter that it proves: a TOTP time step, a WebAuthn signature counter, or
            the time of a nonce that the kind itself gave out. It passes only if it is
            higher than every one before (see ``TimeBased``). None: the answer is wrong, or
            of another kind.
        """


@runtime_checkable
class TimeBased(Protocol):
    """A kind of second factor whose counters are times by the wall clock.

    A counter that was accepted while the clock was ahead is no obstacle once it is right.
    """

    def newest(self, factor: Factor, *, now: float) -> int:
        """The highest counter that there can be now."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer proves, before it is judged.

    Attributes:
        counters: By factor id, what ``SecondFactor.check`` returned.
        newest: By factor id, what ``TimeBased.newest`` returned.
        recovery: The digest of the answer as a recovery code; empty where it is none.
    """

    counters: dict[str, int] = {}
    newest: dict[str, int] = {}
    recovery: bytes = b""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The state after an answer, and what became of it.

    Attributes:
        factor: Id of the factor or recovery set that passed.
        retry_after: Seconds until another answer is taken; 0: at once.
    """

    state: AccessState
    outcome: FactorOutcome
    factor: str = ""
    retry_after: float = 0.0


def verify(
    state: AccessState,
    evidence: Evidence,
    *,
    principal: str,
    now: float | Moment,
    subject: Subject | None = None,
) -> Verdict:
    """Judges an answer against the state it is committed to.

    A recovery code passes during a lock-out, too: it can't be guessed, and it is what its
    owner has left while an attacker keeps guessing. Nothing else does.

    Args:
        state: As stored now.
        evidence: What the answer proves.
        principal: Who answers.
        now: This moment; or Unix seconds, where there is no other clock.
        subject: What it was asked for; remembered if it passes.
    """
    now = Moment.of(now)
    enrolled = [factor for factor in state.factors if factor.principal == principal]
    if not enrolled:
        return Verdict(state=state, outcome=FactorOutcome.NOT_ENROLLED)
    used = _recovery_set(state, principal, evidence.recovery)
    if used is not None:
        digest = evidence.recovery
        left = tuple(d for d in used.digests if not kdf.constant_time_equal(d, digest))
        rest = msgspec.structs.replace(used, digests=left)
        recovery = tuple(rest if codes is used else codes for codes in state.recovery)
        after = msgspec.structs.replace(state, recovery=recovery)
        return _passed(after, used.id, principal, now, subject)
    wait = locked_for(state, principal, now)
    if wait > 0:
        kept = _restamped(state, principal, now)
        return Verdict(state=kept, outcome=FactorOutcome.LOCKED, retry_after=wait)
    proven = [factor for factor in enrolled if factor.id in evidence.counters]
    counters, newest_of = evidence.counters, evidence.newest
    fresh = next(
        (f for f in proven if is_fresh(f.spent, counters[f.id], newest=newest_of.get(f.id))),
        None,
    )
    if fresh is None:
        before = _lockout(state, principal)
        failures = (before.failures if before else 0) + 1
        return Verdict(
            state=_locked(state, principal, failures, now),
            outcome=FactorOutcome.REPLAYED if proven else FactorOutcome.WRONG,
            retry_after=delay_after(failures),
        )
    counter, newest = counters[fresh.id], newest_of.get(fresh.id)
    runs = spend(fresh.spent, counter, newest=newest)
    moved = msgspec.structs.replace(fresh, counter=counter, runs=runs)
    factors = tuple(moved if factor is fresh else factor for factor in state.factors)
    after = msgspec.structs.replace(state, factors=factors)
    return _passed(after, fresh.id, principal, now, subject)


def locked_for(state: AccessState, principal: str, now: float | Moment) -> float:
    """Seconds until an answer of the principal is checked; 0: now.

    By the boot-time clock while the machine runs on; else by the wall clock, and never for
    longer than that many failures lock.
    """
    lock = _lockout(state, principal)
    if lock is None:
        return 0.0
    return min(max(0.0, _left(lock, Moment.of(now))), delay_after(lock.failures))


def delay_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    beyond = failures - LOCKING_FAILURE
    if beyond < 0:
        return 0.0
    return min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(beyond, 32))


def passed_since(
    state: AccessState, subject: Subject, *, since: float, now: float | Moment
) -> bool:
    """Whether a factor was shown for the subject, at ``since`` or later, and not after now."""
    return _find_pass(state, subject, since=since, now=Moment.of(now)) is not None


def claim(
    state: AccessState, subject: Subject, *, since: float, now: float | Moment
) -> AccessState | None:
    """The state without the subject's pass, which is used up; None where there is none."""
    found = _find_pass(state, subject, since=since, now=Moment.of(now))
    if found is None:
        return None
    kept = tuple(item for item in state.passed if item is not found)
    return msgspec.structs.replace(state, passed=kept)


def enrolled(state: AccessState, principal: str) -> bool:
    """Whether the principal has a second factor."""
    return any(factor.principal == principal for factor in state.factors)


def with_factor(state: AccessState, factor: Factor) -> AccessState:
    """The state with another factor."""
    return msgspec.structs.replace(state, factors=(*state.factors, factor))


def without_factor(state: AccessState, factor_id: str) -> AccessState:
    """The state without a factor; with a principal's last one go its recovery codes.

    The lock-out stays: taking a factor away and enrolling it again is no way around it.
    """
    kept = tuple(factor for factor in state.factors if factor.id != factor_id)
    if len(kept) == len(state.factors):
        return state
    owners = {factor.principal for factor in kept}
    return msgspec.structs.replace(
        state,
        factors=kept,
        recovery=tuple(codes for codes in state.recovery if codes.principal in owners),
        passed=tuple(item for item in state.passed if item.principal in owners),
    )


def _find_pass(
    state: AccessState, subject: Subject, *, since: float, now: Moment
) -> Passed | None:
    wanted = (subject.principal, subject.plugin, subject.credential)
    earliest = max(since, now.wall - MAX_WINDOW)
    for item in state.passed:
        same = (item.principal, item.plugin, item.credential) == wanted
        if same and earliest <= item.at_by(now) <= now.wall:
            return item
    return None


def _recovery_set(state: AccessState, principal: str, digest: bytes) -> RecoverySet | None:
    """The set that has the digest; every one is compared, so that the time reveals nothing."""
    found: RecoverySet | None = None
    for codes in state.recovery:
        hits = [kdf.constant_time_equal(known, digest) for known in codes.digests]
        if digest and any(hits) and codes.principal == principal:
            found = codes
    return found


def _passed(
    state: AccessState, factor: str, principal: str, now: Moment, subject: Subject | None
) -> Verdict:
    passed = state.passed
    if subject is not None:
        made = Passed(
            principal=principal,
            plugin=subject.plugin,
            credential=subject.credential,
            at=now.wall,
            moment=now if now.boot else None,
        )
        kept = [
            old
            for old in passed
            if msgspec.structs.replace(old, at=made.at, moment=made.moment) != made
            and old.at_by(now) > now.wall - MAX_WINDOW
        ]
        passed = (*kept, made)[-_MANY:]
    lockouts = tuple(lock for lock in state.lockouts if lock.principal != principal)
    after = msgspec.structs.replace(state, passed=passed, lockouts=lockouts)
    return Verdict(state=after, outcome=FactorOutcome.PASSED, factor=factor)


def _locked(state: AccessState, principal: str, failures: int, now: Moment) -> AccessState:
    """The state in which the principal waits from now on."""
    lock = Lockout(
        principal=principal,
        failures=failures,
        last=now.wall,
        until=now.wall + delay_after(failures),
        moment=now if now.boot else None,
    )
    others = tuple(item for item in state.lockouts if item.principal != principal)
    return msgspec.structs.replace(state, lockouts=(*others, lock))


def _restamped(state: AccessState, principal: str, now: Moment) -> AccessState:
    """As it was; or with the wait begun now, if it was written while the clock was wrong."""
    lock = _lockout(state, principal)
    if lock is None or _left(lock, now) <= delay_after(lock.failures):
        return state
    made = _locked(state, principal, lock.failures, now)
    return state if made == state else made  # a sum of floats may be a little more


def _left(lock: Lockout, now: Moment) -> float:
    until = lock.until
    if lock.moment is not None:
        until = lock.moment.wall_by(now) + delay_after(lock.failures)
    return until - now.wall


def _lockout(state: AccessState, principal: str) -> Lockout | None:
    return next((lock for lock in state.lockouts if lock.principal == principal), None)


Runs = tuple[tuple[int, int], ...]
"""Ascending, apart from each other."""

PAUSE: Final = 120
"""So many steps without a code: an hour of codes of 30 seconds."""
MAX_RUNS: Final = 32


def is_fresh(runs: Sequence[tuple[int, int]], counter: int, *, newest: int | None) -> bool:
    """Whether a counter is higher than all that count.

    Args:
        runs: What passed.
        counter: What is proved.
        newest: The highest that there can be now, of counters that are times; else None.
    """
    return counter > _floor(runs, newest)


def spend(runs: Sequence[tuple[int, int]], counter: int, *, newest: int | None) -> Runs:
    """The runs after a counter passed."""
    floor = _floor(runs, newest)
    near = floor >= 0 and counter - floor <= PAUSE
    ours = [
        (first, counter) if near and last == floor else (first, last) for first, last in runs
    ]
    made = sorted(ours if near else [*ours, (counter, counter)])
    while len(made) > MAX_RUNS:  # what lay between the oldest two counts as spent, too
        made[:2] = [(made[0][0], made[1][1])]
    return tuple(made)


def _floor(runs: Sequence[tuple[int, int]], newest: int | None) -> int:
    return max((last for first, last in runs if newest is None or first <= newest), default=-1)
