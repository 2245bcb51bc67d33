"""Locks, flights and loops in threads: for tasks of any loops, also of loops that are gone."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import gc
import os
import random
import threading
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError as FutureCancelledError
from pathlib import Path

import pytest

from apex_creds import concurrency
from apex_creds.concurrency import (
    Event,
    Lock,
    LoopThread,
    Place,
    Queues,
    Semaphore,
    SingleFlight,
    run_at,
    running_loop,
)
from apex_creds.errors import EventLoopError
from tests.support.loops import KINDS, WITHIN, Make, Running, nested, running, threads

pytestmark = pytest.mark.filterwarnings(
    # A loop that is closed as it is leaves its tasks behind: that is what is tried here.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine:RuntimeWarning",
)


class Hold:
    """A task that takes a semaphore in some loop, and keeps it until it is told."""

    def __init__(self, semaphore: Semaphore) -> None:
        self.semaphore = semaphore
        self.has = threading.Event()
        self.over = threading.Event()
        self.let_go = Event()

    async def __call__(self) -> None:
        async with self.semaphore.held():
            self.has.set()
            await self.let_go.wait()
        self.over.set()

    def is_in(self) -> None:
        assert self.has.wait(WITHIN)


async def take(semaphore: Semaphore) -> str:
    async with semaphore.held():
        return "had it"


async def queued(semaphore: Semaphore, many: int) -> None:
    while len(semaphore._queue) < many:
        await asyncio.sleep(0)


# -- an event ------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS)
def test_an_event_wakes_whoever_waits_in_any_loop(make: Make) -> None:
    event = Event()
    with running(make, make, asyncio.new_event_loop) as loops:
        waiting = [loop.begin(event.wait()) for loop in loops for _ in range(3)]
        for loop in loops:
            loop.turn()
        assert not any(each.done() for each in waiting)
        event.set()
        assert all(each.result(WITHIN) for each in waiting)
        assert loops[0].do(event.wait())


def test_an_event_passes_over_a_loop_that_was_closed_while_it_waited() -> None:
    event = Event()
    gone, there = Running(), Running()
    gone.begin(event.wait())
    waiting = there.begin(event.wait())
    gone.turn()
    gone.close()
    event.set()
    assert waiting.result(WITHIN)
    there.end()


async def _wait_in_vain(event: Event) -> bool:
    return await event.wait(0.0)


def test_an_event_that_is_not_set_in_time_says_so() -> None:
    assert asyncio.run(_wait_in_vain(Event())) is False


# -- a lock --------------------------------------------------------------------------


@pytest.mark.parametrize("make", KINDS)
def test_one_at_a_time_over_threads_and_loops_in_a_row(make: Make) -> None:
    lock, inside, most, total = Lock(), [0], [0], [0]

    async def once() -> None:
        async with lock.held():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            await asyncio.sleep(0)
            total[0] += 1
            inside[0] -= 1

    def rows() -> None:
        for _ in range(25):
            with asyncio.Runner(loop_factory=make) as runner:
                runner.run(_several(once))

    threads(rows, rows, rows, rows)
    assert most == [1]
    assert total == [4 * 25 * 3]


async def _several(work: object) -> None:
    await asyncio.gather(*(work() for _ in range(3)))


def test_whoever_comes_first_is_first_over_loops() -> None:
    lock, order = Lock(), []

    async def take_note(number: int) -> None:
        async with lock.held():
            order.append(number)

    with running(*[asyncio.new_event_loop] * 3) as loops:
        hold = Hold(lock)
        holding = loops[0].begin(hold())
        hold.is_in()
        waiting = []
        for number in range(9):
            waiting.append(loops[number % 3].begin(take_note(number)))
            loops[0].do(queued(lock, number + 1))
        hold.let_go.set()
        for each in (holding, *waiting):
            each.result(WITHIN)
    assert order == list(range(9))


def test_a_free_lock_is_taken_without_letting_others_have_their_turn() -> None:
    async def main() -> None:
        lock, others = Lock(), []
        asyncio.get_running_loop().call_soon(others.append, "had its turn")
        async with lock.held():
            assert others == []

    asyncio.run(main())


def test_a_wait_that_is_cancelled_from_another_loop_keeps_nobody_back() -> None:
    lock = Lock()
    with running(*[asyncio.new_event_loop] * 3) as (one, two, three):
        hold = Hold(lock)
        holding = one.begin(hold())
        hold.is_in()
        first = two.begin(take(lock))
        one.do(queued(lock, 1))
        second = three.begin(take(lock))
        one.do(queued(lock, 2))
        first.cancel()
        hold.let_go.set()
        assert second.result(WITHIN) == "had it"
        holding.result(WITHIN)
        with pytest.raises(FutureCancelledError):
            first.result(WITHIN)
        assert one.do(take(lock)) == "had it"


def test_a_place_that_is_given_to_a_task_which_is_cancelled_right_then_is_passed_on() -> None:
    async def main() -> None:
        lock = Lock()
        turn = lock.held()
        await turn.__aenter__()
        late, next_one = asyncio.create_task(take(lock)), asyncio.create_task(take(lock))
        await queued(lock, 2)
        await turn.__aexit__()  # gives it to ``late``, which has not gone on yet
        late.cancel()
        assert await asyncio.wait_for(next_one, WITHIN) == "had it"
        assert late.cancelled() or late.exception() is None

    asyncio.run(main())


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_waiter_whose_loop_is_gone_is_passed_over(how: str, make: Make) -> None:
    lock = Lock()
    gone, there = Running(make), Running(make)
    hold = Hold(lock)
    holding = there.begin(hold())
    hold.is_in()
    gone.begin(take(lock))
    there.do(queued(lock, 1))
    getattr(gone, how)()
    waiting = there.begin(take(lock))
    there.do(queued(lock, 2))
    hold.let_go.set()
    assert waiting.result(WITHIN) == "had it"
    holding.result(WITHIN)
    there.end()
    gone.end()


def test_a_waiter_whose_loop_stood_still_for_a_while_gets_its_turn_then() -> None:
    lock = Lock()
    slow, there = Running(), Running()
    hold = Hold(lock)
    holding = there.begin(hold())
    hold.is_in()
    waiting = slow.begin(take(lock))
    there.do(queued(lock, 1))
    slow.stop()
    hold.let_go.set()
    holding.result(WITHIN)
    slow.resume()
    assert waiting.result(WITHIN) == "had it"
    slow.end()
    there.end()


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("how", ["stop", "close"])
def test_a_holder_whose_loop_is_gone_loses_the_lock(how: str, make: Make) -> None:
    lock = Lock()
    gone, there = Running(make), Running(make)
    hold, hold_after = Hold(lock), Hold(lock)
    gone.begin(hold())
    hold.is_in()
    waiting = there.begin(hold_after())  # before the loop is gone
    there.do(queued(lock, 1))
    getattr(gone, how)()
    hold_after.is_in()
    if how == "stop":  # and when it comes back, it frees nothing that is another's
        gone.resume()
        hold.let_go.set()
        assert hold.over.wait(WITHIN)
        assert [turn.loop for turn in lock._held] == [there.loop]
    del hold
    gc.collect()
    hold_after.let_go.set()
    waiting.result(WITHIN)
    assert there.do(take(lock)) == "had it"  # after it
    gone.end()
    there.end()


def test_a_task_that_was_dropped_with_its_loop_frees_nothing_that_is_anothers() -> None:
    lock = Lock()
    gone, there = Running(), Running()
    hold, after = Hold(lock), Hold(lock)
    gone.begin(hold())
    hold.is_in()
    gone.close()
    waiting = there.begin(after())
    after.is_in()
    del hold, gone
    there.loop.call_soon_threadsafe(gc.collect)
    there.turn()
    assert len(lock._held) == 1
    after.let_go.set()
    waiting.result(WITHIN)
    there.end()


def test_a_holder_whose_thread_waits_for_the_caller_loses_the_lock_at_once() -> None:
    """A loop that calls code which can't wait: nothing there goes on until it returns."""
    lock, thread = Lock(), LoopThread("test")

    async def holding() -> None:
        async with lock.held():
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(holding())
        await asyncio.sleep(0)
        assert thread.call(functools.partial(take, lock), timeout=WITHIN) == "had it"
        await task

    asyncio.run(main())
    thread.close()


