"""What second factors and challenges do, to be killed in the middle of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from apex_creds.auth.challenge_issuer import Challenger
from apex_creds.auth.enrolment import Factors
from apex_creds.auth.second_factor import Subject
from apex_creds.errors import SecondFactorError
from apex_creds.vault import Vault
from tests.support import killer

SUBJECT = Subject(plugin="p", credential="c")


def right(home: str) -> None:
    """Shows a recovery code that is good."""
    _run(home, lambda vault: Factors(vault).verify(_note(home, "code")))


def wrong(home: str) -> None:
    """Shows a code that is none."""

    async def step(vault: Vault) -> None:
        try:
            await Factors(vault).verify("x")
        except SecondFactorError:
            killer.acknowledge("refused")

    _run(home, step)


def redeem(home: str) -> None:
    """Hands in an answer that is good."""
    answer = bytes.fromhex(_note(home, "answer"))
    _run(home, lambda vault: Challenger(vault).redeem(answer, SUBJECT))


def _note(home: str, name: str) -> str:
    return (Path(home) / name).read_text()


def _run(home: str, step: Callable[[Vault], Awaitable[object]]) -> None:
    async def run() -> None:
        vault = await Vault.unseal(home)
        await Factors(vault).enrolled()
        killer.begin()
        await step(vault)
        killer.acknowledge("done")
        killer.end()
        await vault.close()

    asyncio.run(run())
