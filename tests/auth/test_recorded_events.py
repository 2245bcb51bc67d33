"""What access control writes to the log, field by field, as every program before wrote it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from apex_creds.audit.events import Recorded
from apex_creds.audit.verify import read
from apex_creds.auth.challenge import expecting
from apex_creds.auth.challenge_client import ClientKey
from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.totp import code_at
from apex_creds.errors import ChallengeError, SecondFactorError
from tests.support.clocks import FakeClock
from tests.support.vaults import create, home_in

pytestmark = pytest.mark.anyio

SUBJECT = Subject(plugin="p", credential="c", action="run", scopes=("read",))
START = 1_700_000_000
RECORDED = """\
0 init
0 factor action=enrol principal=operator detail=FACTOR
0 factor plugin=p action=verify principal=operator credential=c decision=deny reason=replayed
30 factor plugin=p action=verify principal=operator credential=c decision=allow reason=passed detail=FACTOR
30 factor action=verify principal=nobody decision=deny reason=not_enrolled
30 factor action=recovery_codes principal=operator detail=CODES
30 factor action=verify principal=operator decision=allow reason=passed detail=CODES
30 client action=enrol detail=worker CLIENT
30 challenge plugin=p action=run credential=c decision=deny reason=not_issued detail=other
30 challenge plugin=p action=run credential=c decision=allow reason=answered detail=worker CLIENT
30 challenge plugin=p action=run credential=c decision=deny reason=challenge_unknown
30 challenge plugin=p action=run credential=c decision=deny reason=not_answered
30 client action=revoke detail=worker CLIENT
30 revoke decision=lockdown detail=test
30 revoke decision=sealed
30 factor action=verify principal=operator decision=deny reason=wrong
30 revoke decision=sealed
60 factor action=verify principal=operator decision=allow reason=passed detail=FACTOR
60 grant decision=unlock
60 factor action=remove detail=FACTOR
"""  # noqa: E501


async def test_events_are_those_of_before(tmp_path: Path) -> None:
    clock, ids = FakeClock(START), {}
    async with await create(tmp_path, clock=clock) as vault:
        factors, challenger = Factors(vault), Challenger(vault)
        with factors.begin("phone") as new:

            def code() -> str:
                return code_at(new.seed, settings=new.settings, now=clock.now)

            made = await factors.confirm(new, code())
            ids[made.id] = "FACTOR"
            with suppress(SecondFactorError):
                await factors.verify(code(), subject=SUBJECT)
            clock.now += 30
            await factors.verify(code(), subject=SUBJECT)
            with suppress(SecondFactorError):
                await factors.verify("000000", principal="nobody")
            codes = await factors.new_recovery_codes()
            ids[(await vault.access.read()).recovery[0].id] = "CODES"
            await factors.verify(codes[0])
            with ClientKey.generate(tmp_path / "key", clock=clock) as key:
                ids[key.id] = "CLIENT"
                await challenger.enrol("worker", key.public, credentials=["c"])
                with suppress(ChallengeError):
                    await challenger.issue("other", SUBJECT)
                allow = expecting(credential="c", plugin="p", scopes=["read"])
                message = await challenger.issue("worker", SUBJECT)
                answer = key.answer(message, vault_id=vault.vault_id, allow=allow)
                await challenger.redeem(answer, SUBJECT)
                with suppress(ChallengeError):
                    await challenger.redeem(answer, SUBJECT)
                await challenger.withdraw(await challenger.issue("worker", SUBJECT), SUBJECT)
                await challenger.revoke("worker")
            await vault.lockdown(reason="test")
            with suppress(SecondFactorError):
                await vault.unlock("no code")
            clock.now += 30
            await vault.unlock(code())
            await factors.remove(made.id)
    log = home_in(tmp_path) / "security" / "audit"
    assert [
        _line(event, ids) for event in read(log, vault_id=vault.vault_id)
    ] == RECORDED.splitlines()


def _line(event: Recorded, ids: dict[str, str]) -> str:
    """The fields that hold something, with names instead of random ids."""
    found = msgspec.to_builtins(event)
    seconds, kind = int(found.pop("time")) - START, found.pop("kind")
    held = (f" {k}={v}" for k, v in found.items() if v and k not in ("hash", "seq", "v"))
    line = f"{seconds} {kind}{''.join(held)}"
    for id_, name in ids.items():
        line = line.replace(id_, name)
    return line
