"""Names of modules that pages of the release before showed hold for one release."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from apex_creds.lazy import MOVED

SHOWN = {
    "leases.admission": "Admission",
    "leases.answers": "StreamResponder answer_over",
    "leases.gates": "SecondFactorGate answering",
    "policy.challenge": "expecting",
    "policy.factors": "Subject",
    "policy.limits": "DenialsExceeded",
    "policy.totp": "code_at",
    "scheduler.bridge": "connect",
    "scheduler.events": "CompromiseSuspected OperatorRequest",
    "scheduler.policy": "Level LevelPolicy Policies",
    "scheduler.report": "status",
    "scheduler.state": "RotationState",
    "vault.challenger": "Challenger",
    "vault.client_key": "ClientKey",
    "vault.factors": "Factors",
}


@pytest.mark.parametrize("name", MOVED)
def test_what_a_page_showed_is_found(name: str) -> None:
    module = importlib.import_module(f"apex_creds.{name}")
    for shown in SHOWN[name].split():
        assert getattr(module, shown) is not None
    with pytest.raises(AttributeError):
        module.nothing_of_it  # noqa: B018


def test_what_was_never_there_is_not_found_and_nothing_is_loaded_unasked() -> None:
    code = """
import sys, apex_creds
assert "apex_creds.lazy" not in sys.modules
for name in ("apex_creds.nothing", "apex_creds.vault.nothing", "no_such_module"):
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert error.name == name
    else:
        raise AssertionError(name)
from apex_creds.policy import totp
assert totp.code_at.__module__ == "apex_creds.auth.totp"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
