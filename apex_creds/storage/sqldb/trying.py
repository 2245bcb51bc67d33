"""Trying again what failed, where that can do no harm.

Guarantee: nothing is tried for longer than the time that was given; each try runs to its
end, also where the caller is cancelled; what is raised in the end is a ``StorageError``.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential
from tenacity.wait import wait_random

from apex_creds.storage.sqldb.dberrors import FailedError
from apex_creds.storage.whole import to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

_WAIT: Final = wait_exponential(multiplier=0.02, max=0.5) + wait_random(0, 0.1)

T = TypeVar("T")


class Outcome:
    """Whether it is known what became of a write that is tried again and again."""

    def __init__(self) -> None:
        self.unknown = False

    async def of(self, work: Callable[[], Coroutine[object, object, bool]]) -> bool:
        """Does ``work``, and notes where it may have happened all the same."""
        try:
            return await work()
        except FailedError as failure:
            self.unknown = self.unknown or failure.lost
            raise


async def tried(work: Callable[[], Coroutine[object, object, T]], *, patience: float) -> T:
    """What ``work`` returns; it is repeated while that is safe and may help.

    Args:
        work: Raises ``FailedError``.
        patience: Seconds; 0 tries once.
    """
    try:
        return await to_the_end(work())
    except FailedError as failure:
        if not failure.again or not patience:
            raise failure.error from failure
    try:
        async for turn in AsyncRetrying(
            retry=retry_if_exception(_may_help),
            stop=stop_after_delay(patience),
            wait=_WAIT,
            reraise=True,
        ):
            with turn:
                return await to_the_end(work())
    except FailedError as failure:
        raise failure.error from failure
    raise AssertionError("it ends by returning or raising")


def _may_help(error: BaseException) -> bool:
    return isinstance(error, FailedError) and error.again


@contextlib.asynccontextmanager
async def entered(work: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Turns ``FailedError`` from entering into what it means."""
    async with contextlib.AsyncExitStack() as stack:
        try:
            value = await stack.enter_async_context(work)
        except FailedError as failure:
            raise failure.error from failure
        yield value
