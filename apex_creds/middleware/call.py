"""One wrapped call: an invocation, its leases, the search of its output, their common end.

Guarantee: ``finish`` runs its effects once, from anywhere; a call that is dropped
without having been finished is finished by the garbage collector. A plugin's steps see no
client that answers challenges, and leave the runtime's as it was. An invocation's span is
current in each step of the plugin's code, no matter who consumes a stream, and ends with the
invocation; it says nothing that the redactor would not let pass.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Self, final

import msgspec

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.auth.step_up import RESPONDER
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import (
    AccessDeniedError,
    ApexCredsError,
    OutputWithheldError,
    SecretLeakError,
)
from apex_creds.leases.broker import LeaseBroker
from apex_creds.leases.handle import CredentialHandle, CredentialMap
from apex_creds.leases.lease import (
    Authorization,
    Invocation,
    current_invocation,
    end_each,
    enter,
    leave,
)
from apex_creds.model import new_id
from apex_creds.policy.manifest import Manifest
from apex_creds.redaction.redactor import (
    Key,
    OpenSecret,
    Redactor,
    class_of,
    shown,
    withheld,
)
from apex_creds.telemetry import instruments
from apex_creds.telemetry.tracing import InvokeStep
from apex_creds.vault import Facts

NO_AUTHORIZATIONS: Final[Mapping[str, Authorization]] = MappingProxyType({})
_BY_SERVICE: Final = "response"
"""Where a service has sent a secret back; the plugin did not see it."""
_OWN_OUTCOMES: Final = frozenset({"ok", "closed", "abandoned"})
_LONGEST_OUTCOME: Final = 200


class OnLeak(StrEnum):
    """What happens when a secret is found: it is replaced, or the invocation fails."""

    REDACT = "redact"
    ERROR = "error"


class OnOpaque(StrEnum):
    """What becomes of output with an object in it that can't be searched; it is audited."""

    PASS = "pass"  # noqa: S105 - it passes
    WITHHOLD = "withhold"


