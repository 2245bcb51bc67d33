"""What a vault's own worker does about events besides rotating keys.

Guarantee: leases end in this process before the call returns. A lockdown is durable; so is
the mark of a revocation, after which nothing rests on what was allowed for a session.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from msgspec.structs import replace

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.errors import AuditUnavailableError, CredentialNotFoundError
from apex_creds.policy.grants import with_revocation
from apex_creds.scheduler.delivery import Callback, Subscription
from apex_creds.scheduler.events import AuditTampered, Event, kind_of
from apex_creds.vault import Vault

_log: Final = logging.getLogger(__name__)
Notify = Callback


class VaultReactor:
    """The reactions of one vault.

    Args:
        vault: Unsealed.
        notify: Tells whoever is to know, from a task of its own; the audit log always does.
    """

    def __init__(self, vault: Vault, *, notify: Notify | None = None) -> None:
        self._vault = vault
        self._notify = None if notify is None else Subscription(notify)

    async def revoke_leases(self, event: Event) -> None:
        """See ``Reactor``. Grants stay."""
        self.end_leases(event)
        plugin, credential = _concerned(event)
        await self._vault.store.commit_keystore(
            lambda body: replace(
                body,
                revocations=with_revocation(
                    body.revocations, plugin=plugin or "", credential=credential or ""
                ),
            )
        )

    def end_leases(self, event: Event) -> None:
        """Ends the leases of this process that an event concerns."""
        self._vault.tell_revoked(*_concerned(event))

    async def revoke_grants(self, event: Event) -> None:
        """See ``Reactor``. What the plugin was denied for good stays denied."""
        plugin, _ = _concerned(event)
        if plugin is not None:
            await self._vault.revoke(plugin=plugin, keep_denials=True)

    async def lock_down(self, event: Event) -> None:
        """See ``Reactor``. One that could not be logged is in force, and not done again."""
        try:
            await self._vault.lockdown(reason=f"{kind_of(event)} by {event.source}")
        except AuditUnavailableError as error:
            _log.error("the vault is locked down, but that is not in its log: %s", error)

    async def notify(self, event: Event) -> None:
        """See ``Reactor``. That its log was altered may not be in the log."""
        try:
            self._note(event)
        except AuditUnavailableError:
            if not isinstance(event, AuditTampered):
                raise
        if self._notify is not None:
            self._notify.put(event)

    def _note(self, event: Event) -> None:
        plugin, credential = _concerned(event)
        self._vault.audit.append(
            AuditEvent(
                time=self._vault.clock.time(),
                kind=EventKind.ROTATION,
                action="event",
                reason=kind_of(event),
                plugin=plugin or "",
                credential=credential or "",
                detail=event.source,
            )
        )

    async def services(self, event: Event) -> Collection[str]:
        """See ``Reactor``: of the credential, else of what the plugin has grants for."""
        plugin, credential = _concerned(event)
        if credential is not None:
            return await self._services({credential})
        if plugin is None:
            return [""]
        grants = await self._vault.grants()
        return await self._services({g.credential for g in grants if g.plugin == plugin})

    async def _services(self, names: Collection[str]) -> Collection[str]:
        found = {info.service for info in await self._vault.list() if info.name in names}
        if not found:
            raise CredentialNotFoundError("The event concerns no credential that is here.")
        return sorted(found)


def _concerned(event: Event) -> tuple[str | None, str | None]:
    """The plugin and the credential of an event; None for all."""
    plugin = getattr(event, "plugin", "") or None
    return plugin, getattr(event, "credential", "") or None
