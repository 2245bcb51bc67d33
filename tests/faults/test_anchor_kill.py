"""Killed at any write boundary: the newest state is never taken for a rollback, and what was
acknowledged as taken away does not come back with an older copy."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds.errors import RollbackDetectedError
from apex_creds.model import ApiKey
from apex_creds.vault import Vault
from tests.faults.anchored import copies
from tests.support.killer import Scenario

FILE = Path(__file__).parent / "scenarios" / "anchored.py"

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
async def homes(tmp_path: Path) -> Iterator[Path]:
    """Copies of one vault with a grant."""
    original = tmp_path / "original"
    async with await Vault.create(original, master=f"file:{tmp_path}/master.key") as vault:
        await vault.put("c", ApiKey("old"))
        await vault.grant("p", "c")
    return copies(original, tmp_path)


async def test_a_revocation_that_was_acknowledged_can_not_be_undone(
    homes: Iterator[Path], tmp_path: Path
) -> None:
    outcomes = set()
    with Scenario(FILE, "revoke") as scenario:
        for point in [*scenario.points(next(homes)), None]:
            home = next(homes)
            run = scenario.run(home, at=point)
            acknowledged = "revoked" in run.acknowledged
            older = home.with_name(f"{home.name}.older")
            shutil.copytree(home, older)
            shutil.copy(tmp_path / "original/security/keystore.enc", older / "security")
            if acknowledged:
                with pytest.raises(RollbackDetectedError, match="'keystore' is at generation"):
                    await Vault.unseal(older)
            async with await Vault.unseal(home) as vault:
                assert not (await vault.grants() and acknowledged)
                await vault.list()
            outcomes.add(acknowledged)
    assert outcomes == {True, False}
