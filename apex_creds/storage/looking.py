"""Asking a shared storage what changed, once for all who ask at the same time.

Guarantee: whoever asks gets an answer to a question that was put after they asked, or is
told that the storage can't be reached and how old what is known is. A caller that is
cancelled disturbs nobody else.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from apex_creds.clocks import boot_time
from apex_creds.errors import StorageError, StorageStaleError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

AGAIN: Final = 0.1
"""Seconds after a failure in which nobody asks again: its answer is theirs."""


class Looking:
    """The questions of one storage.

    Args:
        ask: Puts the question and takes in the answer.
        monotonic: The time.
    """

    def __init__(
        self,
        ask: Callable[[], Coroutine[object, object, None]],
        *,
        monotonic: Callable[[], float] = boot_time,
    ) -> None:
        self._ask = ask
        self._monotonic = monotonic
        self._running: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._good = -math.inf
        self._failed_at = -math.inf
        self._failure: StorageError | None = None

    def stale_for(self) -> float:
        """See ``SharedStorage.stale_for``."""
        return 0.0 if self._failure is None else self._monotonic() - self._good

    async def look(self, *, staleness: float) -> None:
        """See ``SharedStorage.look``."""
        if self._failure is None or self._monotonic() - self._failed_at >= AGAIN:
            await asyncio.shield(self._question())
        failure = self._failure
        if failure is None:
            return
        age = self._monotonic() - self._good
        if age <= staleness:
            return
        raise StorageStaleError(
            f"{failure.message} What is in memory is too old to go on without it.",
            hint=failure.hint or "Bring the server back, or see that it can be reached.",
        ) from failure

    async def stop(self) -> None:
        """Ends what is under way."""
        tasks = [task for task in (self._running, self._waiting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _question(self) -> asyncio.Task[None]:
        """The one that is not put yet; made if there is none."""
        if self._waiting is None:
            self._waiting = asyncio.ensure_future(self._put(after=self._running))
        return self._waiting

    async def _put(self, *, after: asyncio.Task[None] | None) -> None:
        if after is not None and not after.done():
            await asyncio.wait({after})
        self._running, self._waiting = self._waiting, None
        began = self._monotonic()
        try:
            await self._ask()
        except StorageError as error:
            self._failure, self._failed_at = error, self._monotonic()
        else:
            self._failure, self._good = None, began
