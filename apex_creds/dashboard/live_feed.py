"""What changed, as server-sent events for any number of readers.

Guarantee: a slow reader holds nothing up and costs no memory: it gets the newest state of each
topic when it reads again, and of the log what is still kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import anyio
import msgspec

KEPT: Final = 500
"""Events of the log that a new reader gets at once."""
MAX_READERS: Final = 16
ALIVE: Final = 10.0
"""Seconds between signs of life."""

_encode = msgspec.json.Encoder().encode


class LiveFeed:
    """Topics of one process; used from its event loop alone."""

    def __init__(self) -> None:
        self._topics: dict[str, tuple[int, bytes]] = {}
        self._log: deque[tuple[int, bytes]] = deque(maxlen=KEPT)
        self._version = 0
        self._arrived = 0
        self._changed = anyio.Event()
        self._closed = False
        self.readers = 0

    def publish(self, topic: str, value: object) -> None:
        """The new state of a topic; nobody is woken if it is as before."""
        data = _encode(value)
        before = self._topics.get(topic)
        if before is None or before[1] != data:
            self._version += 1
            self._topics[topic] = (self._version, data)
            self._wake()

    def log(self, events: Iterable[object]) -> None:
        """More events of the log, in the order in which readers get them."""
        before = self._arrived
        for event in events:
            self._arrived += 1
            self._log.append((self._arrived, _encode(event)))
        if self._arrived > before:
            self._wake()

    def latest(self, topic: str) -> bytes:
        """A topic's state as JSON; ``null`` where there is none yet."""
        return self._topics.get(topic, (0, b"null"))[1]

    def close(self) -> None:
        """Ends all readers."""
        self._closed = True
        self._wake()

    async def frames(
        self, *, lasts: Callable[[], bool], alive: float = ALIVE
    ) -> AsyncIterator[bytes]:
        """Server-sent events, until the feed is closed or ``lasts`` says no."""
        seen: dict[str, int] = {}
        last = 0
        self.readers += 1
        try:
            while not self._closed and lasts():
                changed = self._changed
                for topic, (version, data) in list(self._topics.items()):
                    if seen.get(topic) != version:
                        seen[topic] = version
                        yield frame(topic, data)
                new = [item for item in self._log if item[0] > last]
                if new:
                    last = new[-1][0]
                    yield frame("log", b"[" + b",".join(data for _, data in new) + b"]")
                with anyio.move_on_after(alive) as scope:
                    await changed.wait()
                if scope.cancelled_caught:
                    yield b": alive\n\n"
        finally:
            self.readers -= 1

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


def frame(topic: str, data: bytes) -> bytes:
    """One server-sent event; its JSON has no line feeds."""
    return b"event: %b\ndata: %b\n\n" % (topic.encode(), data)
