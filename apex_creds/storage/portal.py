"""A blocking portal to a shared storage: callers in any event loop or thread, one that works.

Guarantee: the storage runs in one event loop, in a thread that does nothing else. So callers
that block their own loop get an answer too, and changes by other processes are noticed
meanwhile. The thread ends with ``close``.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import anyio.to_thread

from apex_creds.concurrency import Event, Lock, LoopThread, Place, outcome
from apex_creds.errors import StorageError, StorageTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from apex_creds.storage.base import (
        Data,
        Leadership,
        SharedStorage,
        Shredded,
        Stored,
        Token,
        Write,
        WriteResult,
    )

T = TypeVar("T")
_LONGEST: Final = 30.0
_POLL_SECONDS: Final = 1.0


class StoragePortal:
    """See ``SharedStorage``, whose promises it passes on.

    Args:
        inner: Used by nobody else from now on; closed by ``close``.
    """

    def __init__(self, inner: SharedStorage) -> None:
        self.inner = inner
        self.staleness = inner.staleness
        self._thread = LoopThread("apex-creds-storage", leaf=True)
        self._closing = Lock()
        self._closed = False

    @property
    def shards(self) -> int:
        """See ``SharedStorage``."""
        return self.inner.shards

    def map_names(
        self, stem_of: Callable[[str], str], *, candidates: Iterable[str] | None = None
    ) -> None:
        """See ``SqlStorage``."""
        map_names = getattr(self.inner, "map_names", None)
        if map_names is not None:
            map_names(stem_of, candidates=candidates)

    # -- at once ---------------------------------------------------------------------

    def change_token(self, name: str) -> Token | None:
        """See ``Storage``."""
        return self.inner.change_token(name)

    def change_count(self) -> int:
        """See ``SharedStorage``."""
        return self.inner.change_count()

    def stale_for(self) -> float:
        """See ``SharedStorage``."""
        return self.inner.stale_for()

    def subscribe(self, call: Callable[[], None]) -> Callable[[], None]:
        """See ``SharedStorage``; ``call`` is called in the storage's thread."""
        return self.inner.subscribe(call)

    def refresh_blocking(self) -> None:
        """As ``refresh``, from code that can't wait.

        Raises:
            StorageStaleError: As ``refresh``.
            StorageTimeoutError: There was no answer.
        """
        self._refuse_closed()
        try:
            self._thread.call(self.inner.refresh, timeout=_LONGEST)
        except TimeoutError:
            raise StorageTimeoutError(
                "The storage does not answer.", hint="See that it can be reached."
            ) from None

    def start(self, work: Callable[[], Coroutine[object, object, T]]) -> Future[T]:
        """Begins ``work`` in the storage's loop; its end is waited for by nobody."""
        self._refuse_closed()
        return self._thread.start(work)

    # -- in the storage's loop -------------------------------------------------------

    async def prepare(self) -> None:
        """See ``Storage``."""
        await self._call(self.inner.prepare)

    async def read(self, name: str) -> Stored | None:
        """See ``Storage``."""
        return await self._call(partial(self.inner.read, name))

    async def write(
        self, name: str, data: Data, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        """See ``Storage``."""
        work = partial(self.inner.write, name, data, expected=expected, shred=shred)
        return await self._call(work)

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        """See ``Storage``."""
        return await self._call(
            partial(self.inner.delete, name, expected=expected, shred=shred)
        )

    async def names(self) -> list[str]:
        """See ``Storage``."""
        return await self._call(self.inner.names)

    async def refresh(self) -> None:
        """See ``SharedStorage``."""
        await self._call(self.inner.refresh)

    async def read_many(self, names: Iterable[str]) -> dict[str, Stored]:
        """See ``SharedStorage``."""
        return await self._call(partial(self.inner.read_many, list(names)))

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        """See ``SharedStorage``."""
        return await self._call(partial(self.inner.write_many, writes, shred=shred))

    async def append_lines(self, stream: str, lines: Sequence[bytes], *, first: int) -> None:
        """See ``SharedStorage``."""
        await self._call(partial(self.inner.append_lines, stream, lines, first=first))

    async def read_lines(self, stream: str, *, first: int = 0, limit: int) -> list[bytes]:
        """See ``SharedStorage``."""
        return await self._call(
            partial(self.inner.read_lines, stream, first=first, limit=limit)
        )

    async def streams(self) -> dict[str, int]:
        """See ``SharedStorage``."""
        return await self._call(self.inner.streams)

    def leader(self, what: str) -> AbstractAsyncContextManager[Leadership]:
        """See ``SharedStorage``."""
        return self._held(lambda: self.inner.leader(what))

    def claim(
        self, names: Iterable[str], *, limit: int
    ) -> AbstractAsyncContextManager[list[str]]:
        """See ``SharedStorage``."""
        return self._held(lambda: self.inner.claim(names, limit=limit))

    async def close(self) -> None:
        """See ``Storage``."""
        async with self._closing.held():
            if self._closed:
                return
            await self._thread.run(self.inner.close)
            self._closed = True
            await anyio.to_thread.run_sync(self._thread.close)

    # -- inside ----------------------------------------------------------------------

    async def _call(self, work: Callable[[], Coroutine[object, object, T]]) -> T:
        self._refuse_closed()
        return await self._thread.run(work)

    @contextlib.asynccontextmanager
    async def _held(
        self, enter: Callable[[], AbstractAsyncContextManager[T]]
    ) -> AsyncIterator[T]:
        """A block of the inner storage's, all of it in one task of its loop.

        It is left for a caller whose loop has ended within it: that is polled, since asyncio
        has nothing that is called when a loop is stopped or closed as it is.
        """
        self._refuse_closed()
        here = Place()
        entered: Future[T] = Future()
        leave, left = Event(), Event()

        async def hold() -> None:
            try:
                async with enter() as value:
                    if not entered.set_running_or_notify_cancel():
                        return
                    entered.set_result(value)
                    while not await leave.wait(_POLL_SECONDS) and here.runs:
                        pass
            except BaseException as error:
                if entered.done():
                    raise
                entered.set_exception(error)

        held = self._thread.start(hold)
        held.add_done_callback(lambda _: left.set())
        try:
            yield await outcome(entered)
        finally:
            leave.set()
            await left.wait()
            held.result()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StorageError("The storage is closed.", hint="Open it again.")
