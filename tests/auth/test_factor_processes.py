"""Processes that show the same code, or guess, or answer, at once: one is told yes."""

from __future__ import annotations

import asyncio
import collections
import time
from pathlib import Path

import pytest

from apex_creds.audit.verify import verify
from apex_creds.auth import challenge
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.totp import code_at
from apex_creds.vault import Vault
from tests.support.access_workers import SUBJECT, start
from tests.support.vaults import create, finish, home_in, together, unseal

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PROCESSES = 4


@pytest.fixture
async def codes(tmp_path: Path) -> list[str]:
    """Codes of a factor that was enrolled, good once in the next half minute."""
    async with await create(tmp_path) as vault:
        factors = Factors(vault)
        with factors.begin("phone") as new:
            now = time.time()
            made = [
                code_at(new.seed, settings=new.settings, now=now + away) for away in (0, 30)
            ]
            await factors.confirm(new, made[0])
    return made[1:]


async def test_one_code_shown_by_many_processes_passes_once(tmp_path, codes):
    home = str(home_in(tmp_path))
    outcomes = await together(*(start("show", home, [codes[0]]) for _ in range(PROCESSES)))
    told = collections.Counter(o for one in outcomes for o in one)
    assert told == {"passed": 1, "SecondFactorError": PROCESSES - 1}


async def test_one_recovery_code_shown_by_many_processes_passes_once(tmp_path, codes):
    async with await unseal(tmp_path) as vault:
        recovery = await Factors(vault).new_recovery_codes()
    home = str(home_in(tmp_path))
    outcomes = await together(*(start("show", home, recovery[:3]) for _ in range(PROCESSES)))
    passed = [one[number] for one in outcomes for number in range(3)].count("passed")
    assert passed == 3
    for number in range(3):
        assert [one[number] for one in outcomes].count("passed") == 1
    async with await unseal(tmp_path) as vault:
        assert await Factors(vault).recovery_codes_left() == 7


async def test_guessing_from_many_processes_gains_nothing(tmp_path, codes):
    """Three wrong answers are looked at, whoever gives them; then none, right ones neither."""
    guesses = [g for g in ("918273", "645981", "370516", "482915") if g not in codes][:3]
    home = str(home_in(tmp_path))
    guesser = [start("show", home, [*guesses, codes[0]]) for _ in range(PROCESSES)]
    outcomes = collections.Counter(o for one in await together(*guesser) for o in one)
    assert outcomes == {"SecondFactorError": 3, "LockedOutError": 4 * PROCESSES - 3}
    async with await unseal(tmp_path) as vault:
        [lock] = (await Factors(vault).access.read()).lockouts
        assert lock.failures == 3
        assert verify(home_in(tmp_path) / "security/audit", vault_id=vault.vault_id).count


async def test_one_answer_handed_in_by_many_processes_counts_once(tmp_path):
    async with await create(tmp_path) as vault:
        challenger = Challenger(vault)
        with ClientKey.generate(tmp_path / "client.key") as key:
            await challenger.enrol("worker", key.public, credentials=["c"])
            allow = challenge.expecting(credential="c", plugin="p")
            answers = [
                key.answer(
                    await challenger.issue("worker", SUBJECT),
                    vault_id=vault.vault_id,
                    allow=allow,
                ).hex()
                for _ in range(5)
            ]
    home = str(home_in(tmp_path))
    outcomes = await together(*(start("redeem", home, answers) for _ in range(PROCESSES)))
    for number in range(5):
        told = collections.Counter(one[number] for one in outcomes)
        assert told == {"worker": 1, "ChallengeError": PROCESSES - 1}
    async with await unseal(tmp_path) as vault:
        assert (await Challenger(vault).access.read()).challenges == ()


@pytest.mark.parametrize("window", [0.0, 600.0])
async def test_one_process_waits_and_another_shows_the_factor(tmp_path, codes, window):
    waiters = [start("wait_for_factor", str(home_in(tmp_path)), window) for _ in range(2)]
    for process in waiters:
        assert process.stdout is not None
        assert process.stdin is not None
        assert (await asyncio.to_thread(process.stdout.readline)).strip() == "ready"
        process.stdin.write("go\n")
        process.stdin.flush()
    # They began to wait, or are about to: what is shown now is after that only if they
    # did, so it is shown until both have gone on. Without a window each takes one.
    async with await Vault.unseal(home_in(tmp_path)) as vault:
        factors = Factors(vault)
        recovery: list[str] = []
        shown = 0
        while any(process.poll() is None for process in waiters):
            recovery = recovery or await factors.new_recovery_codes()
            await factors.verify(recovery.pop(), subject=SUBJECT)
            shown += 1
            await asyncio.sleep(0.5)
    assert [await asyncio.to_thread(finish, process) for process in waiters] == ["passed"] * 2
    assert window or shown >= 2
