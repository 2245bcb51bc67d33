"""What happens when a manager removes a plugin: its leases and its grants end.

Guarantee: a removal ends the plugin's open leases before the manager's own method runs, and
takes back what it was allowed before an asynchronous one runs. A synchronous manager can't
wait for that: until it is stored, the plugin is refused. What the plugin was denied for
good stays denied. Where it can't be stored, an asynchronous removal fails, and the plugin is
refused as long as this process runs. A plugin that is only unloaded loses its leases and
keeps its grants.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import Final

from apex_creds.audit.events import AuditEvent, EventKind
from apex_creds.concurrency import BACKGROUND
from apex_creds.errors import AccessDeniedError, ApexCredsError, InvalidInputError
from apex_creds.middleware import CredentialMiddleware

REMOVING: Final = (
    "remove_plugin",
    "uninstall_plugin",
    "unregister_plugin",
    "deregister_plugin",
    "delete_plugin",
)
"""Methods of a manager after which a plugin is gone."""
UNLOADING: Final = (
    "unload_plugin",
    "disable_plugin",
    "deactivate_plugin",
    "stop_plugin",
    "reload_plugin",
    "update_plugin",
)
"""Methods after which it may come back, perhaps as other code."""
UNIDENTIFIED: Final = "plugin_not_told"
"""The reason of the denial with which a removal of an unknown plugin is audited."""

_log: Final = logging.getLogger(__name__)


class Removals:
    """The removals of one manager.

    Args:
        middleware: Whose vault has the grants.
    """

    def __init__(self, middleware: CredentialMiddleware) -> None:
        self._middleware = middleware
        self._unstored: set[str] = set()

    def unloaded(self, plugin: str) -> None:
        """Ends the open leases of a plugin."""
        self._middleware.broker.revoke(plugin=plugin)

    def unidentified(self, method: str) -> None:
        """A call does not say which plugin it is about: what removes is refused.

        Raises:
            InvalidInputError: Its grants would be left to whatever comes back by its id.
        """
        _log.error("%s() of the plugin manager doesn't say which plugin is meant", method)
        broker = self._middleware.broker
        denial = AuditEvent(
            time=broker.clock.time(),
            kind=EventKind.DENIAL,
            action=method,
            decision="deny",
            reason=UNIDENTIFIED,
        )
        broker.log(denial, flush=True)
        if method in REMOVING:
            raise InvalidInputError(
                "The call does not say which plugin is to be removed; nothing was done.",
                hint="Pass its id as the keyword plugin_id, or take its grants back first: "
                "await middleware.remove_plugin(plugin_id), with the hook uninstalled.",
            )

    async def removed(self, plugin: str) -> None:
        """Takes back all that a plugin was allowed.

        Raises:
            ApexCredsError: It can't be stored. Until it is, the plugin is refused here.
        """
        self._unstored.add(plugin)
        self.unloaded(plugin)
        try:
            await self._middleware.remove_plugin(plugin)
        except ApexCredsError as error:
            _log.error("The grants of a removed plugin are still there: %s", error.message)
            raise
        self._unstored.discard(plugin)

    def removed_sync(self, plugin: str) -> None:
        """As ``removed``, from a method that can't wait: soon, where a loop runs here.

        In another thread, so that it is done also if that loop ends.
        """
        self._unstored.add(plugin)
        self.unloaded(plugin)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            BACKGROUND.call(partial(self.removed, plugin))
            return
        BACKGROUND.start(partial(self._tried, plugin))

    async def finish(self, plugin: str) -> None:
        """Returns when no removal of a plugin is still to be stored.

        Raises:
            AccessDeniedError: It can't be stored.
        """
        if plugin in self._unstored:
            await self._tried(plugin)
        self.refuse_unfinished(plugin)

    def refuse_unfinished(self, plugin: str) -> None:
        """Returns if no removal of a plugin is still to be stored.

        Raises:
            AccessDeniedError: One is.
        """
        if plugin in self._unstored:
            raise AccessDeniedError(
                "The plugin was removed, and what it was allowed is being taken back.",
                hint="Try again.",
            )

    async def _tried(self, plugin: str) -> None:
        with suppress(ApexCredsError):  # it is in the log
            await self.removed(plugin)
