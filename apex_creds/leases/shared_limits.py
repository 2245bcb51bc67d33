"""Limits whose counts are kept in the vault: for all processes, and over restarts.

Guarantee: a use is counted durably before it is admitted, by compare-and-set, so that no
two processes admit the same last one; if the count can't be written, it is not admitted.

A thread of its own runs what writes, so that code that can't wait (and may stand on the
event loop) can have its answer too. An admission costs a write of the document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import anyio.to_thread

from apex_creds.concurrency import LoopThread
from apex_creds.errors import StorageLockedError
from apex_creds.policy.rate_limits import Breach, LimitState, Persistence, RateLimits, Windows
from apex_creds.policy.rules import LimitRule

DEADLINE: Final = 10.0
MAX_WINDOWS: Final = 5_000
"""The document is written whole for each use that is counted."""

T = TypeVar("T")


class SharedLimits:
    """The persisted limits of a policy.

    Args:
        limits: Those.
        open_state: Makes the place where counts are kept; called in the thread.
        now: Unix seconds: processes share no other clock.
    """

    def __init__(
        self,
        limits: RateLimits,
        *,
        open_state: Callable[[], Persistence],
        now: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._open_state = open_state
        self._now = now
        self._thread = LoopThread("apex-creds-limits")
        self._state: Persistence | None = None

    async def admit(self, plugins: tuple[str, ...], credential: str) -> Breach | None:
        """See ``RateLimits.admit``; durable on return.

        Raises:
            StorageError: It could not be counted.
        """
        return await anyio.to_thread.run_sync(self.admit_blocking, plugins, credential)

    def admit_blocking(self, plugins: tuple[str, ...], credential: str) -> Breach | None:
        """As ``admit``, from code that can't wait."""
        return self._count(lambda windows: self._limits.admit(windows, plugins, credential))

    def deny(self, plugins: tuple[str, ...], credential: str) -> list[tuple[LimitRule, Breach]]:
        """See ``RateLimits.deny``; durable on return."""
        return self._count(lambda windows: self._limits.deny(windows, plugins, credential))

    def close(self) -> None:
        """Stops the thread; idempotent."""
        self._thread.close(wait=False)
        self._state = None

    def _count(self, count: Callable[[Windows], T]) -> T:
        """Runs ``count`` on the windows as stored, and stores them."""
        found: list[T] = []

        def change(state: LimitState) -> LimitState:
            windows = Windows(self._now, state.windows, most=MAX_WINDOWS)
            found[:] = [count(windows)]
            after = windows.export()
            return state if after == state.windows else LimitState(windows=after)

        async def work() -> None:
            if self._state is None:
                self._state = self._open_state()
            await self._state.change(change)

        try:
            self._thread.call(work, timeout=DEADLINE)
        except TimeoutError:
            raise StorageLockedError(
                "The count of a limit could not be written in time.", hint="Try again."
            ) from None
        return found[0]
