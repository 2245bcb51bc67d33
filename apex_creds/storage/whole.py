"""Work that is not left half done when its caller is cancelled.

Guarantee: what was begun has ended, and let go of its files, before the caller goes on;
the cancellation then takes its course.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from anyio import CancelScope

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Awaits ``work``, which must be short; a cancellation is delivered after it.

    A file that a thread opens for a caller who is gone would be closed by nobody.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # the caller does not want it; it is not "never retrieved"
        raise
