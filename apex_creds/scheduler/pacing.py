"""Turns: work that comes again and again, paced by a clock that never jumps.

Guarantee: setting the wall clock, by any amount in any direction, neither delays a turn nor
makes one more; turns that were missed while the machine slept are one turn, which begins
within seconds of its waking. Work never overlaps itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from apex_creds.clocks import boot_time
from apex_creds.concurrency import running_loop, soon

LONGEST_SLEEP: Final = 5.0
"""An event loop's own timers stand still while the machine sleeps: look again after it."""


class Turns:
    """Has ``work`` done at once, and then each time ``seconds`` after it ended.

    Args:
        work: Raises nothing but cancellation.
        seconds: Between two turns.
        now: The clock.
    """

    def __init__(
        self,
        work: Callable[[], Awaitable[object]],
        *,
        seconds: float,
        now: Callable[[], float] = boot_time,
    ) -> None:
        self.seconds = seconds
        self._work = work
        self._now = now
        self._loop = running_loop()
        self._wake = asyncio.Event()
        self._over = False

    async def run(self) -> None:
        """Takes turns until ``stop``; the turn that is under way then ends first."""
        while not self._over:
            self._wake.clear()
            await self._work()
            await asyncio.sleep(0)  # others get their turn, also if this one never waits
            await self._rest()

    def wake(self) -> None:
        """The next turn is now, or as soon as the present one ends; from any thread."""
        soon(self._loop, self._wake.set)

    def stop(self) -> None:
        """There is no further turn; from any thread."""
        self._over = True
        self.wake()

    async def _rest(self) -> None:
        due = self._now() + self.seconds
        while not self._wake.is_set() and (left := due - self._now()) > 0:
            try:
                async with asyncio.timeout(min(left, LONGEST_SLEEP)):
                    await self._wake.wait()
            except TimeoutError:
                continue
