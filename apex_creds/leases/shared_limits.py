"""Limits whose counts are kept in the vault: for all processes, and over restarts.

Guarantee: a use is counted durably before it is admitted, by compare-and-set, so that no
two processes admit the same last one; if the count can't be written, it is not admitted.

A thread of its own runs what writes, so that code that can't wait (and may stand on the
event loop) can have its answer too. An admission costs a write of the document.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Final, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal

from apex_creds.errors import StorageLockedError
from apex_creds.policy.limits import Breach, LimitState, Persistence, RateLimits
from apex_creds.policy.rules import LimitRule
from apex_creds.policy.windows import Windows

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
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
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
        with self._lock:
            portal, self._portal = self._portal, None
            self._state = None
        if portal is not None:
            portal.start_task_soon(portal.stop)

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

        self._run(work)
        return found[0]

    def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        future: Future[None] = self._thread().start_task_soon(work)
        try:
            future.result(DEADLINE)
        except FutureTimeoutError:
            future.cancel()
        else:
            return
        raise StorageLockedError(
            "The count of a limit could not be written in time.", hint="Try again."
        )

    def _thread(self) -> BlockingPortal:
        with self._lock:
            if self._portal is None:
                ready: Future[BlockingPortal] = Future()
                threading.Thread(
                    target=_serve, args=(ready,), name="apex-creds-limits", daemon=True
                ).start()
                self._portal = ready.result()
            return self._portal


def _serve(ready: Future[BlockingPortal]) -> None:
    async def body() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    anyio.run(body)
