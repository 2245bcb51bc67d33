"""One guarded call: its invocation, its leases, its redactor, and their common end.

Guarantee: ``finish`` runs its effects once, whoever calls it first; a call that is dropped
without having been finished is finished by the garbage collector. A plugin's steps see no
client that answers challenges, and leave the runtime's as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, final

from apex_creds.auth.step_up import hide, show
from apex_creds.errors import AccessDeniedError, SecretLeakError
from apex_creds.leases.basis import Basis
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.handle import CredentialHandle, CredentialMap
from apex_creds.leases.invocation import Invocation, current_invocation, enter, leave
from apex_creds.middleware.observe import ObservedInside, outcome_of
from apex_creds.middleware.redact import OnLeak, Redactor, class_of, shown, withheld
from apex_creds.policy.manifest import Manifest
from apex_creds.telemetry.tracing import InvokeStep
from apex_creds.vault import Facts

_OWN_OUTCOMES: Final = frozenset({"ok", "closed", "abandoned"})
NO_BASES: Final[Mapping[str, Basis]] = MappingProxyType({})


@final
class GuardedInvocation(Invocation):
    """An invocation that knows its redactor, so that log records find it."""

    __slots__ = ("redactor",)

    def __init__(
        self,
        manifest: Manifest,
        *,
        action: str,
        parent: Invocation | None,
        broker: LeaseBroker,
    ) -> None:
        actor = broker.actor(manifest, action)
        super().__init__(manifest, action=action, actor=actor, parent=parent, broker=broker)
        self.redactor = Redactor(broker, self)

    def shown(self, text: str) -> str:
        """``text`` that the plugin chose, as it may be logged and told."""
        return shown(text, self.redactor)


@final
class GuardedCall:
    """A call of a plugin from its leases to their end.

    Attributes:
        step: Its span and metrics; None while telemetry is off.
    """

    __slots__ = (
        "_broker",
        "_finished",
        "_on_leak",
        "_started",
        "invocation",
        "redactor",
        "step",
    )

    def __init__(
        self, broker: LeaseBroker, manifest: Manifest, *, action: str, on_leak: OnLeak
    ) -> None:
        self._broker = broker
        self._on_leak = on_leak
        self._finished = False
        self._started = broker.clock.monotonic()
        self.step: InvokeStep | None = None
        self.invocation = GuardedInvocation(
            manifest, action=action, parent=current_invocation(), broker=broker
        )
        self.redactor = self.invocation.redactor

    def make_leases(
        self, facts: list[Facts], *, ttl: float, bases: Mapping[str, Basis] = NO_BASES
    ) -> CredentialMap:
        """A lease for each declared credential that is granted.

        Raises:
            AccessDeniedError: A required one is refused; no lease is left.
        """
        handles: dict[str, CredentialHandle] = {}
        try:
            for need, known in zip(self.invocation.manifest.needs, facts, strict=True):
                try:
                    basis = bases.get(need.name)
                    handle = self._broker.lease(
                        self.invocation, need, known, ttl=ttl, basis=basis
                    )
                    handles[need.name] = handle
                except AccessDeniedError:
                    if need.required:
                        raise
        except BaseException as error:
            self.finish(type(error).__name__)
            raise
        self.invocation.credentials = CredentialMap(handles)
        return self.invocation.credentials

    def inside(self) -> _Inside | ObservedInside:
        """Makes this the current invocation for a step of the plugin's code."""
        if self.step is not None:
            return ObservedInside(self.invocation, self.step)
        return _Inside(self.invocation)

    def clean(self, value: object, *, where: str) -> object:
        """``value`` without secrets.

        Raises:
            SecretLeakError: Policy makes a leak an error, and there was one.
        """
        cleaned = self.redactor.value(value, where=where)
        self.check_leaks()
        return cleaned

    def check_leaks(self) -> None:
        """Fails the call for a leak, where policy says so.

        Raises:
            SecretLeakError: There was one.
        """
        if self._is_failed():
            raise SecretLeakError(
                "The plugin let a secret out; its output is withheld.",
                hint="See the leak in the audit log.",
            )

    def clean_error(self, error: BaseException) -> BaseException:
        """What to raise instead of ``error``; never raises itself."""
        try:
            cleaned = self.redactor.exception(error)
        except Exception as failed:
            # What can't be searched, or whose leak can't be logged, is withheld.
            cleaned = withheld(error, class_of(failed))
        stops = not isinstance(error, Exception)
        if stops or isinstance(error, SecretLeakError) or not self._is_failed():
            return cleaned
        return SecretLeakError(
            f"The plugin let a secret out and raised {shown(class_of(error), self.redactor)}.",
            hint="See the leak in the audit log.",
        )

    def fail(self, error: BaseException) -> BaseException:
        """Finishes the call after ``error``; returns what to raise instead of it."""
        failure = self.clean_error(error)
        self.finish(type(error).__name__)
        return failure

    def _is_failed(self) -> bool:
        return self._on_leak is OnLeak.ERROR and bool(self.redactor.leaks)

    def end_leases(self) -> None:
        """Ends the leases, before the call is finished."""
        self._broker.end_all(self.invocation)

    def finish(self, outcome: str = "ok") -> None:
        """Ends the leases, wipes the needles, records the outcome; idempotent."""
        if self._finished:
            return
        self._finished = True
        self.invocation.ended = True
        self._broker.end_all(self.invocation)
        if outcome not in _OWN_OUTCOMES:  # or a plugin has named it, as an error's class
            outcome = outcome_of(outcome, self.redactor)
        if self.step is not None:
            self.step.finish(outcome)
        self.redactor.close()
        self._broker.log_end(self.invocation, outcome, self._started)


class _Inside:
    """Enters an invocation; a class, since it is on the path of every step."""

    __slots__ = ("_invocation", "_named", "_token")

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation

    def __enter__(self) -> None:
        self._token = enter(self._invocation)
        self._named = hide()

    def __exit__(self, *_: object) -> None:
        # A step may be torn down from another context, which never saw the change.
        try:
            leave(self._token)
        except ValueError:
            return
        show(self._named)
