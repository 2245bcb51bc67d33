"""When secrets are replaced at their providers: by interval, cron, their own end, and events.

Guarantee: whether one is due follows from what is stored and the clock, as for keys; that it
is due is written down first, and the steps are those of ``apex_creds.rotators``. An event is
about the values that there were when it was accepted, so that acting on it twice replaces
nothing twice. What can't be replaced now does not keep keys from being renewed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from apex_creds.errors import ApexCredsError, InvalidInputError, NotFoundError
from apex_creds.model import CredentialInfo
from apex_creds.rotators.dynamic import DynamicCredentials
from apex_creds.rotators.registry import is_dynamic
from apex_creds.rotators.rotation import Rotations
from apex_creds.scheduler.rotation_state import (
    CompromiseSuspected,
    Event,
    Numbers,
    concerned,
)
from apex_creds.scheduler.schedule import Level, LevelPolicy, NextFire, is_due
from apex_creds.vault import Vault

PREFIX: Final = "credential "
"""Of the names of credentials among what an event concerns."""
_EARLY: Final = 600.0
_PART: Final = 0.25


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
        self.rotations = rotations or Rotations(vault)
        self._dynamic = DynamicCredentials(vault)

    async def run(self) -> int:
        """Does what is due.

        Returns:
            How many credentials could not be rotated.
        """
        now = self._vault.clock.time()
        for info in await self._vault.list(principal=""):
            if self.is_due(info, now):
                with suppress(NotFoundError):
                    await self.rotations.ask(info.name)
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
        if state is None or is_dynamic(info) or state.asked >= state.since:
            return False
        if info.expires is not None:
            life = max(0.0, info.expires - state.changed)
            if info.expires - min(_EARLY, life * _PART) <= now:
                return True
        policy = LevelPolicy(interval=state.interval, cron=state.cron)
        return is_due(
            policy, created=state.changed, now=now, salt=info.id, next_fire=self._next_fire
        )

    async def concerned(self, event: Event) -> dict[str, int]:
        """The values that there are of what an event has replaced at its provider."""
        chosen = await self._chosen(event)
        return {
            PREFIX + info.name: info.version
            for info in await self._vault.list(principal="")
            if info.rotation is not None and not is_dynamic(info) and chosen(info)
        }

    async def _chosen(self, event: Event) -> Callable[[CredentialInfo], bool]:
        if isinstance(event, CompromiseSuspected):
            if event.credential:
                return lambda info: info.name == event.credential
            every = event.level is not Level.DEK or not event.service
            return lambda info: every or info.service == event.service
        plugin, credential = concerned(event)
        names = set() if credential is None else {credential}
        if credential is None and plugin is not None:
            granted = [g for g in await self._vault.grants() if g.plugin == plugin]
            names = {g.credential for g in granted if not g.principal}  # alice's is another
        return lambda info: info.name in names

    async def replace(self, concerns: Numbers, *, lost: bool) -> None:
        """Has values replaced that an event is about, now if the providers let it be done.

        Args:
            concerns: What ``concerned`` returned, perhaps among keys.
            lost: They may be in wrong hands.
        """
        await asyncio.gather(
            *(
                self._replace(key.removeprefix(PREFIX), version, lost=lost)
                for key, version in concerns.items()
                if key.startswith(PREFIX)
            )
        )

    async def _replace(self, name: str, version: int, *, lost: bool) -> None:
        with suppress(NotFoundError, InvalidInputError):  # gone, or nothing replaces it
            await self.rotations.ask(name, upto=version, lost=lost)
            with suppress(ApexCredsError):  # on record; the worker tries again
                await self.rotations.advance(name, wait=False)
