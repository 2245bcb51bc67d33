"""Every way in which an invocation can end also ends its leases (DESIGN rule 9)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import warnings

import anyio
import pytest

from apex_creds.errors import LeaseEndedError, SecretWipedError
from tests.support.loops import WITHIN
from tests.support.worlds import KEY, World, manifest_for

pytestmark = pytest.mark.anyio


class Held:
    """What a plugin held on to: a handle, and a secret that it did not let go."""

    def __init__(self) -> None:
        self.handle = self.secret = None
        self.closed = 0

    async def take(self, credentials) -> None:
        self.handle = credentials["key"]
        self.secret = await self.handle.reveal().__aenter__()

    def take_here(self, credentials) -> None:
        self.handle = credentials["key"]
        self.secret = self.handle.reveal().__enter__()

    @property
    def usable(self) -> bool:
        return self.handle.active and not self.secret.closed

    def check_ended(self) -> None:
        assert not self.handle.active
        assert self.secret.closed
        with pytest.raises(SecretWipedError):
            self.secret.view()
        with pytest.raises(LeaseEndedError):
            self.handle.attenuate()


@pytest.fixture
def held() -> Held:
    return Held()


async def test_return(world: World, held: Held) -> None:
    with world.nothing_left():
        await world.call(held.take)
        held.check_ended()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_exception(world: World, held: Held, error: type[BaseException]) -> None:
    async def plugin(credentials):
        await held.take(credentials)
        raise error("oops")

    with world.nothing_left():
        # Not through pytest.raises alone: an exit must come out as it went in.
        raised: list[BaseException] = []
        try:
            await world.call(plugin)
        except BaseException as caught:
            raised.append(caught)
        assert [(type(each), each.args) for each in raised] == [(error, ("oops",))]
        held.check_ended()
    assert [event.outcome for event in world.events("invocation")] == [error.__name__]


async def test_cancellation(world: World, held: Held) -> None:
    taken = asyncio.Event()

    async def plugin(credentials):
        await held.take(credentials)
        taken.set()
        await asyncio.Event().wait()

    with world.nothing_left():
        task = asyncio.create_task(world.call(plugin))
        await taken.wait()
        assert held.usable
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.check_ended()
        with anyio.move_on_after(0.01) as scope:
            await world.call(plugin)
        assert scope.cancelled_caught
        held.check_ended()


async def test_an_exception_in_a_thread(world: World, held: Held) -> None:
    def plugin(credentials):
        held.take_here(credentials)
        raise ValueError("oops")

    with world.nothing_left():
        with pytest.raises(ValueError, match="oops"):
            await world.call(plugin)
        held.check_ended()


async def test_a_class_name_is_no_place_to_write_events(world: World) -> None:
    hostile = type('X","decision":"deny","detail":"\n\u2028' + "x" * 99_999, (Exception,), {})

    async def plugin(credentials):
        raise hostile

    with pytest.raises(hostile):
        await world.call(plugin)
    (event,) = world.events("invocation")
    assert event.outcome.startswith('X","decision":"deny"')
    assert (event.decision, event.detail) == ("", "")


# -- streams ---------------------------------------------------------------------------


class AsyncIterator:
    """An iterator that is no generator."""

    def __init__(self, held: Held, credentials, fails: bool) -> None:
        self.held, self.credentials, self.fails, self.n = held, credentials, fails, 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        if self.n == 0:
            await self.held.take(self.credentials)
        self.n += 1
        if self.n > 3:
            if self.fails:
                raise ValueError("oops")
            raise StopAsyncIteration
        assert self.held.usable
        return self.n


class PlainIterator(AsyncIterator):
    def __iter__(self):
        return self

    __aiter__ = __anext__ = None

    def __next__(self):
        if self.n == 0:
            self.held.take_here(self.credentials)
        self.n += 1
        if self.n > 3:
            if self.fails:
                raise ValueError("oops")
            raise StopIteration
        assert self.held.usable
        return self.n


def streams(held: Held, fails: bool) -> dict[str, object]:
    async def async_generator(credentials):
        try:
            await held.take(credentials)
            for n in (1, 2, 3):
                assert held.usable
                yield n
            if fails:
                raise ValueError("oops")
        finally:
            await asyncio.sleep(0)
            held.closed += 1

    def generator(credentials):
        try:
            held.take_here(credentials)
            for n in (1, 2, 3):
                assert held.usable
                yield n
            if fails:
                raise ValueError("oops")
        finally:
            held.closed += 1

    async def returns_async_generator(credentials):
        return async_generator(credentials)

    def returns_generator(credentials):
        return generator(credentials)

    async def returns_async_iterator(credentials):
        return AsyncIterator(held, credentials, fails)

    def returns_iterator(credentials):
        return PlainIterator(held, credentials, fails)

    made = [async_generator, generator, returns_async_generator, returns_generator,
            returns_async_iterator, returns_iterator]  # fmt: skip
    return {function.__name__: function for function in made}


KINDS = list(streams(Held(), fails=False))


async def step(stream) -> object:
    return await anext(stream) if inspect.isasyncgen(stream) else next(stream)


async def close(stream) -> None:
    await stream.aclose() if inspect.isasyncgen(stream) else stream.close()


async def throw(stream, error: Exception) -> object:
    return await stream.athrow(error) if inspect.isasyncgen(stream) else stream.throw(error)


async def consume(stream) -> list[object]:
    if inspect.isasyncgen(stream):
        return [chunk async for chunk in stream]
    assert inspect.isgenerator(stream)
    return list(stream)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_is_exhausted(world: World, held: Held, kind: str) -> None:
    with world.nothing_left():
        stream = await world.call(streams(held, fails=False)[kind])
        assert world.middleware.broker.open_leases == 1
        assert await consume(stream) == [1, 2, 3]
        held.check_ended()
        assert await consume(stream) == []
    assert [event.outcome for event in world.events("invocation")] == ["ok"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_raises(world: World, held: Held, kind: str) -> None:
    with world.nothing_left():
        stream = await world.call(streams(held, fails=True)[kind])
        for n in (1, 2, 3):
            assert await step(stream) == n
        with pytest.raises(ValueError, match="oops"):
            await step(stream)
        held.check_ended()
    assert [event.outcome for event in world.events("invocation")] == ["ValueError"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_is_closed_before_its_first_step(
    world: World, held: Held, kind: str
) -> None:
    stream = await world.call(streams(held, fails=False)[kind])
    await close(stream)
    assert world.middleware.broker.open_leases == 0, "while the stream is still there"
    assert [event.outcome for event in world.events("invocation")] == ["closed"]
    assert await consume(stream) == []
    assert held.secret is None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_is_closed_midway(world: World, held: Held, kind: str) -> None:
    with world.nothing_left():
        stream = await world.call(streams(held, fails=False)[kind])
        assert await step(stream) == 1
        await close(stream)
        held.check_ended()
    assert "iterator" in kind or held.closed == 1
    assert [event.outcome for event in world.events("invocation")] == ["closed"]


@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_is_abandoned(
    world: World, held: Held, kind: str, steps: int
) -> None:
    with world.nothing_left():
        stream = await world.call(streams(held, fails=False)[kind])
        for _ in range(steps):
            await step(stream)
        del stream
        gc.collect()
        assert world.middleware.broker.open_leases == 0
        if steps:
            held.check_ended()
        await asyncio.sleep(0.01)  # the event loop closes what was dropped
    assert "iterator" in kind or held.closed == steps
    assert [event.outcome for event in world.events("invocation")] == ["abandoned"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_that_passes_its_deadline(world: World, held: Held, kind: str) -> None:
    stream = await world.call(streams(held, fails=False)[kind])
    assert await step(stream) == 1
    world.clock.now += 300
    assert world.middleware.broker.open_leases == 0
    held.check_ended()
    with pytest.raises(AssertionError):  # the plugin finds that it can't use it any more
        await step(stream)
    assert len(world.events("invocation")) == 1


async def test_the_clock_ends_a_stream_that_nobody_touches(world: World, held: Held) -> None:
    from tests.support.worlds import CredentialMiddleware

    async with CredentialMiddleware(world.vault, ttl=0.05) as middleware:
        kind = streams(held, fails=False)["async_generator"]
        stream = await middleware.invoke(manifest_for("key"), kind)
        assert await step(stream) == 1
        world.clock.now += 0.05
        with anyio.fail_after(WITHIN):
            while not held.secret.closed:
                await asyncio.sleep(0.001)
        held.check_ended()
        await stream.aclose()


async def test_a_stream_whose_consumer_is_cancelled(world: World, held: Held) -> None:
    started = asyncio.Event()

    async def plugin(credentials):
        try:
            await held.take(credentials)
            started.set()
            yield 1
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            held.closed += 1

    async def consumer():
        async for _ in await world.call(plugin):
            pass

    with world.nothing_left():
        task = asyncio.create_task(consumer())
        await started.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.check_ended()
    assert held.closed == 1
    assert [event.outcome for event in world.events("invocation")] == ["CancelledError"]


async def test_what_is_sent_and_thrown_passes_through(world: World, held: Held) -> None:
    async def plugin(credentials):
        await held.take(credentials)
        heard = yield "start"
        while True:
            try:
                heard = yield f"heard {heard}"
            except ValueError as error:
                heard = f"error {error}"

    stream = await world.call(plugin)
    assert await stream.asend(None) == "start"
    assert await stream.asend("one") == "heard one"
    assert await stream.athrow(ValueError("two")) == "heard error two"
    assert await anext(stream) == "heard None"
    with pytest.raises(KeyError):
        await stream.athrow(KeyError("three"))
    held.check_ended()


async def test_what_is_sent_and_thrown_passes_through_synchronously(
    world: World, held: Held
) -> None:
    def plugin(credentials):
        held.take_here(credentials)
        heard = yield "start"
        try:
            heard = yield f"heard {heard}"
        except ValueError as error:
            heard = f"error {error}"
        with held.handle.reveal() as secret:
            return f"{heard} {secret.expose_str()}"

    stream = await world.call(plugin)
    assert stream.send(None) == "start"
    assert stream.send("one") == "heard one"
    with pytest.raises(StopIteration) as end:
        stream.throw(ValueError("two"))
    assert end.value.value == "error two [redacted:key]"
    held.check_ended()
    assert [event.outcome for event in world.events("invocation")] == ["ok"]


async def test_thrown_before_the_first_step(world: World, held: Held) -> None:
    for kind in ("async_generator", "generator"):
        stream = await world.call(streams(held, fails=False)[kind])
        with pytest.raises(ValueError, match="early"):
            await throw(stream, ValueError("early"))
        assert world.middleware.broker.open_leases == 0


async def test_a_stream_whose_end_raises(world: World, held: Held) -> None:
    async def plugin(credentials):
        try:
            await held.take(credentials)
            yield 1
        finally:
            raise ValueError("at the end " + KEY)

    stream = await world.call(plugin)
    await anext(stream)
    with pytest.raises(ValueError, match=r"at the end \[redacted:key\]"):
        await stream.aclose()
    held.check_ended()


async def test_a_stream_that_is_closed_at_what_was_kept_back(world: World, held: Held) -> None:
    """What might have begun a secret comes after the plugin's own end."""

    async def plugin(credentials):
        await held.take(credentials)
        yield KEY[:4]

    stream = await world.call(plugin)
    assert await anext(stream) == KEY[:4]
    held.check_ended()
    await stream.aclose()
    assert [event.outcome for event in world.events("invocation")] == ["ok"]


