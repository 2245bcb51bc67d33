"""Workers that share a vault share out its work: who rotates, and who does which shards.

Guarantee: of all workers of a vault at most one rotates at a time, and it stops with its
process (or connection), however that ends; a shard is done by one worker at a time, as long
as that one lives and gets on. Neither is relied on: every step is compare-and-set.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Final

import anyio

from apex_creds.errors import StorageError
from apex_creds.storage.base import Leadership, Leads, Storage

if TYPE_CHECKING:
    from apex_creds.scheduler.reencrypt import Progress, Run

__all__ = ["Leader", "over_shards", "worker_runs"]

ROTATION: Final = "rotation"
"""Held for a run by who rotates."""
WORKER: Final = "worker"
"""Held by one worker for as long as it runs."""
BATCH: Final = 16
"""Shards that a worker takes at once, and writes in one commit."""
PERIOD: Final = 0.05
PATIENCE: Final = 200
"""So many looks at shards that others keep and do not get done, before they are done here."""


class Leader:
    """Whether this one leads in something: in rotating, or in being the worker.

    Args:
        storage: Says so; of one that does not, everybody leads.
        what: In what.
    """

    def __init__(self, storage: Storage, what: str) -> None:
        self._storage = storage if isinstance(storage, Leads) else None
        self._what = what
        self._held: AsyncExitStack | None = None
        self._lead: Leadership | None = None

    async def hold(self) -> bool:
        """Leads, if nobody else does; whether it does now."""
        if self._lead or self._storage is None:
            return True
        await self.release()
        async with AsyncExitStack() as stack:
            lead = await stack.enter_async_context(self._storage.leader(self._what))
            if lead:
                self._lead, self._held = lead, stack.pop_all()
        return bool(lead)

    async def release(self) -> None:
        """Leaves it to others; idempotent."""
        held, self._held, self._lead = self._held, None, None
        if held is not None:
            await held.aclose()


async def worker_runs(storage: Storage) -> bool | None:
    """Whether some worker runs on a vault; None where that can't be told."""
    if not isinstance(storage, Leads):
        return None
    try:
        async with storage.leader(WORKER) as lead:
            return not lead
    except StorageError:
        return None


async def over_shards(
    run: Run,
    *,
    stale: Callable[[], Awaitable[Collection[str]]],
    work: Callable[[Run], AsyncGenerator[Progress, None]],
) -> AsyncGenerator[Progress, None]:
    """Does ``work`` on shards that nobody else is at, until none is left.

    Args:
        run: Told in ``within`` which shards it is about.
        stale: The shards that have something to be done.
        work: Does it.
    """
    storage, waited = run.store.shared, 0
    assert storage is not None
    hopeless: set[str] = set()
    while left := [name for name in await stale() if name not in hopeless]:
        async with storage.claim(left, limit=BATCH) as claimed:
            patient = waited < PATIENCE
            ours = claimed if claimed or patient else left[:BATCH]
            run.within, failed = frozenset(ours), len(run.failed)
            if ours:
                async with aclosing(work(run)) as steps:
                    async for progress in steps:
                        yield progress
        if len(run.failed) > failed:
            hopeless.update(ours)
        if not ours and run.pace.backwards:
            return  # one who helps another has done its part
        waited = 0 if ours else waited + 1
        if not ours:
            await anyio.sleep(PERIOD)
