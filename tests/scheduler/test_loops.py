"""A worker and the loops around it: events from others, and an end in another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.model import ApiKey
from apex_creds.scheduler.rotation_state import OperatorRequest
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.worker import Rhythm, RotationWorker
from apex_creds.vault import Vault
from tests.support.loops import WITHIN, Running, running
from tests.support.vaults import create

pytestmark = pytest.mark.filterwarnings(
    # A loop that is closed as it is leaves its tasks behind: that is what is tried here.
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore:coroutine:RuntimeWarning",
)
SELDOM = Rhythm(check=3600, events=3600)


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    async def made() -> Vault:
        vault = await create(tmp_path)
        await vault.put("a", ApiKey("value a"), service="one")
        return vault

    vault = asyncio.run(made())
    yield vault
    asyncio.run(vault.close())


async def states(vault: Vault) -> list[str]:
    keyset = (await vault.store.keystore()).by_label["api_keys/one"]
    return [version.state.value for version in keyset.versions]


async def rested(worker: RotationWorker) -> None:
    """Every job had its first turn."""
    while worker._periodic.keys() - {"health"} - worker.health()["last"].keys():
        await asyncio.sleep(0.001)


def test_an_event_from_another_loop_is_acted_on_at_once(vault: Vault) -> None:
    async def rotated() -> None:
        while "primary" not in (await states(vault))[1:]:
            await asyncio.sleep(0.001)

    with running(asyncio.new_event_loop, asyncio.new_event_loop) as (one, two):
        worker = RotationWorker(vault, rhythm=SELDOM)
        one.do(worker.__aenter__())
        one.do(rested(worker))
        assert two.do(worker.emit(OperatorRequest(level=Level.DEK, service="one")))
        two.do(rotated())
        two.do(worker.__aexit__(None, None, None))  # in another loop than it was begun in
        assert not [t for t in asyncio.all_tasks(one.loop) if "apex-creds" in t.get_name()]


@pytest.mark.parametrize("how", ["stop", "close", "end"])
def test_a_worker_whose_loop_is_gone_says_so_and_is_ended_elsewhere(
    vault: Vault, how: str
) -> None:
    gone, worker = Running(), RotationWorker(vault, rhythm=SELDOM)
    gone.do(worker.__aenter__())
    gone.do(rested(worker))
    assert worker.health()["ok"]
    getattr(gone, how)()
    assert "loop" in worker.health()["problems"]

    async def elsewhere() -> None:
        assert await worker.emit(OperatorRequest(level=Level.DEK, service="one"))
        await worker.__aexit__(None, None, None)
        async with RotationWorker(vault, rhythm=SELDOM) as other:
            await rested(other)
        assert "primary" in (await states(vault))[1:]

    asyncio.run(asyncio.wait_for(elsewhere(), WITHIN))
    gone.end()


def test_two_loops_do_not_rotate_at_once(vault: Vault) -> None:
    worker, inside, most = RotationWorker(vault), [0], [0]
    run, lock = worker.engine.run, threading.Lock()

    async def counted(**options: object) -> object:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        try:
            await asyncio.sleep(0)
            return await run(**options)
        finally:
            with lock:
                inside[0] -= 1

    worker.engine.run = counted
    with running(asyncio.new_event_loop, asyncio.new_event_loop) as loops:
        rotating = [loops[number % 2].begin(worker.run_once()) for number in range(6)]
        for each in rotating:
            each.result(WITHIN)
    assert most == [1]
