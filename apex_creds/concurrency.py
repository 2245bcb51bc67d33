"""Tasks of any event loops, in any threads, that share a lock, a result or a loop.

Guarantee: whatever is made here may be used from every asyncio event loop in every thread,
and nothing waits for a loop that can't go on. Such a loop is closed, or stopped, or it lies
under the caller's on the stack of one thread, or its thread is blocked: known at once where
it is blocked in ``LoopThread.call``, and after ``PATIENCE`` seconds without an answer
elsewhere. A task in such a loop loses its place in a semaphore, and its flight is flown by
the next that wants the result. It may go on later, beside those that came after it: so what is
guarded must be right without a lock (by a compare-and-set); the lock keeps order and saves
work.

No lock is held while anything is awaited, or while code of others runs.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any, Final, Generic, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import anyio.to_thread
from anyio import CancelScope

from apex_creds.errors import ConflictError, EventLoopError

P = ParamSpec("P")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Work = Callable[[], Coroutine[object, object, T]]

CHECK_EVERY: Final = 0.05
"""Seconds between two checks of a loop that is waited for."""
PATIENCE: Final = 2.0
"""Seconds without an answer after which a loop counts as one that can't go on."""

ATTEMPTS: Final = 100
"""Compare-and-set rounds before a commit gives up; each loses only to a commit that won."""
INLINE_ITEMS: Final = 256
"""Work on more than these is done in a worker thread, off the event loop."""

_LANES: Final = 16
"""So many at once: each may have a connection to the database for its lock."""
_LOOK: Final = 5.0
"""Seconds after which it is asked again what is due, while some lane takes long."""

_blocked: Final[set[int]] = set()
"""The threads that wait in ``LoopThread.call``, and any loop of theirs with them."""
_leaves: Final[set[int]] = set()
"""The threads of every ``LoopThread`` that is a leaf, and runs."""


