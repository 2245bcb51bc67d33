"""What the operator is told: each version's life, and what no worker can do."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from apex_creds.errors import UnknownKeyError
from apex_creds.keys.passphrase import PassphraseProvider
from apex_creds.model import ApiKey
from apex_creds.scheduler.rotation_state import request_key
from apex_creds.scheduler.schedule import DAY, Level
from apex_creds.scheduler.status import rotation_status
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.vault import Vault
from tests.support.clocks import FakeClock
from tests.support.vaults import create, unseal, values

pytestmark = pytest.mark.anyio


async def requested(worker: RotationWorker, *levels: Level) -> None:
    wanted = dict.fromkeys(map(request_key, levels), worker.engine.store.clock.time())
    await worker.engine.document.change(lambda s: replace(s, requested=wanted))


async def masters(worker: RotationWorker) -> list[tuple[int, str, float, float]]:
    found = await rotation_status(worker.engine, destroyed=True)
    lines = [line for line in found.lines if line.level is Level.MASTER]
    return [(line.version, line.state, line.created, line.changed) for line in lines]


async def test_the_life_of_a_master_key_is_kept_after_its_end(tmp_path: Path) -> None:
    clock = FakeClock()
    async with await create(tmp_path, clock=clock) as vault:
        worker, began = RotationWorker(vault), clock.now
        clock.now += DAY
        await requested(worker, Level.MASTER)
        await worker.run_once()
        assert await masters(worker) == [
            (1, "retired", began, began + DAY),
            (2, "primary", began + DAY, began + DAY),
        ]
        clock.now += 9 * DAY
        await worker.run_once()
        assert await masters(worker) == [
            (1, "destroyed", began, began + 10 * DAY),
            (2, "primary", began + DAY, began + DAY),
        ]
        shown = (await rotation_status(worker.engine)).lines
        assert [line.version for line in shown if line.level is Level.MASTER] == [2]


async def test_what_an_earlier_program_deleted_is_shown_from_when_it_was_left(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    async with await create(tmp_path, clock=clock) as vault:
        worker, began = RotationWorker(vault), clock.now
        clock.now += DAY
        await requested(worker, Level.MASTER)
        await worker.run_once()
        await worker.engine.document.change(lambda s: replace(s, discarded=1))
        assert (await masters(worker))[0] == (1, "destroyed", began, began + DAY)


async def test_a_passphrase_is_left_to_a_person(fresh_home: Path, tmp_path: Path) -> None:
    provider = PassphraseProvider(prompt=lambda _: "four words are few")
    clock = FakeClock()
    async with await Vault.create(tmp_path / "home", master=provider, clock=clock) as vault:
        await vault.put("a", ApiKey("value a"), service="one")
        clock.now += DAY
        worker = RotationWorker(vault)
        await requested(worker, Level.MASTER, Level.KEK, Level.DEK)
        outcome = await worker.engine.run(attended=False)
        assert {step.level for step in outcome.by_hand} == {Level.MASTER, Level.KEK}
        assert not outcome.failed
        keystore = await vault.store.keystore()
        assert keystore.by_label["api_keys/one"].primary.version == 2
        assert keystore.root_header.keks.primary.version == 1
        found = await rotation_status(worker.engine)
        assert found.by_hand == {Level.MASTER, Level.KEK}
        await worker._rotate(None)
        assert worker.health()["problems"] == {
            f"rotate {name}": f"a passphrase must be typed for it: apex-creds rotate {name}"
            for name in ("kek", "master")
        }


async def test_a_key_file_needs_nobody(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        assert (await rotation_status(RotationWorker(vault).engine)).by_hand == frozenset()


async def test_another_process_drops_destroyed_keys_when_it_notices(tmp_path: Path) -> None:
    async with await create(tmp_path) as vault:
        await vault.put("a", ApiKey("value a"), service="one")
        async with await unseal(tmp_path) as other:
            assert await values(other) == {"a": b"value a"}
            before = await other.store.keystore()
            key_id = before.by_label["api_keys/one"].id
            key = before.dek(bytes.fromhex(key_id), 1)
            await vault.put("b", ApiKey("value b"), service="one")
            await vault.delete("b")  # which renews the key, and destroys the old one
            after = await other.store.keystore()
            assert key.closed
            with pytest.raises(UnknownKeyError):
                after.dek(bytes.fromhex(key_id), 1)
            assert await values(other) == {"a": b"value a"}
