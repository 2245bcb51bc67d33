"""A cancelled caller leaves nothing half done, however it was cancelled."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import anyio
import pytest

from apex_creds.concurrency import run_at_once, run_to_completion
from apex_creds.storage import FileStorage

pytestmark = pytest.mark.anyio


async def test_a_cancellation_is_delivered_when_the_work_is_done() -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("half")
        await asyncio.sleep(0)
        done.append("whole")

    task = asyncio.create_task(run_to_completion(work()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["half", "whole"]
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_to_completion(work())
    assert scope.cancelled_caught


async def test_an_error_is_the_callers_and_nobodys_after_a_cancellation() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await run_to_completion(work())
    task = asyncio.create_task(run_to_completion(work()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gc.collect()  # a warning would be an error


async def test_a_cancelled_read_closes_its_file(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "home")
    await storage.prepare()
    await storage.write("api_keys", b"data", expected=None)
    for steps in range(12):
        task = asyncio.create_task(storage.read("api_keys"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    gc.collect()
    await storage.close()


async def test_a_coroutine_that_waits_for_nothing_ends_where_it_was_called() -> None:
    async def work(failure: BaseException | None = None) -> object:
        if failure is not None:
            raise failure
        return asyncio.current_task()

    assert run_at_once(work()) is asyncio.current_task()
    for failure in (ValueError("mine"), asyncio.CancelledError(), KeyboardInterrupt()):
        with pytest.raises(type(failure)) as caught:
            run_at_once(work(failure))
        assert caught.value is failure


async def test_one_that_waits_is_closed_and_said() -> None:
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
            done.append("went on")
        finally:
            done.append("closed")

    with pytest.raises(RuntimeError, match="waits for something"):
        run_at_once(work())
    assert done == ["closed"]
