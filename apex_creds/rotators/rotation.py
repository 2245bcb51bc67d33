"""Replaces secrets at their providers, one step and one commit at a time.

Guarantee: the vault has on record which step is next before it is taken, and each commit
holds only if credential and state are as they were read (compare-and-set). A crash anywhere
leaves a state from which another process goes on: the step is taken again. What plugins get is
a value that the provider takes: of two at a time the new one after its test, of one at a time
the new one as soon as it is set; and where its test is refused, the old one is set again. A
replaced value is stored until it is made invalid, and nowhere after. A failure is an event, a
metric and in the credential's state, never silent, and no secret is in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import anyio
from msgspec.structs import replace

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.concurrency import SingleFlight, in_lanes, run_to_completion
from apex_creds.documents.records import Record
from apex_creds.errors import (
    ApexCredsError,
    ConflictError,
    CredentialChangedError,
    CredentialNotFoundError,
    InvalidInputError,
    RotatorError,
    RotatorRefusedError,
    TokenError,
)
from apex_creds.model import (
    PENDING,
    PREVIOUS,
    SECTIONS,
    CredentialInfo,
    Rotation,
    RotationHealth,
    RotationStage,
    Secret,
    is_of_another_value,
    key_of,
    new_id,
    shown_key,
    split_key,
)
from apex_creds.redaction.matcher import Needles
from apex_creds.redaction.redactor import PUBLIC_PARTS
from apex_creds.rotators import plan
from apex_creds.rotators.masked_logs import masked_logs
from apex_creds.rotators.protocol import Mode, Rotator, Task, place_of
from apex_creds.rotators.registry import rotator_from_uri
from apex_creds.storage.base import Leadership, leading
from apex_creds.telemetry import instruments
from apex_creds.vault import Vault, credential_writes
from apex_creds.vault.lookup import PutItem

_STEP_SECONDS: Final = 60.0
_PATIENCE: Final = 60.0
_POLL: Final = 0.05
_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 3600.0


@dataclass(frozen=True, slots=True)
class _Values:
    """What a record has: at most three values of one credential."""

    current: Secret
    pending: Secret | None
    previous: Secret | None

    @classmethod
    def of(cls, record: Record, parts: Mapping[str, bytes]) -> _Values:
        kind = record.info.kind

        def value(prefix: str) -> Secret | None:
            chosen = [name for name in parts if name.startswith(prefix)]
            found = {name.removeprefix(prefix): parts[name] for name in chosen}
            return Secret(kind, found) if found else None

        now = {name: data for name, data in parts.items() if not is_of_another_value(name)}
        return cls(Secret(kind, now), value(PENDING), value(PREVIOUS))

    @property
    def others(self) -> tuple[Secret, ...]:
        return tuple(each for each in (self.pending, self.previous) if each is not None)


def _stored(
    current: Secret, *, pending: Secret | None = None, previous: Secret | None = None
) -> Secret:
    parts = dict(current.parts)
    for prefix, value in ((PENDING, pending), (PREVIOUS, previous)):
        if value is not None:
            parts |= {prefix + name: data for name, data in value.parts.items()}
    return Secret(current.kind, parts)


def rotations_of(vault: Vault) -> Rotations:
    """Those that rotate the credentials of a vault, for all in this process."""
    return vault.one_of(Rotations, Rotations)


class Rotations:
    """Rotates the credentials of a vault that have a rotator; see ``rotations_of``.

    Args:
        vault: Unsealed.
        find: Makes a rotator of its URI.
    """

    def __init__(
        self, vault: Vault, *, find: Callable[[str], Rotator] = rotator_from_uri
    ) -> None:
        self._vault = vault
        self._find = find
        self._flights: SingleFlight[tuple[str, bool], CredentialInfo] = SingleFlight()
        self._pauses: dict[str, tuple[float, float]] = {}
        self._begun: set[str] = set()

    async def ask(
        self,
        name: str,
        *,
        principal: str = "",
        upto: int | None = None,
        lost: bool = False,
        ending: bool = False,
        by_hand: bool = False,
    ) -> CredentialInfo:
        """Has a credential replaced; durable on return, and done by ``advance``.

        Args:
            name: The credential's.
            principal: Whose it is; empty: the shared one.
            upto: Values of this version and before; by default the current one, or, where
                they are lost, all that there are.
            lost: They may be in wrong hands: they are made invalid without grace.
            ending: The current one ends by itself: it does not wait for the grace of the one
                before it.
            by_hand: A person asks: also what was refused is tried again.

        Raises:
            CredentialNotFoundError: There is none of that name.
            InvalidInputError: Nothing replaces it at its provider.
        """
        while True:
            info = await self._vault.get(name, principal=principal)
            state = _state_of(info)
            if upto is None:
                upto = info.version if lost else state.since
            made = plan.asked(
                state,
                upto=upto,
                lost=lost,
                by_hand=by_hand,
                retires=self._now if ending else None,
            )
            if by_hand:
                self._pauses.pop(info.key, None)
            if made == state:
                return info
            with contextlib.suppress(CredentialChangedError):
                return await self._note(info, made)
            await self._vault.refresh()

    async def ensure(self, name: str, *, principal: str = "") -> CredentialInfo:
        """A value that is valid now; one that has expired is replaced first.

        All that want the same one wait for one rotation.

        Args:
            name: The credential's.
            principal: Whose it is; empty: the shared one.

        Raises:
            TokenError: It could not be replaced now.
            CredentialNotFoundError: There is none of that name.
        """
        info, why = await self._vault.get(name, principal=principal), ""
        try:
            if info.has_expired(self._now):
                since = _state_of(info).since
                await self.ask(name, principal=principal, upto=since, ending=True)
                if self._is_paused(info.key):
                    why = "its provider could not be asked a moment ago."
                else:
                    info = await self.advance(name, principal=principal)
        except (RotatorError, ConflictError, InvalidInputError) as error:
            why = error.message
        if why or info.has_expired(self._now):
            whose = f" --for {shlex.quote(principal)}" if principal else ""
            raise TokenError(
                f"{name!r} has expired and could not be replaced: "
                f"{why or 'somebody has to look at it.'}",
                hint=f"Its owner runs: apex-creds rotate credential {shlex.quote(name)}{whose}",
            )
        return info

    async def advance(
        self, name: str, *, principal: str = "", wait: bool = True
    ) -> CredentialInfo:
        """Takes every step that can be taken now.

        Args:
            name: The credential's.
            principal: Whose it is; empty: the shared one.
            wait: Where another process rotates it, until that has done so; else it is left
                to that one.

        Raises:
            RotatorError: A step failed; it is on record, and will be tried again.
            ConflictError: Another process rotates it.
            CredentialNotFoundError: There is none of that name.
            InvalidInputError: Nothing replaces it at its provider.
        """
        found, failed, key = None, None, key_of(name, principal)
        while found is None:
            try:
                found = await self._flights.shared(
                    (key, wait), lambda: self._in_turn(key, wait=wait)
                )
            except Exception as error:  # noqa: BLE001 - raised below, without the frames
                # They hold secrets, and a third party's error may.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                failed = error
            if failed is not None:
                raise failed
        return found

    async def forget_others(self, info: CredentialInfo) -> CredentialInfo:
        """Deletes the values that a rotation has left beside the current one.

        Raises:
            CredentialChangedError: The credential was changed meanwhile.
        """
        record = await self._vault.find(info.name, principal=info.principal)
        values = _Values.of(record, self._parts(record, "forget others"))
        if not values.others or info.rotation is None:
            return info
        state = replace(
            info.rotation,
            stage=RotationStage.IDLE,
            since=info.version + 1,
            pending=0,
            previous=0,
            retires=0.0,
        )
        await self._store(info, values.current, state, expires=info.expires)
        return await self._vault.get(info.name, principal=info.principal)

    async def run_due(self) -> int:
        """Takes the steps of all credentials; what fails waits for the next time.

        One after the other at each provider, so that one which does not answer holds up
        nothing at others.

        Returns:
            How many credentials could not be rotated.
        """
        await in_lanes(self._due, self._advanced)
        return sum(is_wrong(info) for info in await self._vault.list())

    async def advance_all(self, asked: Mapping[str, str]) -> None:
        """Takes the steps of these; what fails is on record, and waits for ``run_due``.

        Args:
            asked: Credentials by their keys, and where they are rotated.
        """

        async def due() -> Mapping[str, str]:
            return asked

        await in_lanes(due, self._advanced)

    async def _due(self) -> dict[str, str]:
        waits = list[tuple[bool, float, str, str]]()
        for info in await self._vault.list():
            state = info.rotation
            if state is None or info.dynamic or self._next(info) is None:
                continue
            if not self._is_paused(info.key):
                calm, place = state.lost < state.since, place_of(state.rotator)
                waits.append((calm, state.attempted, info.key, place))
        return {key: place for *_, key, place in sorted(waits)}

    async def _advanced(self, key: str) -> bool:
        name, principal = split_key(key)
        try:
            await self.advance(name, principal=principal, wait=False)
        except RotatorError as error:
            return isinstance(error, RotatorRefusedError)
        except ApexCredsError:
            pass
        return True

    # -- whose turn it is ----------------------------------------------------------

    async def _in_turn(self, key: str, *, wait: bool) -> CredentialInfo:
        clock, (name, principal) = self._vault.clock, split_key(key)
        deadline = clock.monotonic() + _PATIENCE
        while True:
            info = await self._vault.get(name, principal=principal)
            _state_of(info)
            if self._next(info) is None:
                return info
            async with leading(self._vault.store.storage, f"rotate_{info.id}") as lead:
                if lead:
                    await self._vault.refresh()
                    return await self._all_steps(key, lead)
            if not wait or clock.monotonic() > deadline:
                raise ConflictError(
                    f"Another process is replacing {shown_key(key)!r} at its provider.",
                    hint="It stays asked for. See: apex-creds show NAME",
                )
            await anyio.sleep(_POLL)
            await self._vault.refresh()

    async def _all_steps(self, key: str, lead: Leadership) -> CredentialInfo:
        failed: RotatorError | None = None
        while True:
            record = (await self._vault.facts(key)).record
            if record is None:
                raise CredentialNotFoundError("There is no credential of that name any more.")
            step = self._next(record.info)
            if failed is not None and step is not RotationStage.UNDO:
                raise failed
            if step is None:
                return record.info
            await self._vault.check_not_locked_down()
            if not lead:  # lost with a connection: another process may be at it by now
                raise ConflictError(f"The rotation of {shown_key(key)!r} goes on elsewhere.")
            try:
                # Cancelled between an answer and its commit, it would lose what was answered.
                await run_to_completion(self._take(record, step))
            except RotatorRefusedError as error:
                failed = failed or error  # and what was done is undone at once

    def _next(self, info: CredentialInfo) -> RotationStage | None:
        return plan.next_step(_state_of(info), self._vault.ends.now())

    # -- one step ------------------------------------------------------------------

    async def _take(self, record: Record, step: RotationStage) -> None:
        info, state = record.info, _state_of(record.info)
        started, failure = self._vault.clock.monotonic(), None
        try:
            if step is RotationStage.IDLE:
                made = plan.begun(state, attempt=new_id(), now=self._now)
                await self._note(info, made)
                self._begun.add(made.attempt)
            else:
                with _contained():
                    await self._step(record, self._find(state.rotator), step)
                if step is RotationStage.FINISH:
                    seconds = self._vault.clock.monotonic() - started
                    instruments.rotated(seconds, "", level="credential")
            self._pauses.pop(info.key, None)
        except (CredentialChangedError, CredentialNotFoundError):
            pass  # by a person, who was first; it is read anew
        except Exception as error:  # noqa: BLE001 - whatever a package of others does
            instruments.rotated(
                self._vault.clock.monotonic() - started,
                type(error).__name__,
                level="credential",
            )
            failure = await self._failed(info, step, error)
        if failure is not None:
            raise failure

    @property
    def _now(self) -> float:
        return self._vault.ends.now()

    async def _step(self, record: Record, rotator: Rotator, step: RotationStage) -> None:
        values = _Values.of(record, self._parts(record, f"{step.value} credential"))
        task = await self._task(record.info, rotator, values)
        take = {
            RotationStage.CREATE: self._create,
            RotationStage.SET: self._set,
            RotationStage.TEST: self._test,
            RotationStage.FINISH: self._finish,
            RotationStage.UNDO: self._undo,
        }[step]
        said: type[ApexCredsError] | None = None
        try:
            async with asyncio.timeout(_STEP_SECONDS):
                with masked_logs(record.info.key, (values.current, *values.others, task.admin)):
                    await take(record.info, rotator, task, values)
        except ApexCredsError as error:
            if not _has_secret(error, (values.current, *values.others, task.admin)):
                raise
            said = type(error)
        if said is not None:
            raise said("What the rotator says of its failure has a secret in it.")

    async def _create(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: _Values
    ) -> None:
        made = await rotator.create(task)
        if made.secret.kind is not info.kind:
            raise RotatorError("The rotator made no value of the credential's kind.")
        if any(made.secret.parts == each.parts for each in (values.current, *values.others)):
            raise RotatorError("The rotator made no new value: it gave back one that there is.")
        if made.expires is not None and not self._now < made.expires < math.inf:
            raise RotatorError("The rotator made a value that has ended already.")
        state = plan.created(
            _state_of(info), version=info.version + 1, expires=made.expires, now=self._now
        )
        stored = _stored(values.current, pending=made.secret, previous=values.previous)
        await self._store(info, stored, state, expires=info.expires)

    async def _set(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: _Values
    ) -> None:
        new = _there(values.pending)
        await rotator.set(task, new)
        if rotator.mode is Mode.DUAL:
            await self._note(info, plan.was_set(_state_of(info), now=self._now))
        else:
            await self._promote(info, rotator, values, RotationStage.TEST)

    async def _test(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: _Values
    ) -> None:
        if rotator.mode is Mode.DUAL:
            await rotator.test(task, _there(values.pending))
            await self._promote(info, rotator, values, RotationStage.FINISH)
        else:
            await rotator.test(task, values.current)
            await self._note(info, plan.tested(_state_of(info), now=self._now))

    async def _promote(
        self, info: CredentialInfo, rotator: Rotator, values: _Values, stage: RotationStage
    ) -> None:
        before = _state_of(info)
        state = plan.promoted(before, stage, now=self._now, longest_grace=rotator.longest_grace)
        stored = _stored(_there(values.pending), previous=values.current)
        await self._store(info, stored, state, expires=before.expires)

    async def _finish(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: _Values
    ) -> None:
        if values.previous is not None:
            await rotator.finish(task, values.previous)
        state = plan.finished(_state_of(info), now=self._now)
        await self._store(info, values.current, state, expires=info.expires)

    async def _undo(
        self, info: CredentialInfo, rotator: Rotator, task: Task, values: _Values
    ) -> None:
        good = values.current
        if rotator.mode is Mode.DUAL:
            if values.pending is not None:
                await rotator.finish(task, values.pending)
        else:
            if values.pending is None and values.previous is not None:
                good = values.previous
            try:
                await rotator.test(task, good)
            except RotatorRefusedError:
                await rotator.set(task, good)
                await rotator.test(task, good)
        state = plan.undone(_state_of(info), now=self._now)
        await self._store(info, good, state, expires=info.expires)

    # -- secrets ---------------------------------------------------------------------

    async def _task(self, info: CredentialInfo, rotator: Rotator, values: _Values) -> Task:
        state, admin = _state_of(info), None
        resumed = state.attempt not in self._begun
        self._begun.discard(state.attempt)
        if rotator.admin:
            admin = await self._admin(rotator)
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

    async def _admin(self, rotator: Rotator) -> Secret:
        record = (await self._vault.facts(rotator.admin)).record
        if record is None:
            raise RotatorRefusedError(
                f"There is no credential {rotator.admin!r}, which the rotator logs in with.",
                hint="Store it, or change ?admin= in the rotator's URI.",
            )
        self._vault.check_not_marked(record.info, action="rotate")
        _check_origin(record.info, rotator)
        return _Values.of(record, self._parts(record, "rotate with")).current

    def _parts(self, record: Record, action: str) -> dict[str, bytes]:
        """What a record has, for its provider; audited before."""
        key_id, version = record.key
        event = AuditEvent(
            time=self._vault.clock.time(),
            kind=EventKind.ROTATION,
            action=action,
            credential=record.info.key,
            decision="allow",
            key_id=key_id.hex(),
            key_version=version,
        )
        with self._vault.release(record, self._vault.audit.encode(event)) as opened:
            return {name: bytes(opened.view(name)) for name in opened.names}

    # -- records ---------------------------------------------------------------------

    async def _note(self, before: CredentialInfo, state: Rotation) -> CredentialInfo:
        changes = credential_writes.Edit(
            rotation=state, replaces=before.version, rotates=before.rotation
        )
        return await credential_writes.edit(
            self._vault.store,
            SECTIONS[before.kind],
            before.key,
            changes,
            clock=self._vault.clock,
        )

    async def _store(
        self,
        before: CredentialInfo,
        secret: Secret,
        state: Rotation,
        *,
        expires: float | None,
    ) -> None:
        item = PutItem(
            name=before.name,
            secret=secret,
            expires=expires,
            replaces=before.version,
            rotation=state,
            rotates=before.rotation,
            principal=before.principal,
        )
        await self._vault.put_many([item])

    async def _failed(
        self, info: CredentialInfo, step: RotationStage, error: Exception
    ) -> ApexCredsError:
        """Puts a failure on record; returns what is raised for it."""
        state = _state_of(info)
        if isinstance(error, RotatorRefusedError):
            code, state = "refused", plan.refused(state, now=self._now)
        else:
            code = "unreachable" if isinstance(error, RotatorError | TimeoutError) else "failed"
            state = plan.failed(state, code, now=self._now)
        _, last = self._pauses.get(info.key, (0.0, 0.0))
        pause = min(_LONGEST_PAUSE, last * 2 or _PAUSE)
        self._pauses[info.key] = self._vault.clock.monotonic() + pause, pause
        with contextlib.suppress(CredentialChangedError, CredentialNotFoundError):
            await self._note(info, state)
        action = f"{step.value} credential"
        self._vault.record(
            EventKind.ROTATION,
            action=action,
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

    def _is_paused(self, key: str) -> bool:
        until, _ = self._pauses.get(key, (0.0, 0.0))
        return self._vault.clock.monotonic() < until


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """Takes what ends more than a step (a cancellation, an exit) for a failure of the rotator.

    Passed on, it would end a worker, or be tried forever. Not where it comes from outside: the
    task is cancelled or closed, or somebody pressed Ctrl-C.
    """
    task, ended = asyncio.current_task(), ""
    try:
        yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:
        if task is None or task.cancelling() or not _runs(task):
            raise
        ended = type(error).__name__
    if ended:
        raise RotatorError(
            f"The rotator ended its own step ({ended}).", hint="It is tried again."
        )


def _runs(task: asyncio.Task[object]) -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # its coroutine is closed, after its loop
        return False


def _has_secret(error: ApexCredsError, values: Iterable[Secret | None]) -> bool:
    """Whether an error, of a package of others perhaps, repeats a value in any form."""
    said = (error, error.hint, error.args, vars(error), getattr(error, "__notes__", ()))
    found, needles = set[str](), Needles()
    try:
        for value in filter(None, values):
            for part in value.parts.keys() - PUBLIC_PARTS:
                needles.add(part, memoryview(value.parts[part]))
        text = " ".join(map(str, said)).encode("utf-8", "surrogatepass")
        needles.replace(text + text.replace(b"\\\\", b"\\"), found)
    except Exception:  # noqa: BLE001 - it has an object that can't be shown
        return True
    finally:
        needles.close()
    return bool(found)


def is_wrong(info: CredentialInfo) -> bool:
    """Whether the last step of a rotation failed."""
    return info.rotation is not None and info.rotation.health is not RotationHealth.WORKS


def _state_of(info: CredentialInfo) -> Rotation:
    if info.rotation is None:
        raise InvalidInputError(
            f"Nothing replaces {info.name!r} at its provider.",
            hint="Choose a rotator: apex-creds edit NAME --rotator URI",
        )
    if info.dynamic:
        raise InvalidInputError(
            f"{info.name!r} is made anew for each lease.", hint="There is nothing to rotate."
        )
    return info.rotation


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
