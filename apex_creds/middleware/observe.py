"""Invocations as spans and metrics, while telemetry is on.

Guarantee: an invocation's span is current in each step of the plugin's code, whoever
consumes a stream, and ends with the invocation; it says nothing that the redactor would
not let pass.
"""

from __future__ import annotations

from typing import Final

from apex_creds.auth.step_up import hide, show
from apex_creds.leases.invocation import Invocation, enter, leave
from apex_creds.middleware.redact import Redactor
from apex_creds.policy.manifest import Manifest
from apex_creds.telemetry import tracing
from apex_creds.telemetry.tracing import InvokeStep

_OTHER: Final = "_OTHER"
_LONGEST: Final = 200


def invocation(manifest: Manifest, action: str) -> InvokeStep:
    """An invocation begins."""
    return tracing.invoke(
        plugin=manifest.plugin,
        version=manifest.version,
        action=action[:_LONGEST],
    )


def outcome_of(outcome: str, redactor: Redactor) -> str:
    """What log and span may say of it: a plugin names its errors' classes itself."""
    try:
        clean = redactor.text(outcome, where="span") == outcome
    except Exception:
        clean = False
    return outcome[:_LONGEST] if clean else _OTHER


class ObservedInside:
    """Enters an invocation and its span."""

    __slots__ = ("_invocation", "_named", "_outer", "_step", "_token")

    def __init__(self, invocation: Invocation, step: InvokeStep) -> None:
        self._invocation = invocation
        self._step = step

    def __enter__(self) -> None:
        self._outer = self._step.enter()
        self._token = enter(self._invocation)
        self._named = hide()

    def __exit__(self, *_: object) -> None:
        self._step.leave(self._outer)
        # A step may be torn down from another context, which never saw the change.
        try:
            leave(self._token)
        except ValueError:
            return
        show(self._named)
