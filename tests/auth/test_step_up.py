"""The gates, on a real vault and with fakes: who passes, asks, waits, is refused."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from apex_creds.auth import challenge
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import (
    ChallengeGate,
    LocalResponder,
    SecondFactorGate,
    answering,
)
from apex_creds.errors import ChallengeError, LockedOutError, SecondFactorError

pytestmark = pytest.mark.anyio

SUBJECT = Subject(plugin="p", credential="c")


class Person:
    """Answers with the codes given, and remembers what it was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    async def __call__(self, subject, why):
        self.asked.append((subject.plugin, subject.credential, why))
        await anyio.lowlevel.checkpoint()
        return self.answers.pop(0) if self.answers else None


# -- the second factor -------------------------------------------------------------------


async def test_each_lease_takes_a_factor_of_its_own(factors, codes):
    person = Person(codes[0], codes[1])
    gate = SecondFactorGate(factors, ask=person)
    for number in (1, 2):
        await gate.require_second_factor(SUBJECT)
        assert len(person.asked) == number
        assert not gate.second_factor_shown(SUBJECT)
    with pytest.raises(SecondFactorError):
        await gate.require_second_factor(SUBJECT)


async def test_what_was_shown_for_one_lease_lets_no_waiting_one_through(factors, codes):
    asking = SecondFactorGate(factors, ask=Person(codes[0]))
    waiting = SecondFactorGate(factors, deadline=0.5)
    refused = []

    async def wait():
        try:
            await waiting.require_second_factor(SUBJECT)
        except SecondFactorError:
            refused.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.lowlevel.checkpoint()
        await asking.require_second_factor(SUBJECT)
    assert refused == [True]


async def test_within_the_window_nobody_is_asked_again(factors, codes, clock):
    person = Person(*codes)
    gate = SecondFactorGate(factors, ask=person, window=900)
    assert not gate.second_factor_shown(SUBJECT)
    await gate.require_second_factor(SUBJECT)
    clock.now += 900
    assert gate.second_factor_shown(SUBJECT)
    await gate.require_second_factor(SUBJECT)
    assert len(person.asked) == 1
    for other in ({"plugin": "q"}, {"credential": "d"}):
        changed = msgspec.structs.replace(SUBJECT, **other)
        assert not gate.second_factor_shown(changed)
        await gate.require_second_factor(changed)
    clock.now += 1
    assert not gate.second_factor_shown(SUBJECT)
    await gate.require_second_factor(SUBJECT)
    assert len(person.asked) == 4


async def test_calls_at_once_ask_once(factors, codes):
    person = Person(codes[0])
    gate = SecondFactorGate(factors, ask=person, window=900)
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(gate.require_second_factor, SUBJECT)
    assert len(person.asked) == 1


async def test_a_wrong_code_is_asked_for_again_and_says_so(factors, codes):
    person = Person("000000", codes[0])
    await SecondFactorGate(factors, ask=person).require_second_factor(SUBJECT)
    assert [why for *_, why in person.asked] == ["", "The code was not accepted."]


async def test_after_three_wrong_codes_it_is_refused_then_locked_out(factors):
    person = Person(*["x"] * 9)
    gate = SecondFactorGate(factors, ask=person)
    with pytest.raises(SecondFactorError):
        await gate.require_second_factor(SUBJECT)
    assert len(person.asked) == 3
    with pytest.raises(LockedOutError) as caught:
        await gate.require_second_factor(SUBJECT)
    assert caught.value.retry_after == 30.0


@pytest.mark.parametrize("ask", [None, Person()])
async def test_without_a_factor_nobody_is_asked(vault, ask):
    gate = SecondFactorGate(Factors(vault), ask=ask)
    with pytest.raises(SecondFactorError, match="there is none"):
        await gate.require_second_factor(SUBJECT)
    assert ask is None or ask.asked == []


async def test_no_answer_by_the_deadline_is_a_refusal(factors):
    async def never(subject, why):
        await anyio.sleep_forever()

    for ask in (never, None):
        gate = SecondFactorGate(factors, ask=ask, deadline=0.05)
        with pytest.raises(SecondFactorError, match="in time"):
            await gate.require_second_factor(SUBJECT)