def running_loop() -> asyncio.AbstractEventLoop:
    """The loop that the caller runs in.

    Raises:
        EventLoopError: There is none: it runs on trio, or in no event loop at all.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise EventLoopError(
            "No asyncio event loop is running here.",
            hint="Run it with asyncio.run(…); it works on asyncio and uvloop, not on trio.",
        ) from None


@contextmanager
def stop_signals(stop: Callable[[], object], *, once: bool = False) -> Iterator[None]:
    """Has ``stop`` called in the running loop at SIGTERM and SIGINT, where loops get signals.

    Args:
        stop: What to do.
        once: At the first one; a second ends the process, as it does without this.
    """
    loop, chosen = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)

    def release() -> None:
        with suppress(NotImplementedError):  # Windows
            for number in chosen:
                loop.remove_signal_handler(number)

    def stopping() -> None:
        stop()
        if once:
            release()

    with suppress(NotImplementedError):
        for number in chosen:
            loop.add_signal_handler(number, stopping)
    try:
        yield
    finally:
        release()


class BoundedCache(dict[K, T]):
    """What can be computed again, by key; it begins anew when it is full. For any thread.

    Args:
        most: So many entries at once.
    """

    __slots__ = ("_most",)

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def remember(self, key: K, value: T) -> T:
        """Keeps ``value``, and returns it."""
        if len(self) >= self._most:
            self.clear()
        self[key] = value
        return value


class Place:
    """Where a task goes on: its event loop, and the thread that runs it."""

    __slots__ = ("_asked", "loop", "thread")

    def __init__(self) -> None:
        self.loop = running_loop()
        self.thread = threading.get_ident()
        self._asked: float | None = None

    @property
    def runs(self) -> bool:
        """Whether the loop is neither closed nor stopped."""
        return self.loop.is_running() and not self.loop.is_closed()

    def goes_on(self, seen_from: Place) -> bool:
        """Whether a task here can go on while one there waits, as far as is known."""
        if self.loop is seen_from.loop:
            return not self.loop.is_closed()
        if not self.runs or self.thread == seen_from.thread or self.thread in _blocked:
            return False
        # It is asked to say that it runs; one that owes an answer for too long does not.
        asked, now = self._asked, time.monotonic()
        if asked is not None:
            return now - asked < PATIENCE
        self._asked = now
        try:
            self.loop.call_soon_threadsafe(setattr, self, "_asked", None)
        except RuntimeError:  # it was closed just now
            return False
        return True


class Event:
    """Set once, from any thread; waited for in any event loop."""

    __slots__ = ("_set", "_waiting")

    def __init__(self) -> None:
        self._set = False
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._set

    def set(self) -> None:
        """Wakes all who wait, and those who will; idempotent."""
        self._set = True
        for future, loop in list(self._waiting.items()):
            soon(loop, _wake, future)

    async def wait(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - not an error
        """Returns when it is set, or the time is up: whether it is set."""
        if self._set:
            return True
        loop = running_loop()
        future = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _wake, future)
        self._waiting[future] = loop
        try:
            if not self._set:  # read after it was added, so that none is missed
                await future
        finally:
            self._waiting.pop(future, None)
            if timer is not None:
                timer.cancel()
        return self._set


class Semaphore:
    """So many tasks at once, in the order in which they came: ``async with s.held():``.

    Args:
        places: How many.
    """

    __slots__ = ("__weakref__", "_held", "_lock", "_places", "_queue")

    def __init__(self, places: int = 1) -> None:
        self._places = places
        self._held: list[_Turn] = []
        self._queue: list[_Turn] = []
        self._lock = threading.RLock()  # garbage is collected anywhere, also while it is held

    def held(self) -> _Turn:
        """A turn, for one ``async with``."""
        return _Turn(self)

    def enter(self, turn: _Turn) -> bool:
        """Takes a place, or a place in the queue; whether it is the former."""
        with self._lock:
            if len(self._held) < self._places and not self._queue:
                self._held.append(turn)
                return True
            self._queue.append(turn)
        self.serve(turn)
        return turn.granted.is_set()

    def leave(self, turn: _Turn) -> None:
        """Gives up a place, or one in the queue, or one that was lost already."""
        with self._lock:
            _drop(self._held, turn)
            _drop(self._queue, turn)
        if self._queue:
            self.serve(turn)

    def serve(self, here: Place) -> None:
        """Gives the places that are free, or whose loops can't go on, to the next ones."""
        with self._lock:
            for turn in list(self._held):
                if not turn.goes_on(here):
                    _drop(self._held, turn)
            for turn in list(self._queue):
                if len(self._held) < self._places and turn.goes_on(here):
                    _drop(self._queue, turn)
                    self._held.append(turn)
                    turn.granted.set()


class _Turn(Place):
    """One task's use of a semaphore."""

    __slots__ = ("_of", "granted")

    def __init__(self, of: Semaphore) -> None:
        super().__init__()
        self.granted = Event()
        self._of = of

    async def __aenter__(self) -> None:
        try:
            if self._of.enter(self):
                return
            while not await self.granted.wait(CHECK_EVERY):
                self._of.serve(self)
        except BaseException:
            self._of.leave(self)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._of.leave(self)


class Lock(Semaphore):
    """One task at a time; see the module about loops that can't go on."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()


class Queues(Generic[K]):
    """Semaphores by key, each of them there as long as a task is at it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._found: WeakValueDictionary[K, Semaphore] = WeakValueDictionary()

    def held(self, key: K, *, places: int = 1) -> _Turn:
        """A turn at ``key``, for one ``async with``."""
        with self._lock:
            found = self._found.get(key)
            if found is None:
                found = self._found[key] = Semaphore(places)
            return found.held()


class _Flight(Place, Generic[T]):
    """One run of some work: when it began, on the count of calls; its task; its end."""

    __slots__ = ("began", "ended", "task", "waiting", "withdrawn")

    def __init__(self, began: int) -> None:
        super().__init__()
        self.began = began
        self.ended = Event()
        self.task: asyncio.Task[T] | None = None
        self.waiting = 0
        self.withdrawn = False

    def begin(self, work: Work[T]) -> None:
        """Has it done, in a task of the running loop."""
        self.task = self.loop.create_task(work())
        self.task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # none of those who are gone wants it
        self.ended.set()

    async def over(self, here: Place) -> None:
        """Returns when it has ended, or can't go on."""
        pause = None if self.loop is here.loop else CHECK_EVERY
        while not await self.ended.wait(pause):
            if not self.goes_on(here):
                return

    def cancel(self) -> None:
        """Cancels it, from any thread."""
        if self.task is not None:
            soon(self.loop, self.task.cancel)

    def result(self) -> T:
        """What it brought, or raised; after its end."""
        assert self.task is not None
        return self.task.result()

    @property
    def cancelled(self) -> bool:
        """Whether it has not come to an end, or was cancelled before."""
        return not self.ended.is_set() or self.task is None or self.task.cancelled()

    @property
    def succeeded(self) -> bool:
        """Whether it has brought something."""
        return not self.cancelled and self.task is not None and self.task.exception() is None


