"""Killed at any write boundary: what passed is used up, what failed is counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.auth import challenge
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.totp import code_at
from apex_creds.errors import AccessDeniedError
from apex_creds.vault import Vault
from tests.faults.anchored import copies
from tests.faults.scenarios.factors import SUBJECT
from tests.support.killer import Run, Scenario

FILE = Path(__file__).parent / "scenarios" / "factors.py"

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
async def homes(tmp_path: Path) -> Iterator[Path]:
    """Copies of one vault: a factor, a recovery code in ``code``, an answer in ``answer``."""
    original = tmp_path / "original"
    async with await Vault.create(original, master=f"file:{tmp_path}/master.key") as vault:
        factors, challenger = Factors(vault), Challenger(vault, ttl=challenge.MAX_TTL)
        with factors.begin("phone") as new:
            now = vault.clock.time()
            await factors.confirm(new, code_at(new.seed, settings=new.settings, now=now))
        (original / "code").write_text((await factors.new_recovery_codes())[0])
        with ClientKey.generate(tmp_path / "client.key") as key:
            await challenger.enrol("worker", key.public, credentials=["c"])
            message = await challenger.issue("worker", SUBJECT)
            answer = key.answer(message, vault_id=vault.vault_id, allow=lambda _: True)
        (original / "answer").write_text(answer.hex())
    return copies(original, tmp_path)


def runs(function: str, homes: Iterator[Path]) -> Iterator[tuple[Path, Run]]:
    """Killed at each point, then to the end: the log's thread may make the rest earlier."""
    with Scenario(FILE, function) as scenario:
        for point in [*scenario.points(next(homes)), None]:
            home = next(homes)
            yield home, scenario.run(home, at=point)


async def test_a_code_that_was_told_to_pass_does_not_pass_again(homes):
    outcomes = set()
    for home, run in runs("right", homes):
        async with await Vault.unseal(home) as vault:
            passed = await passes(Factors(vault).verify((home / "code").read_text()))
            assert not (passed and run.acknowledged)
            assert not await passes(Factors(vault).verify((home / "code").read_text()))
            outcomes.add(passed)
    assert outcomes == {True, False}


async def test_a_failure_that_was_told_is_counted(homes):
    outcomes = set()
    for home, run in runs("wrong", homes):
        async with await Vault.unseal(home) as vault:
            counted = sum(k.failures for k in (await Factors(vault).access.read()).lockouts)
            assert counted == 1 or (counted == 0 and not run.acknowledged)
            outcomes.add(counted)
    assert outcomes == {0, 1}


async def test_an_answer_that_was_told_to_count_does_not_count_again(homes):
    outcomes = set()
    for home, run in runs("redeem", homes):
        answer = bytes.fromhex((home / "answer").read_text())
        async with await Vault.unseal(home) as vault:
            passed = await passes(Challenger(vault).redeem(answer, SUBJECT))
            assert not (passed and run.acknowledged)
            assert not await passes(Challenger(vault).redeem(answer, SUBJECT))
            outcomes.add(passed)
    assert outcomes == {True, False}


async def passes(attempt) -> bool:
    try:
        return bool(await attempt)
    except AccessDeniedError:
        return False
