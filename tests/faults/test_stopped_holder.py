"""The process that rotates a secret stands still (SIGSTOP), another takes over, it goes on.

As a machine that sleeps, or that is moved: it knows nothing of what the others did meanwhile.
It stops itself before the provider is asked, and after that has answered, in each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from apex_creds.errors import ConflictError, RotatorError
from apex_creds.model import ApiKey, RotationStage
from apex_creds.rotators import Mode, Rotations, configuration, configure
from apex_creds.storage.storage_factory import StoragePlace, open_place
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.support.fake_rotator import ORIGIN, URI, FakeRotator, Provider
from tests.support.postgres import Postgres, postgres
from tests.support.rotators import parts_of

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow, pytest.mark.e2e]
REPOSITORY = Path(__file__).parents[2]
FIRST = "first-value-of-the-key"
UNHURRIED = AuditConfig(durable_ms=60_000, checkpoint_seconds=60)
STOPS = ["create", "after create", "set", "after set", "test", "finish", "after finish"]
MODES = pytest.mark.parametrize("mode", list(Mode))


class OnDisk(FakeRotator):
    """Its provider is a file, which outlives a process."""

    def __init__(self, file: Path, mode: Mode, *, stop: str = "") -> None:
        super().__init__(Provider(around=self._around), mode)
        self._file, self._stop = file, stop

    async def create(self, task):
        made = await super().create(task)
        await self._around("after create")
        return made

    async def _around(self, step):
        if not step.startswith("after"):
            self._stopped(step)
            kept = json.loads(self._file.read_bytes())
            self._provider.valid = {value.encode() for value in kept["valid"]}
            self._provider.ended.clear()  # a real one takes a value again that it had ended
            self._provider.steps = [*kept["steps"], step]
        valid = [value.decode() for value in self._provider.valid]
        self._file.write_text(json.dumps({"valid": valid, "steps": self._provider.steps}))
        if step.startswith("after"):
            self._stopped(step)

    def _stopped(self, step):
        if step == self._stop:
            self._stop = ""
            os.kill(os.getpid(), signal.SIGSTOP)


async def rotate(home: str, file: str, mode: str, stop: str) -> None:
    """The process that stops."""
    async with await Vault.unseal(home) as vault:
        rotator = OnDisk(Path(file), Mode(mode), stop=stop)
        rotations = Rotations(vault, find=lambda uri: rotator)
        await asyncio.to_thread(vault.audit.sync)  # it holds no lock of the log when it stops
        with contextlib.suppress(ConflictError, RotatorError):
            await rotations.advance("key")


class Place:
    """A vault with a credential, and its provider."""

    def __init__(self, where: Path, mode: Mode) -> None:
        self.home, self.file, self.mode = str(where / "home"), where / "provider", mode

    def rotations(self, vault: Vault) -> Rotations:
        return Rotations(vault, find=lambda uri: OnDisk(self.file, self.mode))

    def provider(self) -> dict[str, list[str]]:
        return json.loads(self.file.read_bytes())

    @contextlib.asynccontextmanager
    async def stopped(self, stop: str) -> AsyncIterator[None]:
        """Inside, a process stands still in that step; after it, it has gone on and ended."""
        code = "import asyncio, sys; from tests.faults import test_stopped_holder as t;"
        code += " asyncio.run(t.rotate(*sys.argv[1:]))"
        command = [sys.executable, "-B", "-c", code, self.home, str(self.file)]
        process = subprocess.Popen([*command, self.mode.value, stop], cwd=REPOSITORY)
        try:
            _, status = await asyncio.to_thread(os.waitpid, process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            yield
            process.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(process.wait, 300) == 0
        finally:
            process.kill()
            process.wait()

    async def check(self, vault: Vault) -> None:
        """The one value that is stored is the one that is valid."""
        await vault.refresh()
        assert await self.rotations(vault).run_due() == 0
        info = await vault.get("key")
        assert info.rotation is not None
        assert info.rotation.stage is RotationStage.IDLE
        assert info.rotation.asked < info.rotation.since
        stored = await parts_of(vault, "key")
        assert self.provider()["valid"] == [*stored.values()]


@contextlib.asynccontextmanager
async def made(where: Path, mode: Mode, **options: object) -> AsyncIterator[Place]:
    place = Place(where, mode)
    place.file.write_text(json.dumps({"valid": [FIRST], "steps": []}))
    master = f"file:{where}/master.key"
    with pytest.MonkeyPatch.context() as patch:
        find = OnDisk(place.file, mode)
        patch.setattr(configuration, "rotator_from_uri", lambda uri: find)
        async with await Vault.create(place.home, master=master, **options) as vault:
            await write_config(vault.store.storage, Config(audit=UNHURRIED))
            await vault.put("key", ApiKey(FIRST), origins=[ORIGIN])
            await configure(vault, "key", uri=URI, grace=0.0)
            await place.rotations(vault).ask("key")
    yield place


@MODES
@pytest.mark.parametrize("stop", ["create", "set", "after set"])
async def test_its_lock_holds_while_it_stands_still(tmp_path, mode, stop):
    async with made(tmp_path, mode) as place:
        async with place.stopped(stop), await Vault.unseal(place.home) as vault:
            before = place.provider()
            with pytest.raises(ConflictError, match="Another process"):
                await place.rotations(vault).advance("key", wait=False)
            assert place.provider() == before
        async with await Vault.unseal(place.home) as vault:
            await place.check(vault)
        assert place.provider()["steps"].count("create") == 1


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@MODES
@pytest.mark.parametrize("rotations", [1, 3])
@pytest.mark.parametrize("stop", STOPS)
async def test_what_it_does_late_undoes_nothing(tmp_path, server, mode, stop, rotations):
    storage = open_place(StoragePlace(server.url(space=os.urandom(8).hex())))
    async with made(tmp_path, mode, storage=storage) as place:
        async with place.stopped(stop):
            server.sql(  # as when its machine sleeps: the lock is lost with the connection
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = 'apex-creds'"
            )
            async with await Vault.unseal(place.home) as vault:
                await place.rotations(vault).advance("key")
                for _ in range(rotations - 1):
                    await place.rotations(vault).ask("key", by_hand=True)
                    await place.rotations(vault).advance("key")
                await place.check(vault)
                creates = place.provider()["steps"].count("create")
        async with await Vault.unseal(place.home) as vault:
            await place.check(vault)
        assert place.provider()["steps"].count("create") <= creates + (stop == "create")