def test_a_holder_whose_loop_does_not_answer_loses_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(concurrency, "PATIENCE", 0.0)
    lock, blocked, release = Lock(), threading.Event(), threading.Event()

    def stand_still() -> None:
        blocked.set()
        release.wait(WITHIN)

    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        hold = Hold(lock)
        holding = one.begin(hold())
        hold.is_in()
        one.loop.call_soon_threadsafe(stand_still)
        assert blocked.wait(WITHIN)
        assert two.do(take(lock)) == "had it"
        release.set()
        hold.let_go.set()
        holding.result(WITHIN)


def test_a_busy_loop_that_answers_keeps_the_lock() -> None:
    lock = Lock()
    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        hold = Hold(lock)
        holding = one.begin(hold())
        hold.is_in()
        waiting = two.begin(take(lock))
        one.do(queued(lock, 1))
        here = two.do(_place())
        for _ in range(3):
            lock.serve(here)
            one.turn()
        assert not waiting.done()
        hold.let_go.set()
        assert waiting.result(WITHIN) == "had it"
        holding.result(WITHIN)


async def _place() -> Place:
    return Place()


@pytest.mark.parametrize("make", KINDS)
def test_a_loop_inside_a_loop_does_not_wait_for_the_outer_one(make: Make) -> None:
    lock = Lock()

    async def outer() -> None:
        hold = Hold(lock)
        task = asyncio.create_task(hold())
        await asyncio.sleep(0)
        assert nested(take(lock), make) == "had it"
        hold.let_go.set()
        await task

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(outer())


