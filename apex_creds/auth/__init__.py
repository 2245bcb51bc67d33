"""What a use takes beyond a grant: second factors, signed challenges, a person's consent.

Guarantee: names are handed on when they are first asked for; nothing is imported before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apex_creds.auth.challenge import expecting
    from apex_creds.auth.challenge_client import ClientKey, StreamResponder, answer_over
    from apex_creds.auth.challenge_issuer import Challenger
    from apex_creds.auth.consent_queue import QueueConsent
    from apex_creds.auth.enrolment import Factors
    from apex_creds.auth.second_factor import SecondFactor, Subject
    from apex_creds.auth.step_up import (
        ChallengeGate,
        LocalResponder,
        SecondFactorGate,
        answering,
    )
    from apex_creds.auth.terminal import TerminalAsk, TerminalConsent
    from apex_creds.auth.totp import code_at

__all__ = [
    "ChallengeGate",
    "Challenger",
    "ClientKey",
    "Factors",
    "LocalResponder",
    "QueueConsent",
    "SecondFactor",
    "SecondFactorGate",
    "StreamResponder",
    "Subject",
    "TerminalAsk",
    "TerminalConsent",
    "answer_over",
    "answering",
    "code_at",
    "expecting",
]

if not TYPE_CHECKING:
    from apex_creds.lazy import names_from

    __getattr__ = names_from(
        __name__,
        {
            "challenge": ("expecting",),
            "challenge_client": ("ClientKey", "StreamResponder", "answer_over"),
            "challenge_issuer": ("Challenger",),
            "consent_queue": ("QueueConsent",),
            "enrolment": ("Factors",),
            "second_factor": ("SecondFactor", "Subject"),
            "step_up": ("ChallengeGate", "LocalResponder", "SecondFactorGate", "answering"),
            "terminal": ("TerminalAsk", "TerminalConsent"),
            "totp": ("code_at",),
        },
    )
