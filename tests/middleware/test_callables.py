"""Whatever a runtime can call gets its handles, and gives back what it gave."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading

import anyio
import pytest

from apex_creds.errors import AccessDeniedError, InvalidInputError
from apex_creds.leases import CredentialMap, current_credentials, current_invocation
from apex_creds.middleware import CredentialMiddleware
from tests.support.worlds import KEY, World, manifest_for

pytestmark = pytest.mark.anyio
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")


async def coroutine(x, credentials):
    async with credentials["key"].reveal() as secret:
        return (x, len(secret))


def plain(x, credentials):
    assert variable.get() == "set by the caller"
    assert threading.current_thread() is not threading.main_thread()
    with credentials["key"].reveal() as secret:
        return (x, len(secret))


def returns_a_coroutine(x, credentials):
    return coroutine(x, credentials)


async def by_context(x):
    return await coroutine(x, current_credentials())


def plain_by_context(x):
    return plain(x, current_credentials())


async def keyword_only(x, *, credentials):
    return await coroutine(x, credentials)


async def defaulted(x, credentials=None):
    return await coroutine(x, credentials)


async def takes_anything(x, **kwargs):
    assert kwargs == {}, "``**kwargs`` is not asked for"
    return await coroutine(x, current_credentials())


async def positional_only(x, credentials=7, /):
    assert credentials == 7
    return await coroutine(x, current_credentials())


@functools.wraps(coroutine)
async def wrapped(*args, **kwargs):
    return await coroutine(*args, **kwargs)


class Callable:
    __name__ = 7

    async def __call__(self, x, credentials):
        return await coroutine(x, credentials)

    async def method(self, x, credentials):
        return await coroutine(x, credentials)

    @classmethod
    async def of_class(cls, x, credentials):
        return await coroutine(x, credentials)

    @staticmethod
    def static(x, credentials):
        return plain(x, credentials)


class PlainCallable:
    __slots__ = ()

    def __call__(self, x, credentials):
        return plain(x, credentials)


class Made(tuple):
    def __new__(cls, x, credentials):
        return tuple.__new__(cls, plain(x, credentials))


CALLABLES = [
    coroutine, plain, returns_a_coroutine, by_context, plain_by_context, keyword_only,
    defaulted, takes_anything, positional_only, wrapped, Callable(), Callable().method,
    Callable.of_class,
    Callable.static, PlainCallable(), functools.partial(coroutine), functools.partial(plain),
    functools.partial(functools.partial(Callable())), functools.partial(Callable().method),
    lambda x, credentials: plain(x, credentials), Made,
]  # fmt: skip


def named(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)


@pytest.mark.parametrize("function", CALLABLES, ids=named)
async def test_each_kind_of_callable(world: World, function) -> None:
    variable.set("set by the caller")
    with world.nothing_left():
        for _ in range(2):
            assert tuple(await world.call(function, 3)) == (3, len(KEY))
    assert current_invocation() is None
    assert [event.outcome for event in world.events("invocation")] == ["ok", "ok"]


@pytest.mark.parametrize("function", CALLABLES, ids=named)
async def test_each_kind_of_callable_called_synchronously(world: World, function) -> None:
    """From a thread, as the older builds of a runtime do."""
    variable.set("set by the caller")
    manifest = manifest_for("key")

    def call():
        return world.middleware.invoke_sync(manifest, "action", function, (3,))

    with world.nothing_left():
        result = await anyio.to_thread.run_sync(call)
        if inspect.iscoroutine(result):
            result = await result
        assert tuple(result) == (3, len(KEY))
    assert [event.outcome for event in world.events("invocation")] == ["ok"]


async def test_synchronously_in_the_event_loop(world: World) -> None:
    """Even where the store has to be read first."""
    await anyio.to_thread.run_sync(world.elsewhere, "await vault.put('other', ApiKey('x' * 9))")
    result = world.middleware.invoke_sync(
        manifest_for("key"), "a", lambda: len(current_credentials())
    )
    assert result == 1


async def test_wrap_looks_like_what_it_wraps(world: World) -> None:
    guarded = world.middleware.wrap(manifest_for("key"), coroutine)
    assert asyncio.iscoroutinefunction(guarded)
    assert guarded.__name__ == "coroutine"
    assert await guarded(5) == (5, len(KEY))


async def test_a_plugin_that_declares_nothing_is_untouched(world: World) -> None:
    result = object()

    async def plugin(**kwargs):
        assert current_invocation() is None
        return (result, kwargs)

    assert await world.call(plugin, needs=(), a=1) == (result, {"a": 1})
    assert world.middleware.invoke_sync(manifest_for(), "a", lambda: result) is result
    assert world.events("invocation") == []


async def test_one_that_declares_nothing_but_takes_credentials_gets_none(world: World) -> None:
    async def plugin(credentials):
        assert isinstance(credentials, CredentialMap)
        return len(credentials)

    assert await world.call(plugin, needs=()) == 0


async def test_optional_credentials(world: World) -> None:
    async def plugin(credentials):
        return sorted(credentials)

    needs = ("key", {"name": "ungranted", "required": False})
    assert await world.call(plugin, needs=needs) == ["key"]


async def test_a_required_one_that_is_refused_leaves_nothing(world: World) -> None:
    called = []
    with world.nothing_left(), pytest.raises(AccessDeniedError):
        await world.call(lambda: called.append(1), needs=("key", "ungranted"))
    assert not called
    assert [event.outcome for event in world.events("invocation")] == ["AccessDeniedError"]


async def test_nested_invocations_have_their_own(world: World) -> None:
    async def inner(credentials):
        assert list(current_credentials()) == ["token"]
        assert current_invocation().parent is not None
        with pytest.raises(AccessDeniedError):
            credentials["key"]
        return len(credentials)

    async def outer(credentials):
        mine = current_invocation()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(
                    functools.partial(world.call, inner, needs=("token",), plugin="inner")
                )
        assert current_invocation() is mine
        assert current_credentials() is credentials
        assert credentials["key"].active
        return world.middleware.broker.open_leases

    assert await world.call(outer) == 1
    ends = world.events("invocation")
    assert [event.plugin for event in ends] == ["inner"] * 3 + ["demo"]
    assert {event.parent for event in ends[:3]} == {ends[3].invocation}


async def test_tasks_and_threads_of_a_plugin_are_in_its_invocation(world: World) -> None:
    async def plugin(credentials):
        async def task():
            return await coroutine(1, current_credentials())

        in_task = await asyncio.create_task(task())
        variable.set("set by the caller")
        in_thread = await asyncio.to_thread(plain_by_context, 2)
        return [in_task[0], in_thread[0]]

    assert await world.call(plugin) == [1, 2]


async def test_a_middleware_can_be_closed_twice(world: World) -> None:
    middleware = CredentialMiddleware(world.vault)
    await middleware.close()
    await middleware.close()
    for ttl in (0, -1, float("nan")):
        with pytest.raises(InvalidInputError):
            CredentialMiddleware(world.vault, ttl=ttl)


async def test_closing_it_ends_what_is_open(world: World) -> None:
    async def plugin(credentials):
        reveal = credentials["key"].reveal()
        secret = await reveal.__aenter__()
        await world.middleware.close()
        assert secret.closed
        assert not credentials["key"].active

    await world.call(plugin)


@pytest.mark.slow
async def test_ten_thousand_at_once_leave_nothing(world: World) -> None:
    """No lease, no slot, no task, no thread."""
    gate = asyncio.Event()
    inside = 0

    async def plugin(x, credentials):
        nonlocal inside
        inside += 1
        if inside == 10_000:
            gate.set()
        await gate.wait()
        async with credentials["key"].reveal() as secret:
            await asyncio.sleep(0)
            return (x, len(secret))

    async def generator(x, credentials):
        yield (await plugin(x, credentials))[0]

    def sync(x, credentials):
        with credentials["key"].reveal() as secret:
            return (x, len(secret))

    async def once(x, results):
        kind = (plugin, generator, plugin)[x % 3]
        result = await world.call(kind, x)
        if kind is generator:
            (first,) = [each async for each in result]
            result = (first, len(KEY))
        results.append(result)

    results: list[object] = []
    tasks_before, threads_before = len(asyncio.all_tasks()), threading.active_count()
    with world.nothing_left():
        async with anyio.create_task_group() as tasks:
            for x in range(10_000):
                tasks.start_soon(once, x, results)
        async with anyio.create_task_group() as tasks:
            for x in range(10_000, 10_200):
                tasks.start_soon(lambda x=x: collect(world, sync, x, results))
    assert sorted(results) == [(x, len(KEY)) for x in range(10_200)]
    assert len(asyncio.all_tasks()) == tasks_before
    assert threading.active_count() <= threads_before + 45  # anyio keeps idle workers
    assert len(world.events("redeem")) == 10_200
    assert len(world.events("invocation")) == 10_200


async def collect(world: World, function, x: int, results: list[object]) -> None:
    results.append(await world.call(function, x))
