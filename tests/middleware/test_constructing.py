"""What is made of the wrong parts says so at once, not when it is first used."""

from __future__ import annotations

import math
from collections.abc import Callable

import httpx
import pytest

from apex_creds.auth.enrolment import Factors
from apex_creds.auth.step_up import LocalResponder, SecondFactorGate
from apex_creds.auth.terminal import TerminalAsk, TerminalConsent
from apex_creds.errors import InvalidInputError
from apex_creds.middleware import CredentialMiddleware, OnLeak
from apex_creds.policy.consent import CallbackConsent
from apex_creds.scheduler.worker import RotationWorker
from tests.support.worlds import World

pytestmark = pytest.mark.anyio

WRONG = {
    "second_factor": [5, "123456", object()],
    "consent": [print, "terminal", object()],
    "responder": [print, object()],
    "transport": [print, httpx.HTTPTransport],
    "ttl": [0, -1, math.nan, math.inf, "300", True, None],
    "max_threads": [0, -1, 1.5, "4", True, None],
    "consent_deadline": [0, math.nan, "1", None],
    "on_leak": ["errors", "", None, True, 1],
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_middleware_of_wrong_parts(world: World, name: str) -> None:
    for value in WRONG[name]:
        if value is None and name in ("consent", "responder", "transport"):
            continue
        with pytest.raises(InvalidInputError) as caught:
            CredentialMiddleware(world.vault, **{name: value})
        assert name.split("_", maxsplit=1)[0] in str(caught.value)
    with pytest.raises(InvalidInputError):
        CredentialMiddleware(world.where)  # type: ignore[arg-type]


async def test_a_gate_where_what_asks_is_wanted(world: World) -> None:
    gate = SecondFactorGate(Factors(world.vault), ask=TerminalAsk())
    with pytest.raises(InvalidInputError) as caught:
        CredentialMiddleware(world.vault, second_factor=gate)  # type: ignore[arg-type]
    assert "SecondFactorGate" in str(caught.value)
    assert "TerminalAsk" in str(caught.value)


async def test_the_right_parts_are_taken(world: World) -> None:
    made = CredentialMiddleware(
        world.vault,
        second_factor=TerminalConsent(),
        consent=CallbackConsent(lambda request: None),
        on_leak="error",  # type: ignore[arg-type]
    )
    assert made._on_leak is OnLeak.ERROR
    await made.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda world: SecondFactorGate(None),
        lambda world: SecondFactorGate(world.vault),
        lambda world: LocalResponder("key", vault_id="", allow=print),
        lambda world: CallbackConsent("ask"),
        lambda world: RotationWorker(world.where),
        lambda world: RotationWorker(world.vault, rhythm=5),
        lambda world: RotationWorker(world.vault, pace=5),
        lambda world: RotationWorker(world.vault, notify="me"),
    ],
)
async def test_others_of_wrong_parts(world: World, make: Callable[[World], object]) -> None:
    with pytest.raises(InvalidInputError):
        make(world)
