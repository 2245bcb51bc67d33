"""Many that want the same document share one load of it.

Guarantee: what ``get`` returns was read at some moment after it was called, as if the
caller had read it alone; but of all that wait, one reads, and the others take what it got.
Without this, each commit of a rotation would have every waiting task read, check and
decrypt the document for itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import RunVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Loaded(Generic[T]):
    """What a load brought, and when it began, on the count of calls."""

    began: int
    value: T


class SingleFlight(Generic[T]):
    """The loads of one kind of value, by name; shared within each event loop."""

    def __init__(self, what: str) -> None:
        self._count = itertools.count()
        self._locks: RunVar[dict[tuple[int, str], anyio.Lock]] = RunVar(f"apex_creds {what}")
        self._loaded: dict[str, _Loaded[T]] = {}

    async def get(
        self, name: str, *, now: Callable[[], T | None], load: Callable[[], Awaitable[T]]
    ) -> T:
        """The value, from memory if ``now`` has it, else as read by ``load``.

        Args:
            name: Which value.
            now: What is in memory, if it is current.
            load: Reads it; what it raises is raised to its own caller only.
        """
        found = now()
        if found is not None:
            return found
        arrived, lock = next(self._count), self._lock(name)
        async with lock:
            loaded = self._loaded.get(name)
            if not lock.statistics().tasks_waiting:  # nobody else can want it
                self._loaded.pop(name, None)
            if loaded is not None and loaded.began > arrived:
                return loaded.value
            found = now()
            if found is not None:
                return found
            began = next(self._count)
            value = await load()
            if lock.statistics().tasks_waiting:
                self._loaded[name] = _Loaded(began, value)
            return value

    def forget(self) -> None:
        """Lets go of what was loaded."""
        self._loaded.clear()

    def _lock(self, name: str) -> anyio.Lock:
        try:
            locks = self._locks.get()
        except LookupError:
            locks = {}
            self._locks.set(locks)
        return locks.setdefault((id(self), name), anyio.Lock())
