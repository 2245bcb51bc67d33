"""A wait for a second factor or a challenge is a span, with how it ended."""

from __future__ import annotations

from typing import cast

import pytest

from apex_creds.audit import names
from apex_creds.errors import SecondFactorError
from apex_creds.leases.gates import ChallengeGate, SecondFactorGate, VaultGates
from apex_creds.policy.factors import Subject
from tests.audit.recording import recording

pytestmark = pytest.mark.anyio
SUBJECT = Subject(plugin="weather", credential="openai")


class _Refuses:
    async def require_second_factor(self, subject: Subject) -> None:
        raise SecondFactorError("No.")

    async def require_challenge(self, subject: Subject) -> str:
        return "phone"


async def test_consent() -> None:
    fake = _Refuses()
    gates = VaultGates(cast("SecondFactorGate", fake), cast("ChallengeGate", fake))
    with recording() as seen:
        with pytest.raises(SecondFactorError):
            await gates.require_second_factor(SUBJECT)
        await gates.require_challenge(SUBJECT)
        refused, given = (dict(span.attributes or {}) for span in seen.spans(names.CONSENT))
        assert refused == {
            names.PLUGIN: "weather",
            names.METHOD: "second_factor",
            names.ERROR_TYPE: "SecondFactorError",
        }
        assert given == {names.PLUGIN: "weather", names.METHOD: "challenge"}
