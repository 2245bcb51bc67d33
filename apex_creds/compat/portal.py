"""An event loop of its own in a thread of its own, for code that knows no event loop.

Guarantee: usable from any thread, also from one in which an event loop runs; does not keep
the interpreter from ending.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TypeVar

import anyio
from anyio.from_thread import BlockingPortal

T = TypeVar("T")


class Portal:
    """Runs coroutine functions in the loop, and waits for them."""

    def __init__(self) -> None:
        ready: Future[BlockingPortal] = Future()
        # A daemon: the pool behind anyio's own helper is joined before `atexit` could end it.
        self._thread = threading.Thread(
            target=_serve, args=(ready,), name="apex-creds-compat", daemon=True
        )
        self._thread.start()
        self._portal = ready.result()

    def call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Runs ``work`` and returns its result, or raises what it raises."""
        return self._portal.call(work)

    def close(self) -> None:
        """Ends the loop and the thread; idempotent."""
        if self._thread.is_alive():
            self._portal.call(self._portal.stop)
            self._thread.join()


def _serve(ready: Future[BlockingPortal]) -> None:
    async def serve() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    try:
        anyio.run(serve)
    except BaseException as error:
        if not ready.done():
            ready.set_exception(error)
        # Python 3.12.0 to 3.12.2 start no thread at exit (gh-113964), not even the one in
        # which asyncio ends its executor. By then all the work is done.
        if not (isinstance(error, RuntimeError) and "interpreter shutdown" in str(error)):
            raise
