"""Event loops in threads, in a row, and inside loops: what tests of several loops share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

WITHIN = 480.0
"""Seconds after which a test says that it hangs; none waits for them to pass."""

Make = Callable[[], asyncio.AbstractEventLoop]


def uvloop_loop() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop").new_event_loop()


KINDS = [
    pytest.param(asyncio.new_event_loop, id="asyncio"),
    pytest.param(uvloop_loop, id="uvloop"),
]


class Running:
    """An event loop that runs in a thread until it is stopped; closed only on request."""

    def __init__(self, make: Make = asyncio.new_event_loop) -> None:
        self.loop = make()
        self._thread = self._go()

    def _go(self) -> threading.Thread:
        ready = threading.Event()
        self.loop.call_soon_threadsafe(ready.set)
        thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        thread.start()
        assert ready.wait(WITHIN)
        return thread

    def begin(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.begin(work).result(WITHIN)

    def turn(self) -> None:
        """Returns when what could go on in the loop has done so."""
        self.do(_turns())

    def stop(self) -> None:
        """The loop stands still, its tasks in the middle of what they do."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WITHIN)
        assert not self._thread.is_alive()

    def resume(self) -> None:
        self._thread = self._go()

    def close(self) -> None:
        """Closes it as it is: no task hears of it."""
        if self._thread.is_alive():
            self.stop()
        self.loop.close()

    def end(self) -> None:
        """As ``asyncio.run`` ends a loop."""
        if self.loop.is_closed():
            return
        if self._thread.is_alive():
            self.stop()
        self.loop.run_until_complete(_cancelled(asyncio.all_tasks(self.loop)))
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


@contextlib.contextmanager
def running(*makes: Make) -> Iterator[list[Running]]:
    loops = [Running(make) for make in makes]
    try:
        yield loops
    finally:
        for loop in loops:
            loop.end()


def nested(work: Coroutine[Any, Any, Any], make: Make = asyncio.new_event_loop) -> Any:
    """Runs ``work`` in another loop, inside a running one: as nest_asyncio lets programs do."""
    outer = asyncio.get_running_loop()
    inner = make()
    asyncio._set_running_loop(None)
    try:
        return inner.run_until_complete(asyncio.wait_for(work, WITHIN))
    finally:
        inner.close()
        asyncio._set_running_loop(outer)


def threads(*calls: Callable[[], object]) -> list[object]:
    """Calls each in a thread of its own, at once; what they return, or the first error."""
    found: list[Future[object]] = [Future() for _ in calls]

    def run(call: Callable[[], object], future: Future[object]) -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    for call, future in zip(calls, found, strict=True):
        threading.Thread(target=run, args=(call, future), daemon=True).start()
    return [future.result(WITHIN) for future in found]


async def _turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def _cancelled(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
