"""What a check returns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from apex_creds.errors import ApexCredsError


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's.

    Attributes:
        name: What was looked at.
        detail: What was found.
        fix: What to do; empty where nothing is needed.
    """

    name: str
    state: State
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, State.OK, detail)


def warning(name: str, detail: str, fix: str) -> Check:
    """It works, with less protection than there could be."""
    return Check(name, State.WARNING, detail, fix)


def failure(name: str, detail: str, fix: str) -> Check:
    """It does not work, or is not safe."""
    return Check(name, State.FAILURE, detail, fix)


def failed(name: str, error: ApexCredsError) -> Check:
    """An error says what is wrong and what to do."""
    return failure(name, error.message, error.hint)