@pytest.mark.slow
def test_nothing_is_lost_while_loops_come_and_go() -> None:
    """Loops that end, are closed or cancelled at any point, for a while."""
    semaphore, done = Semaphore(2), []

    def lives(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            loop = asyncio.new_event_loop()
            tasks = [loop.create_task(_some(semaphore, chance)) for _ in range(4)]
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(tasks[0])
            if chance.random() < 0.5:
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()
        done.append(seed)

    threads(*(functools.partial(lives, seed) for seed in range(4)))
    assert sorted(done) == [0, 1, 2, 3]
    assert asyncio.run(take(semaphore)) == "had it"


async def _some(semaphore: Semaphore, chance: random.Random) -> None:
    async with semaphore.held():
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)


# -- semaphores by key ---------------------------------------------------------------


def test_keys_do_not_wait_for_each_other_and_are_forgotten() -> None:
    async def main() -> None:
        queues: Queues[str] = Queues()
        async with queues.held("a"), queues.held("b"), queues.held("b2", places=2):
            waiting = asyncio.create_task(_held(queues, "a"))
            await asyncio.sleep(0)
            await _held(queues, "b2", 2)
            assert not waiting.done()
        await asyncio.wait_for(waiting, WITHIN)
        del waiting
        gc.collect()
        assert not queues._found

    asyncio.run(main())


async def _held(queues: Queues[str], key: str, places: int = 1) -> None:
    async with queues.held(key, places=places):
        pass


# -- a single flight -----------------------------------------------------------------


class Loads:
    """A slow load, in as many loops as want it."""

    def __init__(self) -> None:
        self.flights: SingleFlight[str, int] = SingleFlight()
        self.began: list[threading.Event] = [threading.Event() for _ in range(10)]
        self.go_on = [Event() for _ in range(10)]
        self.count = 0
        self.cancelled = 0

    async def load(self) -> int:
        number, self.count = self.count, self.count + 1
        self.began[number].set()
        try:
            await self.go_on[number].wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return number

    async def fresh(self) -> int:
        return await self.flights.fresh("it", now=lambda: None, load=self.load)

    async def shared(self) -> int | None:
        return await self.flights.shared("it", self.load)

    def is_at(self, number: int) -> None:
        assert self.began[number].wait(WITHIN)

    async def riders(self, many: int) -> None:
        while sum(flight.waiting for flight in self.flights._flights.values()) < many:
            await asyncio.sleep(0)


def test_a_load_that_began_before_the_call_is_not_good_enough() -> None:
    loads = Loads()
    with running(*[asyncio.new_event_loop] * 3) as (one, two, three):
        first = one.begin(loads.fresh())
        loads.is_at(0)
        others = [
            two.begin(loads.fresh()),
            three.begin(loads.fresh()),
            one.begin(loads.fresh()),
        ]
        one.do(loads.riders(4))
        loads.go_on[0].set()
        assert first.result(WITHIN) == 0
        loads.is_at(1)
        one.do(loads.riders(3))
        loads.go_on[1].set()
        assert [each.result(WITHIN) for each in others] == [1, 1, 1]
    assert loads.count == 2