async def test_each_step_is_in_the_streams_invocation(world: World) -> None:
    from apex_creds.leases import current_credentials, current_invocation

    async def plugin(name):
        for _ in range(3):
            yield sorted(current_credentials()) == [name]

    one = await world.call(plugin, "key")
    other = await world.call(plugin, "token", needs=("token",))
    for _ in range(3):
        assert await anext(one)
        assert current_invocation() is None
        assert await asyncio.create_task(anext(other))
    await one.aclose()
    await other.aclose()


async def test_streams_of_a_synchronous_runtime(world: World, held: Held) -> None:
    manifest = manifest_for("key")
    for kind, fails in [(kind, fails) for kind in KINDS for fails in (False, True)]:

        def call(kind=kind, fails=fails):
            return world.middleware.invoke_sync(manifest, "a", streams(held, fails=fails)[kind])

        result = await anyio.to_thread.run_sync(call)
        if inspect.iscoroutine(result):
            result = await result
        if fails:
            with pytest.raises(ValueError, match="oops"):
                await consume(result)
        else:
            assert await consume(result) == [1, 2, 3]
        held.check_ended()
    assert world.middleware.broker.open_leases == 0


async def test_a_coroutine_that_is_never_awaited(world: World) -> None:
    async def plugin(credentials):
        pytest.fail("it must not run")

    result = world.middleware.invoke_sync(manifest_for("key"), "a", plugin)
    assert world.middleware.broker.open_leases == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own: it was never awaited
        del result
        gc.collect()
    assert world.middleware.broker.open_leases == 0


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_stream_that_does_not_close(
    world: World, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """It is waited for as long as the constant says, then its leases end."""
    monkeypatch.setattr("apex_creds.middleware.streams.CLOSE_WITHIN", 0.01)
    ended: list[str] = []

    async def plugin(credentials):
        try:
            yield 1
        finally:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise

    stream = await world.call(plugin)
    assert await anext(stream) == 1
    with anyio.fail_after(WITHIN), anyio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        await stream.aclose()
    assert ended == ["cancelled"]
    assert world.middleware.broker.open_leases == 0
    assert [event.outcome for event in world.events("invocation")] == ["closed"]
    await asyncio.sleep(0)  # the task itself was not cancelled


async def test_leases_end_in_time_if_a_stream_refuses_to_close(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_creds.middleware.streams.CLOSE_WITHIN", 0.01)
    seen: list[bool] = []

    async def plugin(credentials):
        try:
            yield 1
        finally:
            with anyio.CancelScope(shield=True):
                while credentials["key"].active:
                    await asyncio.sleep(0.001)
                seen.append(True)

    stream = await world.call(plugin)
    await anext(stream)
    with anyio.fail_after(WITHIN):
        await stream.aclose()
    assert seen == [True]


UNSTARTED = {
    "closed": lambda made: made.close(),
    "ValueError": lambda made: made.throw(ValueError("never mind")),
    "CancelledError": lambda made: made.throw(asyncio.CancelledError),
    "KeyboardInterrupt": lambda made: made.throw(KeyboardInterrupt()),
}


@pytest.mark.parametrize("outcome", UNSTARTED)
async def test_a_coroutine_that_ends_before_its_first_step(world: World, outcome: str) -> None:
    """Whoever still has it, has nothing of use; nor has the frame that was never started."""
    kept = []

    async def plugin(credentials):
        pytest.fail("it must not run")

    def action(credentials):
        kept.append(credentials["key"])
        made = plugin(credentials)
        kept.append(made)
        return made

    with world.nothing_left():
        result = world.middleware.invoke_sync(manifest_for("key"), "a", action)
        with contextlib.suppress(ValueError, asyncio.CancelledError, KeyboardInterrupt):
            UNSTARTED[outcome](result)
        assert world.middleware.broker.open_leases == 0
        assert not kept[0].active
        assert inspect.getcoroutinestate(kept[1]) == inspect.CORO_CLOSED
        with pytest.raises(RuntimeError, match="cannot reuse"):
            await result
        result.close()
    assert [event.outcome for event in world.events("invocation")] == [outcome]


async def test_a_task_that_is_cancelled_before_its_first_step(world: World) -> None:
    async def plugin(credentials):
        pytest.fail("it must not run")

    made = world.middleware.invoke_sync(manifest_for("key"), "a", plugin)
    task = asyncio.ensure_future(made)
    assert "_await" in repr(task)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert world.middleware.broker.open_leases == 0


async def test_what_a_synchronous_runtime_gets_of_a_coroutine_is_one(
    world: World, held: Held
) -> None:
    made = world.middleware.invoke_sync(manifest_for("key"), "a", held.take)
    assert inspect.iscoroutine(made)
    assert asyncio.iscoroutine(made)
    assert inspect.isawaitable(made)
    assert inspect.getcoroutinestate(made) == inspect.CORO_CREATED
    assert await asyncio.gather(made) == [None]
    held.check_ended()
    assert inspect.getcoroutinestate(made) == inspect.CORO_CLOSED
    with pytest.raises(AttributeError):
        _ = made.gi_frame
