"""Modules by the names that a page of an earlier release showed; they hold for one release.

Guarantee: nothing is loaded before such a name is imported, and no name of a module that there
is means another: this is asked last.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Final

__all__ = ["MOVED", "spec_of"]

MOVED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "leases.admission": "leases.authorizer",
        "leases.answers": "auth.challenge_client",
        "leases.gates": "auth.step_up",
        "policy.challenge": "auth.challenge",
        "policy.factors": "auth.second_factor",
        "policy.limits": "policy.rate_limits",
        "policy.totp": "auth.totp",
        "scheduler.bridge": "integrations.apexagent_events",
        "scheduler.events": "scheduler.rotation_state",
        "scheduler.policy": "scheduler.schedule",
        "scheduler.report": "scheduler.status",
        "scheduler.state": "scheduler.rotation_state",
        "vault.challenger": "auth.challenge_issuer",
        "vault.client_key": "auth.challenge_client",
        "vault.factors": "auth.enrolment",
    }
)
"""Where what was in a module is now; both within this package."""

_RENAMED: Final = {
    "leases.admission.Admission": "Authorizer",
    "scheduler.report.status": "rotation_status",
}
_HERE: Final = f"{__package__}."


def spec_of(name: str) -> ModuleSpec | None:
    """How a module of such a name is made; None where it is no such name."""
    known = name.startswith(_HERE) and name.removeprefix(_HERE) in MOVED
    return ModuleSpec(name, _Loader()) if known else None


class _Loader(Loader):
    """Makes a module whose names are those of the module that is meant."""

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.removeprefix(_HERE)

        def find(name: str) -> object:
            new = _RENAMED.get(f"{old}.{name}", name)
            return getattr(import_module(_HERE + MOVED[old]), new)

        module.__dict__["__getattr__"] = find
