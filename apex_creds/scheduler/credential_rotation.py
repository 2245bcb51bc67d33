"""When secrets are replaced at their providers: by interval, cron, their own end, and events.

Guarantee: whether one is due follows from what is stored and the clock, as for keys; that it
is due is written down first, and the steps are those of ``apex_creds.rotators``. An event is
about the values that there were when it was accepted, so that acting on it twice replaces
nothing twice. What can't be replaced now does not keep keys from being renewed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from apex_creds.errors import InvalidInputError, NotFoundError
from apex_creds.model import CredentialInfo, split_key
from apex_creds.rotators.dynamic import DynamicCredentials
from apex_creds.rotators.plan import renews_at
from apex_creds.rotators.protocol import place_of
from apex_creds.rotators.rotation import Rotations, rotations_of
from apex_creds.scheduler.rotation_state import (
    CompromiseSuspected,
    Event,
    Numbers,
    concerned,
)
from apex_creds.scheduler.schedule import Level, LevelPolicy, NextFire, due_at, is_due
from apex_creds.vault import Vault

PREFIX: Final = "credential "
"""Of the names of credentials among what an event concerns."""


def rotates_at(info: CredentialInfo, *, next_fire: NextFire) -> float | None:
    """When a credential is replaced by the clock, Unix seconds; None: not by that.

    What is in the past is overdue: no worker runs, or it can't be replaced.
    """
    state = info.rotation
    if state is None or info.dynamic:
        return None
    times = [renews_at(info)]
    policy = LevelPolicy(interval=state.interval, cron=state.cron)
    times.append(due_at(policy, created=state.changed, salt=info.id, next_fire=next_fire))
    return min((at for at in times if at is not None), default=None)


class CredentialRotation:
    """Replaces the credentials of a vault when they are due.

    Args:
        vault: Unsealed.
        next_fire: Reads cron expressions.
        rotations: Takes the steps.
    """

    def __init__(
        self, vault: Vault, *, next_fire: NextFire, rotations: Rotations | None = None
    ) -> None:
        self._vault = vault
        self._next_fire = next_fire
        self.rotations = rotations or rotations_of(vault)
        self._dynamic = DynamicCredentials(vault)

    async def run(self) -> int:
        """Does what is due.

        Returns:
            How many credentials could not be rotated.
        """
        now = self._vault.clock.time()
        for info in await self._vault.list():
            if (state := info.rotation) is not None and self.is_due(info, now):
                with suppress(NotFoundError, InvalidInputError):  # changed meanwhile
                    await self.rotations.ask(
                        info.name,
                        principal=info.principal,
                        upto=state.since,  # another process may have replaced it by now
                        ending=self._ends_soon(info, now),
                    )
        return await self.rotations.run_due()

    async def revoke_left(self) -> int:
        """Revokes logins that were made on demand and whose leases have ended.

        Returns:
            How many could not be revoked.
        """
        return await self._dynamic.revoke_left()

    def is_due(self, info: CredentialInfo, now: float) -> bool:
        """Whether a credential is to be replaced by the clock."""
        state = info.rotation
        if state is None or info.dynamic or state.asked >= state.since:
            return False
        if self._ends_soon(info, now):
            return True
        policy = LevelPolicy(interval=state.interval, cron=state.cron)
        return is_due(
            policy, created=state.changed, now=now, salt=info.id, next_fire=self._next_fire
        )

    def _ends_soon(self, info: CredentialInfo, now: float) -> bool:
        """Whether its value ends so soon that it is time for the next one."""
        at = renews_at(info)
        return at is not None and (at <= now or info.is_of_another_time(now))

    async def concerned(self, event: Event) -> dict[str, int]:
        """The values that there are of what an event has replaced at its provider."""
        chosen = await self._chosen(event)
        return {
            PREFIX + info.key: info.version
            for info in await self._vault.list()
            if info.rotation is not None and not info.dynamic and chosen(info)
        }

    async def _chosen(self, event: Event) -> Callable[[CredentialInfo], bool]:
        plugin, credential = concerned(event)
        if credential is not None:
            return lambda info: info.key == credential
        if isinstance(event, CompromiseSuspected):
            every = event.level is not Level.DEK or not event.service
            return lambda info: every or info.service == event.service
        granted = [g.key for g in await self._vault.grants() if g.plugin == plugin]
        return lambda info: info.key in granted

    async def replace(self, concerns: Numbers, *, lost: bool) -> None:
        """Has values replaced that an event is about, now if the providers let it be done.

        Args:
            concerns: What ``concerned`` returned, perhaps among keys.
            lost: They may be in wrong hands.
        """
        asked: dict[str, str] = {}
        for concern, version in concerns.items():
            key = concern.removeprefix(PREFIX)
            if key == concern:
                continue
            name, principal = split_key(key)
            with suppress(NotFoundError, InvalidInputError):  # gone, or nothing replaces it
                info = await self.rotations.ask(
                    name, principal=principal, upto=version, lost=lost
                )
                asked[key] = place_of(info.rotation.rotator if info.rotation else "")
        await self.rotations.advance_all(asked)
