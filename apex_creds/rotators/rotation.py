"""Whose turn it is: secrets replaced at their providers, one step and one commit at a time.

The rules, in order:

1. A rotation is asked for first (``ask``), by the number of the value that it replaces: asking
   twice is asking once, and what was asked for is not lost in a crash.
2. Of all tasks, threads and processes one takes the steps of a credential (single flight,
   leader election); others wait for it, or leave it to that one.
3. Before each step the credential is read anew, and the step follows from what is stored
   (``plan``), never from memory. A process that no longer leads takes none.
4. A step goes to its end, commit and all, though who waits for it is cancelled (``steps``).
5. What was done at the provider and could not be committed, since others had gone on while
   this process stood still, is made good: what is stored is valid, and nothing else.
6. A refused step is undone at once. What failed is tried again after a pause that grows.
7. A value that has expired is replaced before it is given out, or is not given out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Final

import anyio

from apex_creds.concurrency import Pauses, SingleFlight, in_lanes, run_to_completion
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
    CredentialInfo,
    RotationHealth,
    RotationStage,
    key_of,
    shown_key,
    split_key,
)
from apex_creds.policy.display import operator_command
from apex_creds.rotators import plan
from apex_creds.rotators.configuration import rotator_from_uri
from apex_creds.rotators.plan import state_of
from apex_creds.rotators.protocol import Rotator, place_of
from apex_creds.rotators.steps import Steps
from apex_creds.rotators.values import note
from apex_creds.storage.base import Leadership, leading
from apex_creds.vault import Vault

_PATIENCE: Final = 60.0
_POLL: Final = 0.05
_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 3600.0
_ACTS: Final = (RotationStage.SET, RotationStage.FINISH, RotationStage.UNDO)
"""Steps that change which values are valid."""


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
        self._steps = Steps(vault, find=find)
        self._flights: SingleFlight[tuple[str, bool], CredentialInfo] = SingleFlight()
        self._pauses: Pauses[str] = Pauses(
            vault.clock.monotonic, first=_PAUSE, longest=_LONGEST_PAUSE
        )
        self._late: dict[str, Record] = {}

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
            state = state_of(info)
            if upto is None:
                upto = info.version if lost else state.since
            made = plan.asked(
                state,
                upto=upto,
                lost=lost,
                by_hand=by_hand,
                retires=self._vault.ends.now() if ending else None,
            )
            if by_hand:
                self._pauses.end(info.key)
            if made == state:
                return info
            with contextlib.suppress(CredentialChangedError):
                return await note(self._vault, info, made)
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
            if info.has_expired(self._vault.ends.now()):
                since = state_of(info).since
                await self.ask(name, principal=principal, upto=since, ending=True)
                if info.key in self._pauses:
                    why = "its provider could not be asked a moment ago."
                else:
                    info = await self.advance(name, principal=principal)
        except (RotatorError, ConflictError, InvalidInputError) as error:
            why = error.message
        if why or info.has_expired(self._vault.ends.now()):
            command = operator_command("rotate credential", name, principal=principal)
            raise TokenError(
                f"{name!r} has expired and could not be replaced: "
                f"{why or 'it needs a decision of an operator.'}",
                hint=f"Its owner runs: {command}",
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

    async def run_due(self) -> int:
        """Takes the steps of all credentials; what fails waits for the next time.

        One after the other at each provider, so that one which does not answer holds up
        nothing at others.

        Returns:
            How many credentials could not be rotated.
        """

        async def due() -> dict[str, str]:
            waits = list[tuple[bool, float, str, str]]()
            for info in await self._vault.list():
                state = info.rotation
                if state is None or info.dynamic or not self._is_due(info):
                    continue
                if info.key not in self._pauses:
                    calm, place = state.lost < state.since, place_of(state.rotator)
                    waits.append((calm, state.attempted, info.key, place))
            return {key: place for *_, key, place in sorted(waits)}

        await in_lanes(due, self._advanced)
        return sum(is_wrong(info) for info in await self._vault.list())

    async def advance_all(self, asked: Mapping[str, str]) -> None:
        """Takes the steps of these; what fails is on record, and waits for ``run_due``.

        Args:
            asked: Credentials by their keys, and where they are rotated.
        """

        async def due() -> Mapping[str, str]:
            return asked

        await in_lanes(due, self._advanced)

    async def _advanced(self, key: str) -> bool:
        name, principal = split_key(key)
        try:
            await self.advance(name, principal=principal, wait=False)
        except RotatorError as error:
            return isinstance(error, RotatorRefusedError)
        except ApexCredsError:
            pass
        return True

    async def _in_turn(self, key: str, *, wait: bool) -> CredentialInfo:
        clock, (name, principal) = self._vault.clock, split_key(key)
        deadline = clock.monotonic() + _PATIENCE
        while True:
            info = await self._vault.get(name, principal=principal)
            if not self._is_due(info):
                return info
            async with leading(self._vault.store.storage, f"rotate_{info.id}") as lead:
                if lead:
                    await self._vault.refresh()
                    info = await self._all_steps(key, lead)
                    if key not in self._late:
                        return info
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
            if not self._is_due(record.info):
                return record.info
            await self._vault.check_not_locked_down()
            if not lead:  # lost with a connection: another process may be at it by now
                if key in self._late:
                    return record.info
                raise ConflictError(f"The rotation of {shown_key(key)!r} goes on elsewhere.")
            try:
                # Cancelled between an answer and its commit, it would lose what was answered.
                await run_to_completion(self._take(record, step))
            except RotatorRefusedError as error:
                failed = failed or error  # and what was done is undone at once

    async def _take(self, record: Record, step: RotationStage | None) -> None:
        key = record.info.key
        try:
            if key in self._late:
                await self._steps.make_good(record, self._late[key])
                del self._late[key]
            elif step is not None:
                await self._steps.take(record, step)
        except CredentialNotFoundError:
            self._late.pop(key, None)
        except CredentialChangedError:  # by a person, or another process; it is read anew
            if step in _ACTS:
                self._late[key] = record
            await self._vault.refresh()
        except Exception:
            self._pauses.begin(key)
            raise
        else:
            self._pauses.end(key)

    def _is_due(self, info: CredentialInfo) -> bool:
        return self._next(info) is not None or info.key in self._late

    def _next(self, info: CredentialInfo) -> RotationStage | None:
        return plan.next_step(state_of(info), self._vault.ends.now())


def is_wrong(info: CredentialInfo) -> bool:
    """Whether the last step of a rotation failed."""
    return info.rotation is not None and info.rotation.health is not RotationHealth.WORKS