def test_memory_is_asked_first_and_costs_no_load() -> None:
    async def main() -> None:
        loads = Loads()
        assert await loads.flights.fresh("it", now=lambda: 7, load=loads.load) == 7
        assert loads.count == 0

    asyncio.run(main())


def test_an_error_is_for_who_began_it_and_the_others_try_again() -> None:
    flights: SingleFlight[str, int] = SingleFlight()
    began, go_on = threading.Event(), Event()

    async def fails() -> int:
        began.set()
        await go_on.wait()
        raise ValueError("no")

    async def works() -> int:
        return 3

    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        first = one.begin(flights.fresh("it", now=lambda: None, load=fails))
        assert began.wait(WITHIN)
        second = two.begin(flights.fresh("it", now=lambda: None, load=works))
        two.turn()
        go_on.set()
        assert second.result(WITHIN) == 3
        with pytest.raises(ValueError, match="no"):
            first.result(WITHIN)


def test_the_first_caller_is_cancelled_and_the_others_get_what_it_began() -> None:
    loads = Loads()
    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        first = one.begin(loads.shared())
        loads.is_at(0)
        second = two.begin(loads.shared())
        two.do(loads.riders(2))
        first.cancel()
        with pytest.raises(FutureCancelledError):
            first.result(WITHIN)
        loads.go_on[0].set()
        assert second.result(WITHIN) == 0
    assert (loads.count, loads.cancelled) == (1, 0)


def test_it_is_cancelled_when_all_are_gone() -> None:
    loads = Loads()
    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        waiting = [one.begin(loads.shared()), two.begin(loads.shared())]
        loads.is_at(0)
        two.do(loads.riders(2))
        for each in waiting:
            each.cancel()
        one.do(_until(lambda: loads.cancelled == 1))
    assert not loads.flights._flights


async def _until(true: object) -> None:
    while not true():
        await asyncio.sleep(0)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("how", ["stop", "close", "end"])
@pytest.mark.parametrize("kind", ["fresh", "shared"])
def test_a_flight_whose_loop_is_gone_is_flown_by_the_next(
    kind: str, how: str, make: Make
) -> None:
    loads = Loads()
    gone, there = Running(make), Running(make)
    gone.begin(getattr(loads, kind)())
    loads.is_at(0)
    waiting = there.begin(getattr(loads, kind)())  # one that waits already
    there.do(loads.riders(2))
    getattr(gone, how)()
    loads.is_at(1)
    loads.go_on[1].set()
    assert waiting.result(WITHIN) == 1
    later = there.begin(getattr(loads, kind)())  # and one that comes later
    loads.is_at(2)
    loads.go_on[2].set()
    assert later.result(WITHIN) == 2
    there.end()
    gone.end()


def test_what_is_withdrawn_comes_to_nothing_for_all() -> None:
    loads = Loads()
    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        waiting = [one.begin(loads.shared()), two.begin(loads.shared())]
        loads.is_at(0)
        two.do(loads.riders(2))
        two.do(loads.flights.withdraw())
        assert [each.result(WITHIN) for each in waiting] == [None, None]
    assert loads.cancelled == 1


# -- a loop in a thread --------------------------------------------------------------


@pytest.fixture
async def thread() -> AsyncIterator[LoopThread]:
    made = LoopThread("test")
    yield made
    made.close()


async def _who() -> str:
    return threading.current_thread().name


@pytest.mark.anyio
async def test_work_is_done_in_its_thread_for_any_caller(thread: LoopThread) -> None:
    assert await thread.run(_who) == "test"
    assert await asyncio.to_thread(thread.call, _who) == "test"
    assert await thread.run(lambda: thread.run(_who)) == "test"  # by itself, too


@pytest.mark.anyio
async def test_a_caller_that_is_cancelled_cancels_its_work(thread: LoopThread) -> None:
    began, cancelled = Event(), Event()

    async def work() -> None:
        began.set()
        try:
            await Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    task = asyncio.create_task(thread.run(work))
    await began.wait()
    task.cancel()
    assert await cancelled.wait(WITHIN)
    with pytest.raises(TimeoutError):
        thread.call(Event().wait, timeout=0.0)


