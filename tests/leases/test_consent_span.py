"""A wait for a second factor or a challenge is a span, with how it ended."""

from __future__ import annotations

import pytest

from apex_creds.auth.challenge import expecting
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import ChallengeGate, LocalResponder, SecondFactorGate
from apex_creds.errors import AccessDeniedError, SecondFactorError
from apex_creds.policy.consent import CallbackConsent
from apex_creds.telemetry import semconv
from tests.support.recording import recording
from tests.support.worlds import world_in

pytestmark = pytest.mark.anyio
SUBJECT = Subject(plugin="weather", credential="openai")


async def test_consent(tmp_path) -> None:
    async with world_in(tmp_path) as world:
        vault, challenger = world.vault, Challenger(world.vault)
        with ClientKey.generate(tmp_path / "client.key", clock=world.clock) as key:
            await challenger.enrol("worker", key.public, credentials=["openai"])
            allow = expecting(credential="openai", plugin="weather")
            worker = LocalResponder(key, vault_id=vault.vault_id, allow=allow)
            with recording() as seen:
                with pytest.raises(SecondFactorError):
                    await SecondFactorGate(Factors(vault)).require_second_factor(SUBJECT)
                await ChallengeGate(challenger).require_challenge(SUBJECT, worker)
                spans = [dict(span.attributes or {}) for span in seen.spans(semconv.CONSENT)]
    refused, given = spans
    assert refused == {
        semconv.PLUGIN: "weather",
        semconv.METHOD: "second_factor",
        semconv.ERROR_TYPE: "SecondFactorError",
    }
    assert given == {semconv.PLUGIN: "weather", semconv.METHOD: "challenge"}


async def test_a_question_to_a_person(tmp_path) -> None:
    async with world_in(tmp_path, consent=CallbackConsent(lambda _: None)) as world:
        with recording() as seen:
            with pytest.raises(AccessDeniedError):
                await world.call(lambda: 1, needs=("ungranted",))
            spans = [dict(span.attributes or {}) for span in seen.spans(semconv.CONSENT)]
    assert spans == [{semconv.PLUGIN: "demo", semconv.METHOD: "person"}]
