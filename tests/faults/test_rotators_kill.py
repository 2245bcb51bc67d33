"""Killed at any write boundary of a rotation at the provider: the credential works.

Another process goes on from what is stored, and afterwards the old password is never valid.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.model import RotationStage
from apex_creds.rotators import Rotations
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.faults.anchored import copies
from tests.support.killer import Scenario
from tests.support.rotators import FIRST, Roles, parts_of, put_role, roles
from tests.support.vaults import home_in, master_in

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow, pytest.mark.e2e]
FILE = Path(__file__).parent / "scenarios" / "rotators.py"
UNHURRIED = AuditConfig(durable_ms=60_000, checkpoint_seconds=60)


@pytest.fixture(scope="module")
def server() -> Iterator[Roles]:
    with roles() as running:
        yield running


@pytest.mark.parametrize("two", [True, False])
async def test_postgres_roles(tmp_path: Path, server: Roles, two: bool) -> None:
    async with await Vault.create(home_in(tmp_path), master=master_in(tmp_path)) as vault:
        await write_config(vault.store.storage, Config(audit=UNHURRIED))
        await put_role(vault, server, server.two if two else server.one)
    homes = copies(home_in(tmp_path), tmp_path)
    stages = set()
    with Scenario(FILE, "rotate") as scenario:
        for point in await asyncio.to_thread(scenario.points, next(homes)):
            server.reset()
            home = next(homes)
            run = await asyncio.to_thread(scenario.run, home, at=point)
            async with await Vault.unseal(home) as vault:
                stages.add(await found(vault, server, two=two))
                await after(vault, server, asked="asked" in run.acknowledged)
            shutil.rmtree(home)
    assert stages == {
        RotationStage.IDLE,
        RotationStage.CREATE,
        RotationStage.SET,
        RotationStage.TEST,
        RotationStage.FINISH,
    }


async def found(vault: Vault, server: Roles, *, two: bool) -> RotationStage:
    """What plugins get at once, before anybody goes on; the stage that is on record."""
    info, parts = await vault.get("db"), await parts_of(vault, "db")
    assert info.rotation is not None
    works = server.lets_in(parts["user"], parts["password"])
    # With one role there is a gap: between the server's change and the commit of it.
    gap = not two and info.rotation.stage is RotationStage.SET
    assert works or (gap and server.lets_in(parts["user"], parts["pending_password"]))
    return info.rotation.stage


async def after(vault: Vault, server: Roles, *, asked: bool) -> None:
    rotations = Rotations(vault)
    assert await rotations.run_due() == 0
    info, parts = await vault.get("db"), await parts_of(vault, "db")
    assert info.rotation is not None
    assert info.rotation.stage is RotationStage.IDLE
    assert set(parts) == {"user", "password"}
    assert server.lets_in(parts["user"], parts["password"])
    if asked:
        assert parts["password"] != FIRST
    if parts["password"] != FIRST:
        assert not server.lets_in("app_a", FIRST)
    version = info.version
    assert await rotations.run_due() == 0  # and nothing is done twice
    assert (await vault.get("db")).version == version
