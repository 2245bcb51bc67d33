"""One step of a rotation: what is asked of the provider, and the commit of what it came to.

The rules, in order:

1. The vault has on record which step is next before it is taken (``plan``). After a crash
   anywhere, another process takes the same one again, and comes to the same.
2. Secrets go to the rotator's ``origin``, which must be among the credential's own, or among
   those of the credential that the rotator logs in with.
3. ``create``: the next value is new, of the credential's kind, and has not ended already. It
   is stored before it is set.
4. Of two valid values at a time, the new one is given to plugins after its test. Of one at a
   time, as soon as it is set, since the old one has ended with that.
5. A refused ``set`` or ``test`` is undone: the value of before is the valid one again.
6. What was set late, for a state that others had left behind, is ended, and what is stored is
   set again if it is not valid any more.
7. ``finish``: the old value is made invalid first, and forgotten then.
8. A failure is an event, a metric and in the credential's state, and no secret is in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, Final

from apex_creds.audit.events import EventKind
from apex_creds.documents.records import Record
from apex_creds.errors import (
    ApexCredsError,
    CredentialChangedError,
    CredentialNotFoundError,
    RotatorError,
    RotatorRefusedError,
)
from apex_creds.model import CredentialInfo, Rotation, RotationStage, Secret, new_id
from apex_creds.redaction.log_records import held_back
from apex_creds.rotators import plan
from apex_creds.rotators.containment import exits_contained, values_contained
from apex_creds.rotators.plan import state_of
from apex_creds.rotators.protocol import Mode, Rotator, Task
from apex_creds.rotators.values import Values, note, open_values, store
from apex_creds.telemetry import instruments
from apex_creds.vault import Vault

_STEP_SECONDS: Final = 60.0


class Steps:
    """Takes the steps of a vault's rotations.

    Args:
        vault: Unsealed.
        find: Makes a rotator of its URI.
    """

    def __init__(self, vault: Vault, *, find: Callable[[str], Rotator]) -> None:
        self._vault = vault
        self._find = find
        self._begun: set[str] = set()

    async def take(self, record: Record, step: RotationStage) -> None:
        """One step, and its commit.

        Raises:
            CredentialChangedError: By others, who were first; it is to be read anew.
            CredentialNotFoundError: It was deleted meanwhile.
            ApexCredsError: It failed; that is on record.
        """
        info = record.info
        if step is RotationStage.IDLE:
            made = plan.begun(state_of(info), attempt=new_id(), now=self._now)
            await self._recorded(info, step, note(self._vault, info, made))
            self._begun.add(made.attempt)
        else:
            await self._recorded(info, step, self._at_provider(record, step))

    async def make_good(self, record: Record, late: Record) -> None:
        """Makes what is stored valid, after a step that was taken for a state of before.

        Args:
            record: As it is.
            late: As it was when that step was taken.

        Raises:
            ApexCredsError: It failed; that is on record.
        """
        step = RotationStage.UNDO
        await self._recorded(record.info, step, self._at_provider(record, step, late=late))

    async def _recorded(
        self, info: CredentialInfo, step: RotationStage, work: Coroutine[Any, Any, object]
    ) -> None:
        started, failure = self._vault.clock.monotonic(), None
        try:
            with exits_contained():
                await work
        except (CredentialChangedError, CredentialNotFoundError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a package of others does
            failure = error
        if failure is not None or step is RotationStage.FINISH:
            seconds = self._vault.clock.monotonic() - started
            what = type(failure).__name__ if failure else ""
            instruments.rotated(seconds, what, level="credential")
        if failure is not None:
            raise await self._failed(info, step, failure)

    @property
    def _now(self) -> float:
        return self._vault.ends.now()

    async def _at_provider(
        self, record: Record, step: RotationStage, *, late: Record | None = None
    ) -> None:
        rotator = self._find(state_of(record.info).rotator)
        values = open_values(self._vault, record, f"{step.value} credential")
        task = await self._task(record.info, rotator, values)
        action = f"{step.value} credential"
        set_late = open_values(self._vault, late, action).pending if late else None
        take = {
            RotationStage.CREATE: self._create,
            RotationStage.SET: self._set,
            RotationStage.TEST: self._test,
            RotationStage.FINISH: self._finish,
            RotationStage.UNDO: self._undo,
        }[step]
        if late is not None:
            take = partial(self._make_good, set_late=set_late)
        given = (values.current, *values.others, task.admin, set_late)
        with values_contained(record.info.key, filter(None, given)):
            async with asyncio.timeout(_STEP_SECONDS):
                await take(record.info, rotator, task, values)

    async def _task(self, info: CredentialInfo, rotator: Rotator, values: Values) -> Task:
        state, admin = state_of(info), None
        resumed = state.attempt not in self._begun
        self._begun.discard(state.attempt)
        if rotator.admin:
            record = (await self._vault.facts(rotator.admin)).record
            if record is None:
                raise RotatorRefusedError(
                    f"There is no {rotator.admin!r}, which the rotator logs in with.",
                    hint="Store it, or change ?admin= in the rotator's URI.",
                )
            self._vault.check_not_marked(record.info, action="rotate")
            _check_origin(record.info, rotator)
            admin = open_values(self._vault, record, "rotate with").current
        else:
            _check_origin(info, rotator)
        return Task(
            credential=info.name,
            attempt=state.attempt,
            begun=state.begun,
            now=self._vault.clock.time(),
            current=values.current,
            others=values.others,
            admin=admin,
            resumed=resumed,
            lost=state.lost >= (state.previous or state.since),
        )

    async def _create(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: Values
    ) -> None:
        with held_back() as release:
            made = await rotator.create(task)
            with values_contained(info.key, (made.secret,)):
                release()
                given = (values.current, *values.others)
                if made.secret.kind is not info.kind:
                    raise RotatorError("The rotator made no value of the credential's kind.")
                if any(made.secret.parts == each.parts for each in given):
                    raise RotatorError("The rotator made no new value: there is one like it.")
                if made.expires is not None and not self._now < made.expires < math.inf:
                    raise RotatorError("The rotator made a value that has ended already.")
                version, state = info.version + 1, state_of(info)
                state = plan.created(
                    state, version=version, expires=made.expires, now=self._now
                )
                await self._store(info, replace(values, pending=made.secret), state)

    async def _set(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: Values
    ) -> None:
        new = _there(values.pending)
        await rotator.set(task, new)
        if rotator.mode is Mode.DUAL:
            await note(self._vault, info, plan.was_set(state_of(info), now=self._now))
        else:
            await self._promote(info, rotator, values, RotationStage.TEST)

    async def _test(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: Values
    ) -> None:
        if rotator.mode is Mode.DUAL:
            await rotator.test(task, _there(values.pending))
            await self._promote(info, rotator, values, RotationStage.FINISH)
        else:
            await rotator.test(task, values.current)
            await note(self._vault, info, plan.tested(state_of(info), now=self._now))

    async def _promote(
        self, info: CredentialInfo, rotator: Rotator, values: Values, stage: RotationStage
    ) -> None:
        before = state_of(info)
        state = plan.promoted(before, stage, now=self._now, longest_grace=rotator.longest_grace)
        swapped = Values(_there(values.pending), previous=values.current)
        await store(self._vault, info, swapped, state, expires=before.expires)

    async def _finish(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: Values
    ) -> None:
        if values.previous is not None:
            await rotator.finish(task, values.previous)
        state = plan.finished(state_of(info), now=self._now)
        await self._store(info, Values(values.current), state)

    async def _undo(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: Values
    ) -> None:
        good = values.current
        if rotator.mode is Mode.DUAL:
            if values.pending is not None:
                await rotator.finish(task, values.pending)
        else:
            if values.pending is None and values.previous is not None:
                good = values.previous
            await self._proved(rotator, task, good)
        await self._store(info, Values(good), plan.undone(state_of(info), now=self._now))

    async def _make_good(
        self,
        info: CredentialInfo,
        rotator: Rotator,
        task: Task,
        values: Values,
        *,
        set_late: Secret | None,
    ) -> None:
        if rotator.mode is Mode.DUAL:
            kept = [each.parts for each in (values.current, *values.others)]
            if set_late is not None and set_late.parts not in kept:
                await rotator.finish(task, set_late)
        elif state_of(info).stage in (RotationStage.SET, RotationStage.UNDO):
            return  # of one value at a time, the step that is next says which it is
        await self._proved(rotator, task, values.current)

    async def _proved(self, rotator: Rotator, task: Task, value: Secret) -> None:
        """Has a value valid: set again if it is not."""
        try:
            await rotator.test(task, value)
        except RotatorRefusedError:
            await rotator.set(task, value)
            await rotator.test(task, value)

    async def _store(self, info: CredentialInfo, values: Values, state: Rotation) -> None:
        await store(self._vault, info, values, state, expires=info.expires)

    async def _failed(
        self, info: CredentialInfo, step: RotationStage, error: Exception
    ) -> ApexCredsError:
        """Puts a failure on record; returns what is raised for it."""
        state = state_of(info)
        if isinstance(error, RotatorRefusedError):
            code, state = "refused", plan.refused(state, now=self._now)
        else:
            code = "unreachable" if isinstance(error, RotatorError | TimeoutError) else "failed"
            state = plan.failed(state, code, now=self._now)
        with contextlib.suppress(CredentialChangedError, CredentialNotFoundError):
            await note(self._vault, info, state)
        self._vault.record(
            EventKind.ROTATION,
            action=f"{step.value} credential",
            credential=info.key,
            decision="deny",
            reason=code,
        )
        if isinstance(error, ApexCredsError):
            return error
        if isinstance(error, TimeoutError):
            return RotatorError(
                "The provider did not answer within a minute.",
                hint="Check the network; it is tried again.",
            )
        return RotatorError(
            f"The rotator failed in its step {step.value} ({type(error).__name__}).",
            hint="That is a mistake in the rotator; it is tried again.",
        )


def _check_origin(info: CredentialInfo, rotator: Rotator) -> None:
    if rotator.origin not in info.origins:
        raise RotatorRefusedError(
            f"{info.name!r} may not be sent to {rotator.origin}.",
            hint=f"Allow it: apex-creds edit NAME --origin {rotator.origin}",
        )


def _there(value: Secret | None) -> Secret:
    if value is None:
        raise RotatorRefusedError(
            "The value that was to be set is not stored.", hint="Rotate it again."
        )
    return value
