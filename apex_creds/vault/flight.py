"""Many that want the same document share one load of it.

Guarantee: what ``get`` returns was read at some moment after it was called, as if the
caller had read it alone; but of all that wait, one reads, and the others take what it got,
all of them at once, so that nobody gets it late. Without this, each commit of a rotation
would have every waiting task read, check and decrypt the document for itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import anyio
from anyio.lowlevel import RunVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    """One load: when it began, on the count of calls; what it brought, once it has ended."""

    began: int
    ended: anyio.Event = field(default_factory=anyio.Event)
    value: T | None = None


class SingleFlight(Generic[T]):
    """The loads of one kind of value, by name; shared within each event loop."""

    def __init__(self, what: str) -> None:
        self._count = itertools.count()
        self._flights: RunVar[dict[tuple[int, str], _Flight[T]]] = RunVar(f"apex_creds {what}")

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
        arrived, flights = next(self._count), self._of_this_loop()
        while (flight := flights.get((id(self), name))) is not None:
            await flight.ended.wait()
            if flight.value is not None and flight.began > arrived:
                return flight.value
            found = now()
            if found is not None:
                return found
        return await self._load(name, load, flights)

    async def _load(
        self,
        name: str,
        load: Callable[[], Awaitable[T]],
        flights: dict[tuple[int, str], _Flight[T]],
    ) -> T:
        flight: _Flight[T] = _Flight(next(self._count))
        flights[id(self), name] = flight
        try:
            flight.value = value = await load()
            return value
        finally:
            del flights[id(self), name]
            flight.ended.set()

    def _of_this_loop(self) -> dict[tuple[int, str], _Flight[T]]:
        try:
            return self._flights.get()
        except LookupError:
            made: dict[tuple[int, str], _Flight[T]] = {}
            self._flights.set(made)
            return made
