"""A real worker, in a process whose clocks are set and whose machine sleeps while it runs."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from apex_creds.model import ApiKey
from apex_creds.scheduler.rotation_state import CompromiseSuspected
from apex_creds.scheduler.worker import RotationWorker
from tests.support.shifted import Shifted
from tests.support.vaults import create, home_in, master_in, unseal

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="no boot-time clock"),
]
YEAR = 365 * 86_400


class Running:
    """The worker of a vault in ``where``."""

    def __init__(self, where: Path, clocks: Shifted, process: subprocess.Popen[str]) -> None:
        self.where, self.clocks, self.process = where, clocks, process
        self.health = where / "health.json"

    def read(self) -> dict[str, object]:
        try:
            return json.loads(self.health.read_text())
        except FileNotFoundError:
            return {"beat": -1.0, "last": {}}

    async def goes_on(self) -> dict[str, object]:
        """Returns when the health file was written again, twice."""
        for _ in range(2):
            before = self.read()["beat"]
            while (found := self.read())["beat"] == before:
                assert self.process.poll() is None
                await anyio.sleep(0.02)
        return found

    async def acts(self) -> None:
        """Returns when the worker has acted on an event of now."""
        async with await unseal(self.where) as vault:
            newest = (await vault.store.keystore()).by_label["api_keys/one"].versions[-1]
            worker = RotationWorker(vault)
            await worker.bus.accept(CompromiseSuspected(service="one", version=newest.version))
            while True:
                keyset = (await vault.store.keystore()).by_label["api_keys/one"]
                if not keyset.get(newest.version).material:
                    return
                await anyio.sleep(0.02)

    async def stops(self) -> None:
        """Returns when the worker has ended by itself after a SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(self.process.wait) == 0


@contextlib.asynccontextmanager
async def running(where: Path, *, every: str, began: int = 0) -> AsyncIterator[Running]:
    clocks = Shifted(where)
    async with await create(where) as vault:
        await vault.put("a", ApiKey("value a"), service="one")
    clocks.set(began)
    options = ["--home", str(home_in(where)), "--master", master_in(where)]
    worker = ["worker", "--every", every, "--health", str(where / "health.json")]
    process = subprocess.Popen(
        [*clocks.command, *options, *worker],
        env=clocks.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with contextlib.closing(process.stdout):
        try:
            yield Running(where, clocks, process)
        finally:
            process.kill()
            process.wait()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("wall", [-7200, YEAR, 170 * YEAR, -20 * YEAR])
async def test_a_worker_goes_on_when_its_wall_clock_is_set(tmp_path: Path, wall: int) -> None:
    async with running(tmp_path, every="0.2") as worker:
        await worker.goes_on()
        worker.clocks.set(wall)
        report = await worker.goes_on()
        assert report["ok"], report
        await worker.acts()
        await worker.stops()


@pytest.mark.timeout(300)
async def test_a_board_that_boots_in_1970(tmp_path: Path) -> None:
    async with running(tmp_path, every="0.2", began=-55 * YEAR) as worker:
        await worker.goes_on()
        worker.clocks.set()
        await worker.goes_on()
        await worker.acts()
        await worker.stops()


@pytest.mark.timeout(300)
async def test_after_a_sleep_what_is_due_is_done_within_seconds(tmp_path: Path) -> None:
    """Its next turn was an hour away, and the loop's own timers have slept."""
    async with running(tmp_path, every="3600") as worker:
        while "rotate master" not in worker.read()["last"]:
            await anyio.sleep(0.02)
        before = worker.read()["last"]["rotate master"]
        worker.clocks.set(slept=7200)
        while worker.read()["last"]["rotate master"] - before < 7000:
            assert worker.process.poll() is None
            await anyio.sleep(0.02)
        await worker.stops()