class SingleFlight(Generic[K, T]):
    """Of those that want the same at once one has it done, and all get what it brought.

    The work is in a separate task: that the first caller is cancelled disturbs nobody else.
    It is cancelled when all of them are gone. Where its loop ends, the next begins it again.
    """

    def __init__(self) -> None:
        self._count = itertools.count()
        self._flights: dict[K, _Flight[T]] = {}
        self._lock = threading.RLock()

    async def fresh(self, key: K, *, now: Callable[[], T | None], load: Work[T]) -> T:
        """The value from memory if ``now`` has it, else as it was loaded after the call began.

        Args:
            key: Which value.
            now: What is in memory, if it is current.
            load: Brings it. What it raises is raised to the caller that began it; the others
                try for themselves.
        """
        found = now()
        if found is not None:
            return found
        arrived = next(self._count)
        while True:
            flight, mine = await self._fly(key, load)
            if mine or (flight.succeeded and flight.began > arrived):
                return flight.result()
            found = now()
            if found is not None:
                return found

    async def shared(self, key: K, work: Work[T]) -> T | None:
        """What ``work`` brings or raises, for all who want it before it has ended.

        Returns:
            None where it was withdrawn.
        """
        while True:
            flight, _ = await self._fly(key, work)
            if flight.withdrawn:
                return None
            if not flight.cancelled:
                return flight.result()

    async def withdraw(self) -> None:
        """Cancels all that is under way, and waits for its end where its loop goes on."""
        here = Place()
        for flight in list(self._flights.values()):
            flight.withdrawn = True
            flight.cancel()
            await flight.over(here)

    async def _fly(self, key: K, work: Work[T]) -> tuple[_Flight[T], bool]:
        """A flight that has ended, or can't go on, and whether this call began it."""
        here = Place()
        with self._lock:
            flight = self._flights.get(key)
            mine = flight is None or flight.ended.is_set() or not flight.goes_on(here)
            if flight is None or mine:
                flight = self._flights[key] = _Flight(next(self._count))
            flight.waiting += 1
        try:
            if mine:
                flight.begin(work)
            await flight.over(here)
        finally:
            with self._lock:
                flight.waiting -= 1
                left = not flight.waiting
                if self._flights.get(key) is flight and (left or flight.ended.is_set()):
                    del self._flights[key]
            if left:
                flight.cancel()
        return flight, mine