async def test_what_breaks_while_asking_lets_nobody_through(factors):
    async def broken(subject, why):
        raise RuntimeError("no display")

    with pytest.raises(RuntimeError):
        await SecondFactorGate(factors, ask=broken).require_second_factor(SUBJECT)


async def test_one_that_waits_goes_on_when_it_is_shown_elsewhere(factors, codes):
    gate = SecondFactorGate(factors, deadline=30)
    # Shown before: does not count for one that begins to wait now.
    await factors.verify(codes[0], subject=SUBJECT)
    factors.access.clock.now += 1
    done = []

    async def wait():
        await gate.require_second_factor(SUBJECT)
        done.append(True)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert not done
        await factors.verify(codes[1], subject=SUBJECT)
    assert done


async def test_a_cancelled_wait_leaves_the_gate_usable(factors, codes):
    gate = SecondFactorGate(factors, ask=Person(codes[0]), window=900)
    waiting = SecondFactorGate(factors, window=900)
    waiting._one_at_a_time = gate._one_at_a_time
    with anyio.move_on_after(0.05):
        await waiting.require_second_factor(SUBJECT)
    await gate.require_second_factor(SUBJECT)


# -- challenges -----------------------------------------------------------------------------


@pytest.fixture
async def key(tmp_path, clock):
    with ClientKey.generate(tmp_path / "client.key", clock=clock) as key:
        yield key


@pytest.fixture
async def challenger(vault, key):
    made = Challenger(vault)
    await made.enrol("worker", key.public, credentials=["c"])
    return made


def responder(key, vault, allow=None):
    allow = allow or challenge.expecting(credential="c", plugin="p")
    return LocalResponder(key, vault_id=vault.vault_id, allow=allow)


async def test_a_client_that_answers_passes_each_time(vault, challenger, key):
    gate = ChallengeGate(challenger)
    with answering(responder(key, vault)):
        for _ in range(2):
            assert (await gate.require_challenge(SUBJECT)).name == "worker"
    with pytest.raises(ChallengeError, match="no client"):
        await gate.require_challenge(SUBJECT)


async def test_a_client_is_there_for_the_tasks_that_are_started_within(vault, challenger, key):
    gate, found = ChallengeGate(challenger), []

    async def one():
        found.append((await gate.require_challenge(SUBJECT)).name)

    async with anyio.create_task_group() as group:
        with answering(responder(key, vault)):
            group.start_soon(one)
    assert found == ["worker"]


async def test_a_client_that_does_not_want_to_sign_is_a_refusal(vault, challenger, key):
    gate = ChallengeGate(challenger)
    with pytest.raises(ChallengeError):
        await gate.require_challenge(SUBJECT, responder(key, vault, lambda _: False))


class Odd:
    """A responder that does something else."""

    def __init__(self, client, answer):
        self.client, self._answer = client, answer

    async def answer(self, message):
        if self._answer is None:
            await anyio.sleep_forever()
        return self._answer


@pytest.mark.parametrize("answer", [b"", bytes(96), None])
async def test_other_answers_and_none_are_a_refusal(challenger, key, answer):
    gate = ChallengeGate(challenger, deadline=0.05)
    with pytest.raises(ChallengeError):
        await gate.require_challenge(SUBJECT, Odd("worker", answer))
    with pytest.raises(ChallengeError):
        await gate.require_challenge(SUBJECT, Odd("nobody", answer))


async def test_an_answer_that_was_heard_is_of_no_use(vault, challenger, key):
    heard = []

    class Heard(LocalResponder):
        async def answer(self, message):
            heard.append(await super().answer(message))
            return heard[-1]

    allow = challenge.expecting(credential="c", plugin="p")
    gate = ChallengeGate(challenger)
    await gate.require_challenge(SUBJECT, Heard(key, vault_id=vault.vault_id, allow=allow))
    with pytest.raises(ChallengeError):
        await gate.require_challenge(SUBJECT, Odd("worker", heard[0]))
