"""Tells a worker of plugins that were refused too often, so that it reacts.

Guarantee: what a limit on denials says is an event of the worker's, ``denials_exceeded``,
stored before it is acted on, from whatever thread it comes and whatever becomes of its event
loop; a worker that can't store it makes no refusal fail.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

from apex_creds.concurrency import BACKGROUND
from apex_creds.errors import ApexCredsError
from apex_creds.middleware.middleware import CredentialMiddleware
from apex_creds.scheduler.rotation_state import DenialsExceeded

if TYPE_CHECKING:
    from apex_creds.policy import rate_limits
    from apex_creds.scheduler.worker import RotationWorker

SOURCE: Final = "limits"
_log: Final = logging.getLogger(__name__)


def report_denials(middleware: CredentialMiddleware, worker: RotationWorker) -> None:
    """Has ``worker`` react to limits on denials that are exceeded.

    Args:
        middleware: Whose plugins are meant.
        worker: Of the same vault.
    """

    def tell(found: rate_limits.DenialsExceeded) -> None:
        event = DenialsExceeded(plugin=found.plugin, count=found.amount, source=SOURCE)
        BACKGROUND.start(partial(_emit, worker, event))

    middleware.broker.authorizer.on_denials = tell


async def _emit(worker: RotationWorker, event: DenialsExceeded) -> None:
    try:
        await worker.emit(event)
    except ApexCredsError as error:
        _log.error("An event could not be stored: %s", error.message)