class LoopThread:
    """An event loop in its own thread, for work that is not to end with a caller's loop.

    It begins with the first work, again after a fork, and does not keep the interpreter from
    ending.

    Args:
        name: The thread's.
        leaf: Other threads wait for this one, so that no code in it may wait for them: not
            a log handler's, a watcher's or a driver's either. ``call`` refuses there.
    """

    def __init__(self, name: str, *, leaf: bool = False) -> None:
        self._name = name
        self._leaf = leaf
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = Event()
        self._closed = False

    def start(self, work: Work[T]) -> Future[T]:
        """Begins ``work``, in the caller's context.

        Raises:
            EventLoopError: It was closed.
        """
        with self._lock:
            if self._closed:
                raise EventLoopError("The thread for this was closed.", hint="Open it anew.")
            if self._loop is None or self._thread is None or not self._thread.is_alive():
                self._end = Event()
                ready: Future[asyncio.AbstractEventLoop] = Future()
                self._thread = threading.Thread(
                    target=_serve,
                    args=(ready, self._end, self._leaf),
                    name=self._name,
                    daemon=True,
                )
                self._thread.start()
                self._loop = ready.result()
            loop = self._loop
        return asyncio.run_coroutine_threadsafe(work(), loop)

    async def run(self, work: Work[T]) -> T:
        """Does ``work``, for a caller in any event loop, whose cancellation is passed on."""
        if running_loop() is self._loop:
            return await work()
        return await outcome(self.start(work))

    def call(self, work: Work[T], *, timeout: float | None = None) -> T:
        """Does ``work``, for a caller that can't wait; its thread stands still meanwhile.

        Raises:
            TimeoutError: It took too long, and was cancelled.
            EventLoopError: The caller's thread is one that others wait for.
        """
        if threading.get_ident() in _leaves:
            raise EventLoopError(
                "Others wait for the thread that this runs in, so it can't wait for them.",
                hint="Do it in another thread or event loop.",
            )
        if threading.current_thread() is self._thread:
            other = LoopThread("apex-creds-apart")
            try:
                return other.call(work, timeout=timeout)
            finally:
                other.close()
        future = self.start(work)
        try:
            with _standing_still():
                return future.result(timeout)
        except FutureTimeoutError:
            future.cancel()
            raise

    def close(self, *, wait: bool = True) -> None:
        """Ends the loop and the thread; idempotent. What is under way there is cancelled."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            self._end.set()
        if wait and thread is not None and thread is not threading.current_thread():
            with _standing_still():
                thread.join()


BACKGROUND: Final = LoopThread("apex-creds")
"""For what is short, and is to be done whatever becomes of the loop that it comes from."""


async def outcome(future: Future[T]) -> T:
    """The result of a future of another thread, for a caller in any event loop.

    If the caller is cancelled, the future is, too.
    """
    done = Event()
    future.add_done_callback(lambda _: done.set())
    try:
        await done.wait()
    except BaseException:
        future.cancel()
        raise
    return future.result()


async def run_at(place: Place, work: Work[T]) -> T:
    """Does ``work`` in the loop of ``place``, for a caller in any event loop.

    Raises:
        EventLoopError: That loop has ended, or can't go on.
    """
    here, done = Place(), Event()
    if place.loop is here.loop:
        return await work()
    if place.goes_on(here):
        future = asyncio.run_coroutine_threadsafe(work(), place.loop)
        future.add_done_callback(lambda _: done.set())
        try:
            while not await done.wait(CHECK_EVERY):
                if not place.goes_on(here):
                    break
            else:
                return future.result()
        except BaseException:
            future.cancel()
            raise
    raise EventLoopError(
        "The event loop that this belongs to has ended, or does not answer.",
        hint="Begin it again in the loop that runs now.",
    )


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Awaits ``work``, which must be short; a cancellation is delivered after it.

    For what would be left half done: a file that a thread opens for a caller who is gone
    would be closed by nobody.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # the caller does not want it; it is not "never retrieved"
        raise


def run_at_once(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that waits for nothing, in the caller's thread, task and context.

    So a function for threads is the asynchronous one, which takes the blocking way where the
    two differ: ``run_at_once(exchange(…, blocking=True))``.

    Raises:
        RuntimeError: It waits; what it has open is closed first.
    """
    try:
        work.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    work.close()
    raise RuntimeError("A coroutine that is to end at once waits for something.")