@final
class WrappedCall(Invocation, eq=False, kw_only=True):
    """A call of a plugin from its leases to their end.

    Attributes:
        broker: Issues its leases.
        on_leak: What becomes of a leak.
        on_opaque: What becomes of output that can't be searched.
        started: When, on the monotonic clock.
        step: Its span and metrics; None while telemetry is off.
        leaks: The credentials whose secret was found in its output, and where.
    """

    broker: LeaseBroker
    on_leak: OnLeak
    on_opaque: OnOpaque
    started: float
    step: InvokeStep | None
    leaks: set[tuple[str, str]] = msgspec.field(default_factory=set)
    _opaque: set[type] = msgspec.field(default_factory=set)
    _finished: bool = False
    _redactor: Redactor | None = None

    @classmethod
    def begin(
        cls,
        broker: LeaseBroker,
        manifest: Manifest,
        action: str,
        principal: str,
        *,
        on_leak: OnLeak,
        on_opaque: OnOpaque,
        step: InvokeStep | None,
    ) -> WrappedCall:
        """A call that begins here and now; ``principal``: who it is for, empty: nobody."""
        parent = current_invocation()
        return cls(
            id=new_id(),
            manifest=manifest,
            action=action,
            actor=broker.actor(manifest, action, principal),
            refuse=broker.refuse,
            parent=parent,
            principal=principal,
            responder=RESPONDER.get() if parent is None else None,
            broker=broker,
            on_leak=on_leak,
            on_opaque=on_opaque,
            started=broker.clock.monotonic(),
            step=step,
        )

    def make_leases(
        self,
        states: list[Facts],
        *,
        ttl: float,
        authorizations: Mapping[str, Authorization] = NO_AUTHORIZATIONS,
    ) -> None:
        """A lease for each declared credential that is granted.

        Raises:
            AccessDeniedError: A required one is refused; no lease is left.
        """
        handles: dict[str, CredentialHandle] = {}
        try:
            for need, state in zip(self.manifest.needs, states, strict=True):
                name = need.name
                try:
                    lease = self.broker.issue(
                        self, need, state, ttl=ttl, authorization=authorizations.get(name)
                    )
                    handles[name] = CredentialHandle(lease)
                except AccessDeniedError:
                    if need.required:
                        raise
        except BaseException as error:
            self.finish(type(error).__name__)
            raise
        self.credentials = CredentialMap(handles)

    # -- output --------------------------------------------------------------------

    @property
    def redactor(self) -> Redactor:
        """Searches its output; made when there is first something to search for."""
        if self._redactor is None:
            made = Redactor(
                _Redeemed(self, self.broker),
                on_found=self.report_leak,
                on_opaque=self._unsearched,
            )
            self._redactor = made
            if self._finished:
                made.close()
            return made
        return self._redactor

    def shown(self, text: str) -> str:
        """``text`` that the plugin chose, as it may be logged and shown."""
        return shown(text, self.redactor) if self.redeemed else text

    def clean(self, value: object, *, where: str) -> object:
        """``value`` without secrets.

        Raises:
            SecretLeakError: Policy makes a leak an error, and there was one.
        """
        cleaned = self.redactor.value(value, where=where) if self.redeemed else value
        if self.leaks:
            self.check_leaks()
        return cleaned

    def check_leaks(self) -> None:
        """Fails the call for a leak, where policy says so.

        Raises:
            SecretLeakError: There was one.
        """
        if self._leaked_itself and self.on_leak is OnLeak.ERROR:
            raise SecretLeakError(
                "The plugin let a secret out; its output is withheld.",
                hint="See the leak in the audit log.",
            )

    def clean_error(self, error: BaseException) -> BaseException:
        """What to raise instead of ``error``; never raises itself."""
        if not self.redeemed:
            return error
        try:
            cleaned = self.redactor.exception(error)
        except Exception as failed:
            # What can't be searched, or whose leak can't be logged, is withheld.
            cleaned = withheld(error, class_of(failed))
        stops = not isinstance(error, Exception)
        tolerated = not self._leaked_itself or self.on_leak is OnLeak.REDACT
        if stops or tolerated or isinstance(error, SecretLeakError):
            return cleaned
        return SecretLeakError(
            f"The plugin let a secret out and raised {self.shown(class_of(error))}.",
            hint="See the leak in the audit log.",
        )

    def report_leak(self, name: str, where: str) -> None:
        """Audits that a secret was found, before what it was in goes on; once for each place.

        Raises:
            AuditUnavailableError: It could not be logged.
        """
        if (name, where) in self.leaks:
            return
        report_leak(
            self.broker,
            name,
            where,
            plugin=self.manifest.plugin,
            version=self.manifest.version,
            action=self.action,
            invocation=self.id,
        )
        self.leaks.add((name, where))

    def _unsearched(self, opaque: type) -> None:
        """Audits that output has an object that can't be searched, once for each class.

        Raises:
            AuditUnavailableError: It could not be logged.
            OutputWithheldError: It is not to be passed.
        """
        if opaque not in self._opaque:
            name = self.shown(f"{opaque.__module__}.{opaque.__qualname__}")[:_LONGEST_OUTCOME]
            outcome = "passed" if self.on_opaque is OnOpaque.PASS else "withheld"
            event = AuditEvent(
                time=self.broker.clock.time(),
                kind=EventKind.UNSEARCHED,
                plugin=self.manifest.plugin,
                plugin_version=self.manifest.version,
                action=self.action,
                invocation=self.id,
                outcome=outcome,
                detail=name,
            )
            self.broker.log(event, flush=True)
            self._opaque.add(opaque)
        if self.on_opaque is OnOpaque.WITHHOLD:
            raise OutputWithheldError(
                "The plugin's output has an object in it that can't be searched for secrets.",
                hint="Return text, numbers, containers or models of them; the audit log "
                "has the class.",
            )

    @property
    def _leaked_itself(self) -> bool:
        """Whether it was the plugin, and not a service, that let a secret out."""
        return any(where != _BY_SERVICE for _, where in self.leaks)

    # -- the end -------------------------------------------------------------------

    def fail(self, error: BaseException) -> BaseException:
        """Finishes the call after ``error``; returns what to raise instead of it."""
        failure = self.clean_error(error)
        self.finish(type(error).__name__)
        return failure

    def finish(self, outcome: str = "ok") -> None:
        """Ends the leases, wipes the needles, records the outcome; idempotent."""
        if self._finished:
            return
        self._finished = True
        self.ended = True
        end_each(self.leases)
        if outcome not in _OWN_OUTCOMES:  # or a plugin has named it, as an error's class
            outcome = outcome_of(outcome, self)
        if self.step is not None:
            self.step.finish(outcome)
        if self._redactor is not None:
            self._redactor.close()
        self.broker.log_end(self, outcome, self.started)


def outcome_of(outcome: str, call: WrappedCall) -> str:
    """What log and span may say of it: a plugin names its errors' classes itself."""
    try:
        clean = not call.redeemed or call.redactor.text(outcome, where="span") == outcome
    except Exception:
        clean = False
    return outcome[:_LONGEST_OUTCOME] if clean else "_OTHER"


