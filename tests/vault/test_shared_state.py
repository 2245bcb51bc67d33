"""What is counted, asked, shown and announced in one home of a vault holds in all of them."""

from __future__ import annotations

import time
from pathlib import Path

import anyio
import pytest

from apex_creds.auth import challenge
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.consent_queue import QueueConsent, Requests
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.totp import code_at
from apex_creds.errors import ChallengeError, LockedOutError, SecondFactorError
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey
from apex_creds.policy.consent import Choice, ConsentAnswer, ConsentRequest
from apex_creds.scheduler.rotation_state import CompromiseSuspected
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import Vault
from tests.support.loops import WITHIN
from tests.vault.test_shared import Place

pytestmark = pytest.mark.anyio
SUBJECT = Subject(plugin="p", credential="c")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def test_a_question_is_answered_from_another_home(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        answers: list[ConsentAnswer] = []

        async def ask() -> None:
            queue = QueueConsent(one, period=0.01)
            answers.append(await queue.ask(ConsentRequest(plugin="p", credential="c")))

        with anyio.fail_after(WITHIN):
            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                while not (waiting := await Requests(two).open()):
                    await anyio.sleep(0.01)
                answer = ConsentAnswer(choice=Choice.ONCE)
                await Requests(two).answer(waiting[0].id, answer)
        assert [given.choice for given in answers] == [Choice.ONCE]
        assert await Requests(two).open() == []


async def test_a_code_that_was_shown_in_one_home_is_used_up_in_all(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        code = await _enrol(one)
        await Factors(two).verify(code, subject=SUBJECT)
        with pytest.raises(SecondFactorError):
            await Factors(one).verify(code, subject=SUBJECT)
        assert await Factors(one).passed(SUBJECT, since=time.time() - 60)


async def test_wrong_answers_add_up_over_all_homes(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        code = await _enrol(one)
        wrong = [g for g in ("918273", "645981", "370516", "482915") if g != code]
        for vault, guess in zip((one, two, one), wrong, strict=False):
            with pytest.raises(SecondFactorError):
                await Factors(vault).verify(guess, subject=SUBJECT)
        for vault in (one, two):
            with pytest.raises(LockedOutError):
                await Factors(vault).verify(code, subject=SUBJECT)


async def _enrol(vault: Vault) -> str:
    """Makes a factor; a code of it that was not shown yet."""
    with Factors(vault).begin("phone") as new:
        now = time.time()
        first, second = (
            code_at(new.seed, settings=new.settings, now=now + away) for away in (0, 30)
        )
        await Factors(vault).confirm(new, first)
    return second


async def test_a_nonce_that_was_answered_in_one_home_is_used_up_in_all(
    place: Place, tmp_path: Path
) -> None:
    async with place.homes("one", "two") as (one, two):
        with ClientKey.generate(tmp_path / "client.key") as key:
            await Challenger(one).enrol("worker", key.public, credentials=["c"])
            message = await Challenger(two).issue("worker", SUBJECT)
            allow = challenge.expecting(credential="c", plugin="p")
            answer = key.answer(message, vault_id=one.vault_id, allow=allow)
        assert (await Challenger(one).redeem(answer, SUBJECT)).name == "worker"
        for vault in (one, two):
            with pytest.raises(ChallengeError):
                await Challenger(vault).redeem(answer, SUBJECT)


async def test_an_event_is_acted_on_by_whichever_worker_comes_to_it(place: Place) -> None:
    async with place.homes("one", "two") as (one, two):
        await one.put("a", ApiKey("1"), service="s")
        ended: list[tuple[str | None, str | None]] = []
        one.watch_revocations(lambda *pair: ended.append(pair))
        assert await RotationWorker(one).emit(CompromiseSuspected(service="s"))
        worker = RotationWorker(two)
        outcome = await worker.run_once()
        await worker.engine.release()
        assert not outcome.failed
        keyset = (await one.store.keystore()).by_label["api_keys/s"]
        assert [version.state for version in keyset.versions] == [
            KeyState.DESTROYED,
            KeyState.PRIMARY,
        ]
        with anyio.fail_after(WITHIN):
            while not ended:
                await one.store.refresh()
                await anyio.sleep(0)
        assert ended[0] == (None, None)
