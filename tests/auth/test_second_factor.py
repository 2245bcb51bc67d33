"""``verify`` against what must hold whatever is typed, and whenever."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apex_creds.audit.events import FactorOutcome
from apex_creds.auth import second_factor
from apex_creds.auth.access_document import AccessState, Factor, RecoverySet
from apex_creds.auth.second_factor import (
    LOCKING_FAILURE,
    MAX_DELAY,
    MAX_WINDOW,
    Evidence,
    Subject,
    delay_after,
    verify,
)
from apex_creds.clocks import Moment
from tests.support.clocks import TwoClocks

PHONE = Factor(id="a" * 32, kind="totp", label="phone", created=0.0, sealed=b"", counter=10)
TABLET = Factor(id="b" * 32, kind="totp", label="tablet", created=0.0, sealed=b"")
OTHER = Factor(id="c" * 32, kind="totp", principal="bob", created=0.0, sealed=b"")
CODES = RecoverySet(id="d" * 32, created=0.0, sealed=b"", digests=(b"x" * 32, b"y" * 32))
STATE = AccessState(factors=(PHONE, TABLET, OTHER), recovery=(CODES,))
SUBJECT = Subject(plugin="p", credential="c")
WRONG = Evidence()


def answer(state, evidence, *, now=100.0, principal="operator", subject=None):
    return verify(state, evidence, principal=principal, now=now, subject=subject)


def proof(counter: int, factor: Factor = PHONE) -> Evidence:
    return Evidence(counters={factor.id: counter})


def test_a_higher_counter_passes_once():
    first = answer(STATE, proof(11))
    assert (first.outcome, first.factor) == (FactorOutcome.PASSED, PHONE.id)
    again = answer(first.state, proof(11))
    assert again.outcome is FactorOutcome.REPLAYED
    assert answer(again.state, proof(12)).outcome is FactorOutcome.PASSED


@pytest.mark.parametrize("counter", [-1, 0, 9, 10])
def test_a_counter_that_is_not_higher_is_a_failure(counter):
    verdict = answer(STATE, proof(counter))
    assert verdict.outcome is FactorOutcome.REPLAYED
    assert verdict.state.lockouts[0].failures == 1


def test_one_factors_counter_says_nothing_of_anothers():
    state = answer(STATE, proof(50)).state
    assert answer(state, proof(11, TABLET)).outcome is FactorOutcome.PASSED


def test_a_factor_is_its_principals():
    assert answer(STATE, proof(11), principal="bob").outcome is FactorOutcome.WRONG
    assert answer(STATE, proof(1, OTHER), principal="bob").outcome is FactorOutcome.PASSED
    assert (
        answer(STATE, Evidence(recovery=b"x" * 32), principal="bob").outcome
        is FactorOutcome.WRONG
    )


def test_nobody_passes_without_a_factor():
    nothing = AccessState(recovery=(CODES,))
    for evidence in (WRONG, proof(11), Evidence(recovery=b"x" * 32)):
        verdict = answer(nothing, evidence)
        assert verdict.outcome is FactorOutcome.NOT_ENROLLED
        assert verdict.state is nothing


def test_a_recovery_code_passes_once_also_in_a_lock_out():
    state = STATE
    for _ in range(10):
        state = answer(state, WRONG).state
    used = answer(state, Evidence(recovery=b"x" * 32))
    assert (used.outcome, used.factor) == (FactorOutcome.PASSED, CODES.id)
    assert used.state.recovery[0].digests == (b"y" * 32,)
    assert used.state.lockouts == ()
    assert answer(used.state, Evidence(recovery=b"x" * 32)).outcome is FactorOutcome.WRONG


def test_no_digest_is_no_recovery_code():
    empty = msgspec.structs.replace(CODES, digests=(b"",))
    state = msgspec.structs.replace(STATE, recovery=(empty,))
    assert answer(state, WRONG).outcome is FactorOutcome.WRONG


def test_failures_lock_for_longer_and_longer():
    state, now, waits = STATE, 0.0, []
    for _ in range(20):
        verdict = answer(state, WRONG, now=now)
        waits.append(verdict.retry_after)
        state, now = verdict.state, now + verdict.retry_after
    assert waits[: LOCKING_FAILURE - 1] == [0.0] * (LOCKING_FAILURE - 1)
    growing = waits[LOCKING_FAILURE - 1 :]
    assert growing[:4] == [30.0, 60.0, 120.0, 240.0]
    assert growing == sorted(growing)
    assert growing[-1] == MAX_DELAY


@given(st.integers(0, 10**6))
def test_the_delay_never_shrinks_and_is_bounded(failures):
    assert 0 <= delay_after(failures) <= delay_after(failures + 1) <= MAX_DELAY


def test_in_a_lock_out_the_right_code_is_refused_and_not_used_up():
    state = STATE
    for _ in range(LOCKING_FAILURE):
        state = answer(state, WRONG).state
    locked = answer(state, proof(11))
    assert (locked.outcome, locked.retry_after) == (FactorOutcome.LOCKED, 30.0)
    assert locked.state is state
    assert answer(state, proof(11), now=129.9).outcome is FactorOutcome.LOCKED
    assert answer(state, proof(11), now=130.0).outcome is FactorOutcome.PASSED


@pytest.fixture
def locked():
    clock, state = TwoClocks(), STATE
    for _ in range(LOCKING_FAILURE):
        state = answer(state, WRONG, now=Moment.now(clock)).state
    return clock, state


@pytest.mark.parametrize("jump", [-1e9, -31.0, 31.0, 3.2e8])
def test_setting_the_clock_neither_ends_a_lock_out_nor_makes_it_longer(locked, jump):
    clock, state = locked
    clock.set_by(jump)
    clock.go_on(29.0)
    assert second_factor.locked_for(state, "operator", Moment.now(clock)) == pytest.approx(1.0)
    assert answer(state, proof(11), now=Moment.now(clock)).outcome is FactorOutcome.LOCKED
    clock.go_on(1.1)
    assert answer(state, proof(11), now=Moment.now(clock)).outcome is FactorOutcome.PASSED


def test_after_a_restart_a_lock_out_from_a_wrong_clock_begins_once_more(locked):
    before, state = locked
    clock = TwoClocks()
    clock.wall = before.wall - 3.2e8
    assert second_factor.locked_for(state, "operator", Moment.now(clock)) == 30.0
    verdict = answer(state, proof(11), now=Moment.now(clock))
    assert (verdict.outcome, verdict.retry_after) == (FactorOutcome.LOCKED, 30.0)
    clock.go_on(30.1)
    assert (
        answer(verdict.state, proof(11), now=Moment.now(clock)).outcome is FactorOutcome.PASSED
    )


@pytest.mark.parametrize("jump", [-1e9, -250.0, 250.0, 3.2e8])
def test_how_long_ago_a_factor_was_shown_does_not_change_with_the_clock(jump):
    clock = TwoClocks()
    state = answer(STATE, proof(11), now=Moment.now(clock), subject=SUBJECT).state
    clock.set_by(jump)
    clock.go_on(200.0)
    for window, counts in ((201.0, True), (199.0, False)):
        since, now = clock.wall - window, Moment.now(clock)
        assert second_factor.passed_since(state, SUBJECT, since=since, now=now) is counts


def test_one_principals_lock_out_is_not_anothers():
    state = STATE
    for _ in range(9):
        state = answer(state, WRONG).state
    assert answer(state, proof(1, OTHER), principal="bob").outcome is FactorOutcome.PASSED


def test_taking_a_factor_away_and_back_keeps_the_lock_out():
    state = STATE
    for _ in range(9):
        state = answer(state, WRONG).state
    for factor in (PHONE, TABLET):
        state = second_factor.without_factor(state, factor.id)
    assert state.recovery == ()  # of no use any more, and not of the next one's
    state = second_factor.with_factor(state, PHONE)
    assert answer(state, proof(11)).outcome is FactorOutcome.LOCKED
    assert second_factor.without_factor(state, "f" * 32) is state


def test_a_pass_is_for_one_plugin_one_credential_one_principal_and_a_while():
    state = answer(STATE, proof(11), subject=SUBJECT).state

    def shown(subject=SUBJECT, since=100.0, now=100.0):
        return second_factor.passed_since(state, subject, since=since, now=now)

    assert shown()
    assert shown(now=500.0)
    assert not shown(since=100.1, now=500.0)
    assert not shown(now=99.0)  # the clock went back
    assert not shown(since=-1e12, now=100.1 + MAX_WINDOW)
    for other in ({"plugin": "q"}, {"credential": "d"}, {"principal": "bob"}):
        assert not shown(msgspec.structs.replace(SUBJECT, **other))


def test_a_factor_counts_from_when_it_was_shown_for_a_day():
    state = answer(STATE, proof(11), subject=SUBJECT).state
    assert second_factor.passed_since(state, SUBJECT, since=0.0, now=100.0) is True
    assert second_factor.passed_since(state, SUBJECT, since=0.0, now=99.0) is False
    assert (
        second_factor.passed_since(state, SUBJECT, since=0.0, now=101.0 + MAX_WINDOW) is False
    )
    assert second_factor.passed_since(STATE, SUBJECT, since=0.0, now=100.0) is False
    later = answer(state, proof(12), now=200.0, subject=SUBJECT).state
    assert second_factor.passed_since(later, SUBJECT, since=0.0, now=200.0) is True


def test_a_pass_that_is_claimed_is_gone():
    state = answer(STATE, proof(11), subject=SUBJECT).state
    after = second_factor.claim(state, SUBJECT, since=0.0, now=100.0)
    assert after is not None
    assert second_factor.claim(after, SUBJECT, since=0.0, now=100.0) is None
    assert not second_factor.passed_since(after, SUBJECT, since=0.0, now=100.0)


def test_a_pass_without_a_subject_lets_nothing_through():
    assert answer(STATE, proof(11)).state.passed == ()


def test_passes_do_not_grow_without_end():
    state = STATE
    for number in range(1000):
        subject = Subject(plugin=f"p{number}", credential="c")
        state = answer(state, proof(11 + number), now=float(number), subject=subject).state
    assert len(state.passed) <= 256
    subject = Subject(plugin="p", credential="c")
    state = answer(state, proof(5000), now=1e9, subject=subject).state
    assert len(state.passed) == 1


class Answers(RuleBasedStateMachine):
    """Any sequence of answers, over any time: nothing passes twice, or while locked."""

    def __init__(self) -> None:
        super().__init__()
        self.state = STATE
        self.now = 0.0
        self.passed: set[tuple[str, int]] = set()
        self.recovered: set[bytes] = set()
        self.failures = 0
        self.locked_until = 0.0

    @rule(seconds=st.sampled_from([0.0, 1.0, 29.9, 30.0, 60.0, 3600.0, 1e5]))
    def wait(self, seconds):
        self.now += seconds

    @rule(counter=st.integers(-1, 30), factor=st.sampled_from([PHONE, TABLET]))
    def code(self, counter, factor):
        locked = self.now < self.locked_until
        highest = max((c for f, c in self.passed if f == factor.id), default=factor.counter)
        verdict = answer(self.state, proof(counter, factor), now=self.now)
        if verdict.outcome is FactorOutcome.PASSED:
            assert not locked
            assert counter > highest
            assert (factor.id, counter) not in self.passed
            self.passed.add((factor.id, counter))
            self.failures, self.locked_until = 0, 0.0
        else:
            assert locked or counter <= highest
            self.fail(verdict, locked=locked)
        self.state = verdict.state

    @rule()
    def wrong(self):
        verdict = answer(self.state, WRONG, now=self.now)
        assert verdict.outcome in (FactorOutcome.WRONG, FactorOutcome.LOCKED)
        self.fail(verdict, locked=self.now < self.locked_until)
        self.state = verdict.state

    @precondition(lambda self: len(self.recovered) < 3)
    @rule(code=st.sampled_from([b"x" * 32, b"y" * 32, b"z" * 32]))
    def recover(self, code):
        verdict = answer(self.state, Evidence(recovery=code), now=self.now)
        fresh = code in CODES.digests and code not in self.recovered
        assert (verdict.outcome is FactorOutcome.PASSED) is fresh
        if fresh:
            self.recovered.add(code)
            self.failures, self.locked_until = 0, 0.0
        else:
            self.fail(verdict, locked=self.now < self.locked_until)
        self.state = verdict.state

    def fail(self, verdict, *, locked):
        if locked:
            assert verdict.outcome is FactorOutcome.LOCKED
            assert verdict.state is self.state
            return
        self.failures += 1
        self.locked_until = self.now + delay_after(self.failures)

    @invariant()
    def the_lock_is_what_the_failures_say(self):
        wait = second_factor.locked_for(self.state, "operator", self.now)
        assert wait == pytest.approx(max(0.0, self.locked_until - self.now))  # sums of floats


TestAnswers = Answers.TestCase
TestAnswers.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


def test_the_document_reads_back_and_refuses_what_it_does_not_know():
    state = answer(answer(STATE, WRONG).state, proof(11), subject=SUBJECT).state
    data = msgspec.msgpack.encode(state)
    assert msgspec.msgpack.decode(data, type=AccessState) == state
    assert msgspec.msgpack.encode(AccessState()) == b"\x80"
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"news": 1}), type=AccessState)


def test_a_lock_that_a_sum_of_floats_makes_longer_is_not_written_again():
    state = STATE
    for now in (0.0, 0.0, 59.9):
        state = answer(state, WRONG, now=now).state
    refused = answer(state, WRONG, now=59.9)
    assert refused.outcome is FactorOutcome.LOCKED
    assert refused.state is state