def test_it_is_closed_for_good_however_often() -> None:
    unused, thread = LoopThread("test"), LoopThread("test")
    assert thread.call(_who) == "test"
    for each in (unused, thread):
        each.close()
        each.close()
        with pytest.raises(EventLoopError, match="closed"):
            each.call(_who)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_it_begins_again_after_a_fork() -> None:
    thread = LoopThread("test")
    assert thread.call(_who) == "test"
    child = os.fork()
    if child == 0:
        os._exit(0 if thread.call(_who, timeout=WITHIN) == "test" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.close()


def test_work_is_handed_to_the_loop_that_something_belongs_to() -> None:
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        place = one.do(_place())
        assert two.do(run_at(place, loop)) is one.loop
        assert one.do(run_at(place, loop)) is one.loop


@pytest.mark.parametrize("how", ["stop", "close"])
def test_work_for_a_loop_that_is_gone_is_refused(how: str) -> None:
    gone, there = Running(), Running()
    place = gone.do(_place())
    waiting = there.begin(run_at(place, Event().wait))  # before, and after
    there.turn()
    getattr(gone, how)()
    for each in (waiting, there.begin(run_at(place, _who))):
        with pytest.raises(EventLoopError, match="ended"):
            each.result(WITHIN)
    there.end()
    gone.end()


# -- no asyncio ----------------------------------------------------------------------


def test_without_an_event_loop_it_says_what_is_needed() -> None:
    with pytest.raises(EventLoopError, match=r"asyncio\.run"):
        running_loop()


def test_on_trio_it_says_what_is_needed() -> None:
    trio = pytest.importorskip("trio")
    with pytest.raises(EventLoopError, match="not on trio"):
        trio.run(take, Lock())


# -- what belongs to one loop, and to which ---------------------------------------------

ONE_LOOP = {
    "cli/demo/scenario.py": "the demo's",
    "cli/service_commands.py": "the command's: it ends with its signals",
    "dashboard/live_feed.py": "the server's",
    "dashboard/watcher.py": "the server's",
    "auth/challenge_client.py": "that of a connection, which a pool has for one loop",
    "integrations/mcp_proxy.py": "the command's: of one client and one server",
    "isolation/programs.py": "the command's: of one program",
    "leases/connection_pool.py": "each pool is of one loop",
    "leases/bodies.py": "that of a request",
    "middleware/middleware.py": "that of a call: made for it and dropped after it",
    "sdk/aiohttp.py": "that of the session, as all of aiohttp's",
    "scheduler/worker.py": "the worker's; it is set through its loop",
    "storage/postgresql.py": "the storage's own",
    "storage/sql_retry.py": "that of a database's connections",
    "storage/sql_storage.py": "the storage's own; another loop is refused",
    "storage/sqlite.py": "the storage's own",
}
"""Files with primitives of asyncio or anyio that are tied to a loop: whose it is."""
TIED = {
    "asyncio": {
        "Barrier",
        "BoundedSemaphore",
        "Condition",
        "Event",
        "Lock",
        "Queue",
        "Semaphore",
    },
    "anyio": {"CapacityLimiter", "Condition", "Event", "Lock", "Semaphore"},
}
TIED_NAMES = {"RunVar", "BlockingPortal", "start_blocking_portal"}


def _is_tied(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return name in TIED.get(module, ())
        case ast.ImportFrom(module=module, names=names):
            tied = TIED.get(module or "", set()) | TIED_NAMES
            return any(each.name in tied for each in names)
    return False


def test_nothing_else_is_tied_to_an_event_loop() -> None:
    """Else use ``concurrency``, or say here which loop it is and why that is right."""
    package = Path(concurrency.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if any(map(_is_tied, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert found == set(ONE_LOOP)


@pytest.mark.anyio
async def test_code_in_a_thread_that_others_wait_for_does_not_wait_for_them() -> None:
    """A log handler of a driver's logger, for one: it would wait for itself."""
    leaf, other = LoopThread("test-leaf", leaf=True), LoopThread("test")

    async def needs_the_leaf() -> int:
        return await leaf.run(_one)

    async def waits() -> int:
        return other.call(needs_the_leaf)

    try:
        with pytest.raises(EventLoopError):
            await leaf.run(waits)
        assert await leaf.run(_one) == 1
        assert other.call(needs_the_leaf) == 1
    finally:
        leaf.close()
        other.close()


async def _one() -> int:
    return 1
