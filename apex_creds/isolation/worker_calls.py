"""A plugin's function, called behind the wall: its value, or a stream that the host steps.

Guarantee: it is called as the middleware calls it in the host; every step runs in the plugin's
event loop and in the call's own context, and a cancellation is passed on and waited for.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, TypeVar, cast

import msgspec

from apex_creds.isolation.channel import Ended, Open, opened
from apex_creds.isolation.frames import (
    ASYNC_STREAM,
    AWAITABLE,
    SYNC_STREAM,
    Failure,
    error_of,
)

T = TypeVar("T")
USED_UP: Final = 75
"""Exit status of a worker that can't begin a call any more."""


async def invoked(
    function: Callable[..., object], args: list[Any], kwargs: Mapping[str, Any], in_turn: bool
) -> object:
    """Calls it as the middleware does in the host: what is synchronous, in a thread."""
    from apex_creds.middleware.callables import is_async_stream, is_stream, shape_of

    if shape_of(function).in_thread:
        result = await in_thread(function, *args, **kwargs)
    else:
        result = function(*args, **kwargs)
    if inspect.isawaitable(result):
        if in_turn:
            return Open(AWAITABLE, functools.partial(_awaited, result), _nothing_to_close)
        result = await result
    if isinstance(result, AsyncIterator) or is_async_stream(result):
        return _async_stream(aiter(cast("Any", result)))
    if isinstance(result, Iterator) or is_stream(result):
        return _sync_stream(iter(result))
    return result


async def in_thread(function: Callable[..., T], *args: object, **kwargs: object) -> T:
    """Calls it in a thread, which can't be stopped: a cancellation comes after its end."""
    work = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
    try:
        future = asyncio.get_running_loop().run_in_executor(None, work)
    except RuntimeError:  # there can be no further thread, because of earlier calls
        os._exit(USED_UP)
    cancelled = False
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return future.result()


async def _nothing_to_close() -> None:
    pass


async def _awaited(result: Awaitable[object], how: str, _: object) -> object:
    if how != "next":
        close = getattr(result, "close", None)
        if close is not None:
            close()
        raise Ended(None)

    async def whole() -> object:
        return await result

    brought = await invoked(whole, [], {}, in_turn=False)
    raise Ended(brought)


def _async_stream(stream: AsyncIterator[object]) -> Open:
    plain = opened(stream, ASYNC_STREAM)

    async def step(how: str, value: object) -> object:
        if how == "throw":
            value = error_of(msgspec.convert(value, Failure))
        if how != "close" and not inspect.isasyncgen(stream):
            if how == "throw":
                raise cast("Exception", value)
            how = "next"
        return await plain.step(how, value)

    return Open(ASYNC_STREAM, step, plain.close)


def _sync_stream(stream: Iterator[object]) -> Open:
    async def step(how: str, value: object) -> object:
        result = await in_thread(_stepped, stream, how, value)
        if isinstance(result, _Returned):
            raise Ended(result.value)
        return result

    async def closed() -> None:
        await in_thread(_stepped, stream, "close", None)

    return Open(SYNC_STREAM, step, closed)


def _stepped(stream: Iterator[object], how: str, value: object) -> object:
    """One step of an iterator, in a thread."""
    steps = cast("Any", stream)
    generator = inspect.isgenerator(stream)
    try:
        if how == "close":
            if hasattr(stream, "close"):
                steps.close()
            return _Returned(None)
        if how == "throw":
            error = error_of(msgspec.convert(value, Failure))
            if generator:
                return steps.throw(error)
            raise error
        return steps.send(value) if generator and how == "send" else next(steps)
    except StopIteration as end:
        return _Returned(end.value)


class _Returned:
    """The end of a generator (a thread can't raise StopIteration)."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


class Running:
    """A call, whose every step is run in the plugin's loop and in its own context."""

    __slots__ = ("_context", "_end", "_loop")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        *,
        end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._context = context
        self._end = end

    async def first(self, work: Callable[[], Awaitable[object]]) -> object:
        """The call itself: its value, or what goes on."""
        goes_on = False
        try:
            result = self._wrapped(await self._there(work))
            goes_on = isinstance(result, Open)
            return result
        finally:
            if not goes_on:
                self._end()

    def _wrapped(self, result: object) -> object:
        """What goes on there, as it is stepped from here."""
        if not isinstance(result, Open):
            return result
        inner = result

        async def step(how: str, value: object) -> object:
            try:
                return await self._there(lambda: inner.step(how, value))
            except Ended as end:
                further = self._wrapped(end.args[0])
                if not isinstance(further, Open):
                    self._end()
                raise Ended(further) from None
            except BaseException:
                self._end()
                raise

        async def close() -> None:
            try:
                await self._there(inner.close)
            finally:
                self._end()

        return Open(inner.kind, step, close)

    async def _there(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does it in the plugin's loop; a cancellation is passed on, and waited for."""
        here = asyncio.get_running_loop()
        done: asyncio.Future[asyncio.Task[T | _Stopped]] = here.create_future()
        tasks: list[asyncio.Task[T | _Stopped]] = []

        async def does() -> T | _Stopped:
            try:
                return await work()
            except (SystemExit, KeyboardInterrupt) as error:  # it would stop the loop
                return _Stopped(error)

        def begin() -> None:
            task = self._loop.create_task(does(), context=self._context)
            tasks.append(task)
            task.add_done_callback(
                lambda task: here.call_soon_threadsafe(done.set_result, task)
            )

        def cancel() -> None:
            tasks[0].cancel()

        self._loop.call_soon_threadsafe(begin)
        while True:
            try:
                task = await asyncio.shield(done)
            except asyncio.CancelledError:
                self._loop.call_soon_threadsafe(cancel)
                continue
            result = task.result()
            if isinstance(result, _Stopped):
                raise result.error
            return result


class _Stopped:
    """What would have ended the process."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error
