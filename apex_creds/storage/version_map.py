"""What was seen of a storage that others write to, refreshed once for all who ask.

Guarantee: what this storage wrote or learned later is never replaced by the answer to an
earlier question, in whatever order answers come. A refresh begins after it was asked for;
where the storage can't be reached, its error says how old what is known may be. A caller
that is cancelled disturbs nobody else. The map is readable from any thread.
"""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Final

from apex_creds.clocks import boot_time
from apex_creds.errors import StorageError, StorageStaleError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from apex_creds.storage.base import Token

RETRY_SECONDS: Final = 0.1
"""After a failure nobody asks again for so long: its answer is theirs."""


class VersionMap:
    """The token of each document by its stored name, and the subscribers to changes."""

    __slots__ = ("_changes", "_clock", "_learned_at", "_lock", "_tokens", "_watchers")

    def __init__(self) -> None:
        self._tokens: dict[str, Token] = {}
        self._learned_at: dict[str, int] = {}
        self._clock = 0
        self._changes = 0
        self._watchers: list[Callable[[], None]] = []
        self._lock = threading.RLock()

    @property
    def changes(self) -> int:
        """How many changes of a token there were."""
        return self._changes

    def get(self, name: str) -> Token | None:
        """The token of a document; None where it is not known to exist."""
        return self._tokens.get(name)

    def known(self) -> list[str]:
        """The names of the documents that exist, as far as is known."""
        return list(self._tokens)

    def asked(self) -> int:
        """To be taken before a question is asked, and given with its answer."""
        return self._clock

    def put(self, name: str, token: Token | None) -> None:
        """What this storage has just done itself."""
        with self._lock:
            self._clock += 1
            self._learned_at[name] = self._clock
            if self._tokens.get(name) == token:
                return
            if token is None:
                del self._tokens[name]
            else:
                self._tokens[name] = token
            self._changes += 1  # last: readers take no lock, and read this first

    def learn(self, name: str, token: Token | None, *, asked: int) -> bool:
        """What an answer says; not believed, and False, where later knowledge is here."""
        with self._lock:
            if self._learned_at.get(name, 0) > asked:
                return False
            if self._tokens.get(name) != token:
                self.put(name, token)
            return True

    def watch(self, call: Callable[[], None]) -> Callable[[], None]:
        """See ``SharedStorage.subscribe``."""
        self._watchers.append(call)

        def end() -> None:
            if call in self._watchers:
                self._watchers.remove(call)

        return end

    def notify(self, *, since: int) -> None:
        """Calls the watchers if ``changes`` is not ``since`` any more."""
        if self._changes != since:
            for call in list(self._watchers):
                call()


class Refresher:
    """Single flight for the question what changed in one storage, for one event loop.

    Unlike ``concurrency.SingleFlight`` a flight goes on when its callers are gone (to cut it
    off would cost the connection), and its failure is everybody's.

    Args:
        ask: Asks, and learns from the answer.
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
        self._next: asyncio.Task[None] | None = None
        self._succeeded_at = -math.inf
        self._failed_at = -math.inf
        self._failure: StorageError | None = None

    def stale_for(self) -> float:
        """See ``SharedStorage.stale_for``."""
        return 0.0 if self._failure is None else self._monotonic() - self._succeeded_at

    async def refresh(self, *, staleness: float) -> None:
        """See ``SharedStorage.refresh``."""
        if self._failure is None or self._monotonic() - self._failed_at >= RETRY_SECONDS:
            if self._next is None:  # one that has not begun yet answers this question, too
                self._next = asyncio.ensure_future(self._fly(after=self._running))
            await asyncio.shield(self._next)
        failure = self._failure
        if failure is None:
            return
        age = self._monotonic() - self._succeeded_at
        if age <= staleness:
            return
        raise StorageStaleError(
            f"{failure.message} What is in memory is too old to go on without it.",
            hint=failure.hint or "Bring the server back, or see that it can be reached.",
        ) from failure

    async def stop(self) -> None:
        """Ends what is under way."""
        tasks = [task for task in (self._running, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(self, *, after: asyncio.Task[None] | None) -> None:
        if after is not None and not after.done():
            await asyncio.wait({after})
        self._running, self._next = self._next, None
        began = self._monotonic()
        try:
            await self._ask()
        except StorageError as error:
            self._failure, self._failed_at = error, self._monotonic()
        else:
            self._failure, self._succeeded_at = None, began
