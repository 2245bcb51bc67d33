"""Invocations of many plugins whose workers are killed: none is lost, nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from apex_creds.errors import WorkerEndedError
from apex_creds.isolation.runner import IsolatedRunner
from tests.isolation.everyday_plugin import everyday, world
from tests.support.worlds import World, manifest_for

pytestmark = pytest.mark.anyio
__all__ = ["world"]

PLUGINS = 8


async def kills(runner: IsolatedRunner, chance: random.Random, over: asyncio.Event) -> int:
    """Kills a worker now and then; how many."""
    count = 0

    async def one() -> int:
        workers = [each._worker for each in runner._plugins.values() if each._worker]
        alive = [each for each in workers if each._process >= 0]
        if not alive:
            return 0
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(chance.choice(alive)._process, signal.SIGKILL)
        return 1

    while not over.is_set():
        count += await runner.thread.run(one)
        for _ in range(chance.randrange(40)):  # turns of the loop, and no time
            await asyncio.sleep(0)
            if over.is_set():
                break
        await asyncio.sleep(0.02)
    return count


@pytest.mark.parametrize("invocations", [200, pytest.param(1000, marks=pytest.mark.slow)])
async def test_none_is_lost_and_nothing_is_left(world: World, invocations: int) -> None:
    chance = random.Random(invocations)
    runner = world.middleware._runner
    assert isinstance(runner, IsolatedRunner)
    for number in range(PLUGINS):
        await world.vault.grant(f"plugin-{number}", "key", reveal=True)
    descriptors = len(os.listdir("/proc/self/fd"))
    over = asyncio.Event()
    killing = asyncio.ensure_future(kills(runner, chance, over))

    async def invoke(number: int) -> str:
        manifest = manifest_for("key", plugin=f"plugin-{number % PLUGINS}")
        try:
            if number % 10 == 0:
                stream = await world.middleware.invoke(manifest, everyday("stream"), 3)
                found = [each async for each in stream]
                assert found == ["item 0", "item 1", "item 2"]
            elif number % 10 == 1:
                found = await world.middleware.invoke(manifest, everyday("revealed"))
                assert found == "[redacted:key]"
            else:
                assert (
                    await world.middleware.invoke(manifest, everyday("same"), number) == number
                )
        except WorkerEndedError:
            return "killed"
        return "ok"

    try:
        ended = Counter(await asyncio.gather(*map(invoke, range(invocations))))
    finally:
        over.set()
        killed = await killing
    assert sum(ended.values()) == invocations
    assert ended["killed"] <= killed
    assert killed > 0
    assert ended["ok"] > 0
    assert world.middleware.broker.open_leases == 0
    outer = [each._sandbox._walled.process.pid for each in runner._plugins.values()]
    assert not any(each._worker.calls for each in runner._plugins.values())
    await world.middleware.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in outer)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 8, (
        "the loop's own, and no worker's"
    )
