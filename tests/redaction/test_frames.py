"""Redaction of an exception never ends what somebody else has suspended."""

from __future__ import annotations

import asyncio
from types import TracebackType

import pytest

from tests.support.worlds import KEY, World

pytestmark = pytest.mark.anyio


async def reporter(error, credentials):
    async with credentials["key"].reveal():
        pass
    raise error


def frame_names(trace: TracebackType | None) -> list[str]:
    names = []
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return names


async def test_the_runtimes_coroutine_goes_on(world: World) -> None:
    """It waits, in a handler, for the plugin that raises its own error again."""

    async def runtime() -> str:
        try:
            int("x")
        except ValueError as error:
            with pytest.raises(ValueError, match="invalid literal"):
                await asyncio.create_task(world.call(reporter, error))
        return "went on"

    async with asyncio.timeout(5):
        assert await runtime() == "went on"


def generator(errors):
    try:
        int("x")
    except ValueError as error:
        errors.append(error)
    yield 1
    yield 2


async def async_generator(errors):
    try:
        int("x")
    except ValueError as error:
        errors.append(error)
    yield 1
    yield 2


async def test_suspended_generators_go_on(world: World) -> None:
    errors: list[ValueError] = []
    plain, lazy = generator(errors), async_generator(errors)
    assert (next(plain), await anext(lazy)) == (1, 1)
    for error in errors:
        with pytest.raises(ValueError, match="invalid literal") as caught:
            await world.call(reporter, error)
        assert frame_names(caught.value.__traceback__)[-1] == "reporter"
    assert (next(plain), await anext(lazy)) == (2, 2)
    await lazy.aclose()


async def test_a_plugins_suspended_generator_does_not_show_its_variables(
    world: World,
) -> None:
    kept = []

    def inner(secret):
        try:
            int("x")
        except ValueError as error:
            yield error

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            kept.append(inner(secret.expose_str()))
        raise next(kept[0])

    with pytest.raises(ValueError, match="invalid literal") as caught:
        await world.call(plugin)
    step = caught.value.__traceback__
    assert step is not None
    while (step := step.tb_next) is not None:  # the first is this test's own
        assert KEY not in repr(step.tb_frame.f_locals)
    kept[0].close()