class _Redeemed:
    """What was redeemed in a call."""

    __slots__ = ("_broker", "_call")

    def __init__(self, call: Invocation, broker: LeaseBroker) -> None:
        self._call = call
        self._broker = broker

    @property
    def salt(self) -> SecretBytes:
        return self._broker.recent.salt

    def __bool__(self) -> bool:
        return bool(self._call.redeemed)

    def names(self) -> list[Key]:
        return list(self._call.redeemed)

    def open(self, key: Key) -> OpenSecret:
        with suppress(ApexCredsError):
            return self._broker.reopen(self._call.redeemed[key])
        raise SecretLeakError(
            "The plugin's output can't be searched for secrets, so it is withheld.",
            hint="The credential was deleted or the vault sealed meanwhile.",
        )


class Inside:
    """Makes a call the current invocation for a step of the plugin's code, and its span."""

    __slots__ = ("_call", "_outer", "_responder", "_token")

    def __init__(self, call: WrappedCall) -> None:
        self._call = call

    def __enter__(self) -> None:
        call = self._call
        if call.step is not None:
            self._outer = call.step.enter()
        self._token = enter(call)
        # Nobody answers challenges for what a plugin's code does by itself.
        self._responder = RESPONDER.get()
        if self._responder is not None:
            RESPONDER.set(None)

    def __exit__(self, *_: object) -> None:
        step = self._call.step
        if step is not None:
            step.leave(self._outer)
        # A step may be torn down from another context, which never saw the change.
        try:
            leave(self._token)
        except ValueError:
            return
        if RESPONDER.get() is not self._responder:  # also by the plugin's code
            RESPONDER.set(self._responder)


@final
class WrappedCoroutine(Coroutine[object, object, object]):
    """``steps`` as a coroutine whose call ends even if not one step of it was run.

    Closing it, throwing into it (as a task does that is cancelled before its first step) or
    dropping it ends the call's leases. Python runs nothing of a coroutine that was not started,
    no ``finally`` either, so the coroutine itself can't do it.

    Args:
        steps: The coroutine that awaits ``awaitable`` and ends the call, once it has begun.
        awaitable: What the plugin returned.
        call: The call.
    """

    def __init__(
        self,
        steps: Coroutine[object, object, object],
        awaitable: Awaitable[object],
        call: WrappedCall,
    ) -> None:
        for name in ("__name__", "__qualname__"):  # a task's representation has them
            setattr(self, name, getattr(steps, name))
        self._steps = steps
        self._awaitable: Awaitable[object] | None = awaitable
        self._call = call
        self._dropped = weakref.finalize(self, call.finish, "abandoned")
        self._dropped.atexit = False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """``inspect.iscoroutine`` is to be true of it: runtimes ask."""
        return types.CoroutineType

    def __getattr__(self, name: str) -> object:
        """``cr_frame``, ``cr_running`` and the like are those of the steps."""
        if name.startswith("cr_"):
            return getattr(self._steps, name)
        raise AttributeError(name)

    def send(self, value: object) -> object:
        """Runs one step."""
        # From here on the steps end the call, or the stream that they come to.
        self._dropped.detach()
        self._awaitable = None
        return self._steps.send(value)

    def throw(self, *error: Any) -> object:
        """Raises an error where it stands; before the first step, that is its end."""
        raised = error[0] if isinstance(error[0], type) else type(error[0])
        self._end(raised.__name__)
        return self._steps.throw(*error)

    def close(self) -> None:
        """Ends it."""
        self._end("closed")
        self._steps.close()

    def __await__(self) -> Self:
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> object:
        return self.send(None)

    def _end(self, outcome: str) -> None:
        """Ends the call if no step was run."""
        awaitable, begun = self._awaitable, self._dropped.detach() is None
        self._awaitable = None
        if begun:
            return
        self._call.finish(outcome)
        close: Callable[[], object] | None = getattr(awaitable, "close", None)
        if close is not None:  # or its frame has the handles as long as somebody has this one
            close()


def report_leak(
    broker: LeaseBroker,
    credential: str,
    where: str,
    *,
    plugin: str,
    version: str,
    action: str,
    invocation: str,
) -> None:
    """Audits and counts that a credential's secret was found in output.

    Raises:
        AuditUnavailableError: It can't be logged, so that nothing may pass.
    """
    event = AuditEvent(
        time=broker.clock.time(),
        kind=EventKind.LEAK,
        plugin=plugin,
        plugin_version=version,
        action=action,
        invocation=invocation,
        credential=credential,
        outcome="redacted",
        detail=where,
    )
    broker.log(event, flush=True)
    instruments.leaked(where)