async def first_ended(*ways: Coroutine[Any, Any, None]) -> None:
    """Runs all of them until one ends, or fails; the others are cancelled."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


@contextmanager
def _standing_still() -> Iterator[None]:
    thread = threading.get_ident()
    _blocked.add(thread)
    try:
        yield
    finally:
        _blocked.discard(thread)


def _serve(ready: Future[asyncio.AbstractEventLoop], end: Event, leaf: bool) -> None:
    async def body() -> None:
        ready.set_result(asyncio.get_running_loop())
        await end.wait()

    if leaf:
        _leaves.add(threading.get_ident())
    try:
        asyncio.run(body())
    except BaseException as error:
        if not ready.done():
            ready.set_exception(error)
        # Python 3.12.0 to 3.12.2 start no thread at exit (gh-113964), not even the one in
        # which asyncio ends its executor. By then all the work is done.
        elif not (isinstance(error, RuntimeError) and "interpreter shutdown" in str(error)):
            raise
    finally:
        _leaves.discard(threading.get_ident())


class Pauses(Generic[K]):
    """What failed a moment ago is left alone for a while: twice as long after each failure.

    Args:
        now: A clock that never jumps.
        first: Seconds after the first failure.
        longest: Seconds after many.
    """

    def __init__(self, now: Callable[[], float], *, first: float, longest: float) -> None:
        self._now = now
        self._first, self._longest = first, longest
        self._until: dict[K, tuple[float, float]] = {}

    def begin(self, key: K) -> None:
        """It failed."""
        _, last = self._until.get(key, (0.0, 0.0))
        pause = min(self._longest, last * 2 or self._first)
        self._until[key] = self._now() + pause, pause

    def end(self, key: K) -> None:
        """It worked, or a person says that it is to be tried."""
        self._until.pop(key, None)

    def __contains__(self, key: K) -> bool:
        until, _ = self._until.get(key, (0.0, 0.0))
        return self._now() < until


async def in_lanes(
    due: Callable[[], Awaitable[Mapping[str, str]]], work: Callable[[str], Awaitable[bool]]
) -> None:
    """Does what is due: one thing after the other in each lane, and lanes side by side.

    As long as one of them takes, the others are looked after every few seconds: who does not
    answer holds up one lane, once.

    Args:
        due: What is due now, and the lane of each.
        work: Does one thing; whether its lane goes on. What it raises ends all.
    """
    lanes = _Lanes(work)
    try:
        while lanes.begin(await due()):
            await lanes.wait()
    finally:
        await lanes.close()


class _Lanes:
    """The lanes of one round: each thing is done once, and none in a lane that was shut."""

    def __init__(self, work: Callable[[str], Awaitable[bool]]) -> None:
        self._work = work
        self._done: set[str] = set()
        self._shut: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}

    def begin(self, due: Mapping[str, str]) -> bool:
        """Begins the lanes for which there is room; whether any runs."""
        closed, lanes = self._shut | self._running.keys(), dict[str, list[str]]()
        for item, lane in due.items():
            if item not in self._done and lane not in closed:
                lanes.setdefault(lane, []).append(item)
        for lane in list(lanes)[: _LANES - len(self._running)]:
            self._running[lane] = asyncio.create_task(self._serve(lane, lanes[lane]))
        return bool(self._running)

    async def wait(self) -> None:
        """Returns when all have ended, or it is time to look what else is due."""
        over, running = await asyncio.wait(self._running.values(), timeout=_LOOK)
        self._running = {n: task for n, task in self._running.items() if task in running}
        for task in over:
            task.result()

    async def close(self) -> None:
        """Cancels what is under way."""
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _serve(self, lane: str, items: list[str]) -> None:
        for item in items:
            self._done.add(item)
            if not await self._work(item):
                self._shut.add(lane)
                return


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Does ``work`` here if it is small, else in a worker thread."""
    if size < INLINE_ITEMS:
        return work()
    return await anyio.to_thread.run_sync(work)


def in_thread(work: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Makes a coroutine function of one that blocks: it runs in a worker thread, to its end."""

    @wraps(work)
    async def threaded(*args: P.args, **kwargs: P.kwargs) -> T:
        return await anyio.to_thread.run_sync(partial(work, *args, **kwargs))

    return threaded


async def until_committed(name: str, attempt: Callable[[], Awaitable[T | None]]) -> T:
    """Runs a compare-and-set until it comes first.

    Args:
        name: What is written, for the error.
        attempt: Computes from fresh state, and writes; None where another writer was first.

    Raises:
        ConflictError: Other writers were first, ``ATTEMPTS`` times.
    """
    for _ in range(ATTEMPTS):
        made = await attempt()
        if made is not None:
            return made
    raise too_busy(name)


def too_busy(name: str) -> ConflictError:
    """The error of a commit that always came second."""
    return ConflictError(
        f"Other writers kept changing the document for {name!r}.", hint="Try again."
    )


def soon(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *args: object) -> None:
    """Has ``call`` called in that loop; nowhere, if it is closed."""
    if asyncio._get_running_loop() is loop:
        call(*args)
        return
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *args)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _drop(turns: list[_Turn], turn: _Turn) -> None:
    with suppress(ValueError):
        turns.remove(turn)
