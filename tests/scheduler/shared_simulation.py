"""The simulation of ``simulation`` over sections in shards: of a storage that is shared, and
of one home's, where a section becomes large while others read, write and rotate.

Of a shared storage every worker has one of its own over the same documents, whose map of
versions is as old as its last look, and which now and then can't be reached.

``python -m tests.scheduler.shared_simulation [COUNT] [FIRST SEED]`` runs many of both.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents import sections
from apex_creds.documents.sections import ShardNames
from apex_creds.documents.store import DocumentStore
from apex_creds.scheduler import reencryption
from apex_creds.storage.base import Leadership
from apex_creds.storage.memory_storage import MemoryStorage
from tests.scheduler.simulation import Chaos, ChaoticStorage, Mortal, World, simulate


class _Mortal(Leadership):
    """Lost with the process that has it."""

    __slots__ = ("_owner",)

    def __init__(self, owner: Mortal) -> None:
        super().__init__(held=True)
        self._owner = owner

    def __bool__(self) -> bool:
        return not self._owner.dead and super().__bool__()


class ChaoticShare(ChaoticStorage):
    """As ``ChaoticStorage``, to a storage of which this worker has a peer."""

    def __init__(self, inner: MemoryStorage, chaos: Chaos, owner: Mortal) -> None:
        super().__init__(inner.peer(), chaos, owner)
        self.staleness = inner.staleness

    @property
    def shards(self) -> int:
        return self._inner.shards

    async def refresh(self) -> None:
        await self._call(self._inner.refresh)

    def stale_for(self) -> float:
        return self._inner.stale_for()

    def change_count(self) -> int:
        return self._inner.change_count()

    def subscribe(self, call: Callable[[], None]) -> Callable[[], None]:
        return self._inner.subscribe(call)

    @asynccontextmanager
    async def leader(self, what: str) -> AsyncIterator[Leadership]:
        async with self._inner.leader(what) as lead:
            if lead:
                lead = self._inner._place.leaders[what] = _Mortal(self._owner)
            try:
                yield lead
            finally:
                lead.lose()

    def claim(self, names: Iterable[str], *, limit: int) -> Any:
        return self._inner.claim(names, limit=limit)

    async def append_lines(self, stream: str, lines: Sequence[bytes], *, first: int) -> None:
        await self._call(lambda: self._inner.append_lines(stream, lines, first=first))

    async def read_lines(self, stream: str, *, first: int = 0, limit: int) -> list[bytes]:
        return await self._inner.read_lines(stream, first=first, limit=limit)

    async def streams(self) -> dict[str, int]:
        return await self._inner.streams()


@dataclass
class SharedWorld(World):
    """A world whose storage is shared."""

    storage: MemoryStorage = field(default_factory=lambda: MemoryStorage(shards=4))

    def documents(self, life: Mortal) -> DocumentStore:
        storage = ChaoticShare(self.storage, self.chaos, life)
        return DocumentStore(storage, clock=self.clock, masters=self.masters(life))


class ChaoticHome(ChaoticStorage):
    """As ``ChaoticStorage``, of a home that divides its sections."""

    division = 3


@dataclass
class DividedWorld(World):
    """A world of files, in which two credentials make a section large."""

    def documents(self, life: Mortal) -> DocumentStore:
        storage = ChaoticHome(self.storage, self.chaos, life)
        return DocumentStore(storage, clock=self.clock, masters=self.masters(life))


def _number(_names: ShardNames, _key: SecretBytes, credential: str) -> int:
    """A seed replays only if it does not depend on a random key."""
    return zlib.crc32(credential.encode())


def simulate_shared(seed: int) -> World:
    """As ``simulate``."""
    with (
        mock.patch.object(ShardNames, "_number", _number),
        mock.patch.object(reencryption, "PERIOD", 0.0),
    ):
        return simulate(seed, SharedWorld)


def simulate_divided(seed: int) -> World:
    """As ``simulate``."""
    with (
        mock.patch.object(ShardNames, "_number", _number),
        mock.patch.object(sections, "LARGE", 1),
    ):
        return simulate(seed, DividedWorld)


def main(count: int = 1000, first: int = 0) -> None:
    """Many schedules."""
    for seed in range(first, first + count):
        try:
            simulate_shared(seed)
            simulate_divided(seed)
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
