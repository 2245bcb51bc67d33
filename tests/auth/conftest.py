"""A vault whose clock the tests move, and a factor that is enrolled in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from apex_creds.auth.enrolment import Factors
from apex_creds.auth.totp import code_at
from apex_creds.vault import Vault
from tests.support.clocks import FakeClock
from tests.support.vaults import create


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def vault(tmp_path: Path, clock: FakeClock) -> AsyncIterator[Vault]:
    async with await create(tmp_path, clock=clock) as made:
        yield made


@pytest.fixture
async def factors(vault: Vault, clock: FakeClock) -> Factors:
    made = Factors(vault)
    with made.begin("phone") as new:
        await made.confirm(new, code_at(new.seed, settings=new.settings, now=clock.now))
    return made


@pytest.fixture
async def codes(factors: Factors) -> list[str]:
    return await factors.new_recovery_codes()
