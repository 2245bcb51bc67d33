"""What other processes do to second factors and challenges; see ``test_factor_processes``."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.auth.step_up import SecondFactorGate
from apex_creds.errors import AccessDeniedError
from apex_creds.vault import Vault
from tests.support.vaults import REPOSITORY

SUBJECT = Subject(plugin="p", credential="c")


def start(function: str, *args: object) -> subprocess.Popen[str]:
    """Runs a function of this module in a process of its own; for ``helpers.together``."""
    code = "import sys; from tests.support import access_workers as w; w.main(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-B", "-W", "error", "-c", code, function, json.dumps(args)],
        cwd=REPOSITORY,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def main(function: str, args: str) -> None:
    print(json.dumps(asyncio.run(globals()[function](*json.loads(args)))), flush=True)


async def go() -> None:
    """Says that it is ready, and waits for the word."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


async def show(home: str, answers: list[str]) -> list[str]:
    """Shows each answer; what became of it."""
    outcomes = []
    async with await Vault.unseal(home) as vault:
        factors = Factors(vault)
        await factors.enrolled()
        await go()
        for answer in answers:
            try:
                await factors.verify(answer, subject=SUBJECT)
                outcomes.append("passed")
            except AccessDeniedError as error:
                outcomes.append(type(error).__name__)
    return outcomes


async def redeem(home: str, answers: list[str]) -> list[str]:
    """Hands in answers to challenges; what became of them."""
    outcomes = []
    async with await Vault.unseal(home) as vault:
        challenger = Challenger(vault)
        await challenger.clients()
        await go()
        for answer in answers:
            try:
                outcomes.append((await challenger.redeem(bytes.fromhex(answer), SUBJECT)).name)
            except AccessDeniedError as error:
                outcomes.append(type(error).__name__)
    return outcomes


async def wait_for_factor(home: str, window: float) -> str:
    """Waits at a gate until another process shows a factor."""
    async with await Vault.unseal(home) as vault:
        gate = SecondFactorGate(Factors(vault), window=window, deadline=60.0)
        await go()
        try:
            await gate.require_second_factor(SUBJECT)
        except AccessDeniedError as error:
            return type(error).__name__
    return "passed"
