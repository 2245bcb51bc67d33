"""Documents in memory, for tests and simulations.

Guarantee: the same promises as any backend, except that nothing outlives the object and
its peers.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anyio.lowlevel import checkpoint

from apex_creds.clocks import boot_time
from apex_creds.errors import ConflictError, StorageError, StorageUnreachableError
from apex_creds.storage.base import (
    MAX_DOCUMENT_BYTES,
    Data,
    Leadership,
    Shredded,
    Stored,
    Token,
    Write,
    WriteResult,
    check_document_name,
    tie_result,
)
from apex_creds.storage.version_map import Refresher, VersionMap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence


@dataclass(slots=True)
class _Place:
    """What peers share."""

    documents: dict[str, Stored] = field(default_factory=dict)
    versions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    leaders: dict[str, Leadership] = field(default_factory=dict)
    claimed: set[str] = field(default_factory=set)
    streams: dict[str, list[bytes]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)


class MemoryStorage:
    """A dictionary behind the ``Storage`` protocol.

    With ``shards`` for one event loop, else for any; peers may be in different ones.

    Args:
        shards: More than 0 makes it behave as a ``SharedStorage``: ``change_token`` is
            then as of the last ``refresh()``.
        staleness: See ``SharedStorage``.
        monotonic: What staleness is measured with.
    """

    def __init__(
        self,
        *,
        shards: int = 0,
        staleness: float = 5.0,
        monotonic: Callable[[], float] = boot_time,
    ) -> None:
        self.staleness = staleness
        self.reachable = True
        """Tests set it to False to part this storage from its peers."""
        self._shards = shards
        self._monotonic = monotonic
        self._place = _Place()
        self._versions = VersionMap()
        self._refresher = Refresher(self._ask, monotonic=monotonic)
        self._leads: list[Leadership] = []

    def peer(self) -> MemoryStorage:
        """Another storage over the same documents, as another process would have it."""
        other = MemoryStorage(
            shards=self._shards, staleness=self.staleness, monotonic=self._monotonic
        )
        other._place = self._place
        return other

    @property
    def division(self) -> int:
        """See ``Divides``; of one that is not shared."""
        return 0 if self._shards else 64

    @property
    def shards(self) -> int:
        """See ``SharedStorage``."""
        return self._shards

    def change_token(self, name: str) -> Token | None:
        """See ``Storage``."""
        check_document_name(name)
        if self._shards:
            return self._versions.get(name)
        return self._now(name)

    async def prepare(self) -> None:
        """See ``Storage``."""
        await self._visit()

    async def read(self, name: str) -> Stored | None:
        """See ``Storage``."""
        check_document_name(name)
        return (await self.read_many([name])).get(name)

    async def write(
        self, name: str, data: Data, *, expected: Token | None, shred: bool = False
    ) -> WriteResult:
        """See ``Storage``; freed memory is not wiped, so shredding is unverifiable."""
        return (await self.write_many([Write(name, data, expected)], shred=shred))[0]

    async def delete(self, name: str, *, expected: Token, shred: bool = False) -> Shredded:
        """See ``Storage``."""
        check_document_name(name)
        await self._visit()
        with self._place.lock:
            self._check(name, expected)
            del self._place.documents[name]
            self._did(name, None)
        return "unverifiable" if shred else "no"

    async def names(self) -> list[str]:
        """See ``Storage``."""
        await self._visit()
        return sorted(self._place.documents)

    async def close(self) -> None:
        """See ``Storage``."""
        await self._refresher.stop()
        await checkpoint()

    # -- shared ----------------------------------------------------------------------

    async def refresh(self) -> None:
        """See ``SharedStorage``."""
        await self._refresher.refresh(staleness=self.staleness)

    def stale_for(self) -> float:
        """See ``SharedStorage``."""
        return self._refresher.stale_for()

    def change_count(self) -> int:
        """See ``SharedStorage``."""
        return self._versions.changes

    def subscribe(self, call: Callable[[], None]) -> Callable[[], None]:
        """See ``SharedStorage``."""
        return self._versions.watch(call)

    async def read_many(self, names: Iterable[str]) -> dict[str, Stored]:
        """See ``SharedStorage``."""
        wanted = [check_document_name(name) for name in names]
        asked, before = self._versions.asked(), self._versions.changes
        await self._visit()
        found = {name: self._place.documents.get(name) for name in wanted}
        await checkpoint()  # an answer takes its time too
        for name, stored in found.items():
            self._versions.learn(name, stored.token if stored else None, asked=asked)
        self._versions.notify(since=before)
        return {name: stored for name, stored in found.items() if stored is not None}

    async def write_many(
        self, writes: Sequence[Write], *, shred: bool = False
    ) -> list[WriteResult]:
        """See ``SharedStorage``."""
        for write in writes:
            check_document_name(write.name)
            if write.data is None:
                tie_result(write)  # a removal needs a version, too
            elif len(write.data) > MAX_DOCUMENT_BYTES:
                raise StorageError(f"The document {write.name!r} is larger than 1 GiB.")
        await self._visit()
        with self._place.lock:
            for write in writes:
                self._check(write.name, write.expected)
            results = []
            for write in writes:
                if write.data is None:
                    if write.remove:
                        del self._place.documents[write.name]
                        self._did(write.name, None)
                    results.append(tie_result(write))
                    continue
                token = Token(("memory", next(self._place.versions)))
                self._place.documents[write.name] = Stored(bytes(write.data), token)
                self._did(write.name, token)
                replaced = shred and write.expected is not None
                results.append(WriteResult(token, "unverifiable" if replaced else "no"))
            return results

    @contextlib.asynccontextmanager
    async def leader(self, what: str) -> AsyncIterator[Leadership]:
        """See ``SharedStorage``."""
        await self._visit()
        with self._place.lock:
            leaders = self._place.leaders
            ours = Leadership(held=not leaders.get(what))
            if ours:
                leaders[what] = ours
                self._leads.append(ours)
        try:
            yield ours
        finally:
            ours.lose()

    @contextlib.asynccontextmanager
    async def claim(self, names: Iterable[str], *, limit: int) -> AsyncIterator[list[str]]:
        """See ``SharedStorage``."""
        wanted = dict.fromkeys(check_document_name(name) for name in names)
        await self._visit()
        claimed = self._place.claimed
        with self._place.lock:
            ours = [name for name in wanted if name not in claimed][:limit]
            claimed.update(ours)
        try:
            yield ours
        finally:
            with self._place.lock:
                claimed.difference_update(ours)

    async def append_lines(self, stream: str, lines: Sequence[bytes], *, first: int) -> None:
        """See ``SharedStorage``."""
        check_document_name(stream)
        await self._visit()
        with self._place.lock:
            there = self._place.streams.get(stream, [])
            if len(there) == first:
                self._place.streams[stream] = [*there, *lines]
                return
        raise ConflictError(
            f"The stream {stream!r} has {len(there)} lines, not {first}.",
            hint="Ask how many it has, and go on from there.",
        )

    async def read_lines(self, stream: str, *, first: int = 0, limit: int) -> list[bytes]:
        """See ``SharedStorage``."""
        check_document_name(stream)
        await self._visit()
        return self._place.streams.get(stream, [])[first : first + limit]

    async def streams(self) -> dict[str, int]:
        """See ``SharedStorage``."""
        await self._visit()
        return {name: len(lines) for name, lines in self._place.streams.items() if lines}

    # -- inside ----------------------------------------------------------------------

    async def _visit(self) -> None:
        """What the network would be: others get their turn, and it may be down."""
        await checkpoint()
        if not self.reachable:
            for lead in self._leads:
                lead.lose()
            raise StorageUnreachableError("The memory storage can't be reached.")

    async def _ask(self) -> None:
        asked, before = self._versions.asked(), self._versions.changes
        await self._visit()
        documents = dict(self._place.documents)
        await checkpoint()
        for name in {*documents, *self._versions.known()}:
            stored = documents.get(name)
            self._versions.learn(name, stored.token if stored else None, asked=asked)
        self._versions.notify(since=before)

    def _now(self, name: str) -> Token | None:
        stored = self._place.documents.get(name)
        return None if stored is None else stored.token

    def _did(self, name: str, token: Token | None) -> None:
        before = self._versions.changes
        self._versions.put(name, token)
        self._versions.notify(since=before)

    def _check(self, name: str, expected: Token | None) -> None:
        if self._now(name) == expected:
            return
        self._versions.put(name, self._now(name))  # so that the next read gets this one
        raise ConflictError(
            f"The document {name!r} was changed meanwhile.", hint="Read it again and retry."
        )
