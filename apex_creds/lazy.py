"""What is imported when first asked for: a package's names, and modules that were renamed.

An import then costs what is used of it. Type checkers read a package's own imports.
``apex_creds`` itself does not use this module, since importing it loads nothing at all.

A module that the docs of an earlier release showed under another name is found under that
name for one release. This is asked last, so no such name hides a module that exists.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import MappingProxyType, ModuleType
from typing import Final

__all__ = ["MOVED", "names_from", "spec_of"]


def names_from(package: str, modules: Mapping[str, tuple[str, ...]]) -> Callable[[str], object]:
    """A package's ``__getattr__``.

    Args:
        package: Its ``__name__``.
        modules: The names that each of its modules has.
    """

    def find(name: str) -> object:
        for module, names in modules.items():
            if name in names:
                found: object = getattr(import_module(f"{package}.{module}"), name)
                return vars(sys.modules[package]).setdefault(name, found)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find


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
