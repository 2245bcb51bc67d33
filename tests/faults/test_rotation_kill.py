"""Each rotation killed at every write boundary; a new process finishes it, all opens.

With the file backend, and the master key in a file or in a real gnome-keyring, whose sets
and deletions are boundaries too. Every boundary takes minutes: CI takes each ninth, from
another one each day; ``APEX_CREDS_EVERY=1`` takes all.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from apex_creds.audit.verify import check
from apex_creds.keys.keyset import KeyState
from apex_creds.model import ApiKey
from apex_creds.vault import Vault
from tests.faults.scenarios.rotation import SCENARIOS, engine, fill
from tests.support.killer import Scenario
from tests.support.realparts import gnome_keyring, gnome_keyring_missing
from tests.support.vaults import values

EVERY = int(os.environ.get("APEX_CREDS_EVERY", "9"))
FIRST = int(time.time() // 86_400) % EVERY

FILE = Path(__file__).parent / "scenarios" / "rotation.py"
STORED = {"first": b"first value", "second": b"second value", "third": b"third value"}

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_killed_with_the_key_in_a_file(tmp_path: Path, name: str) -> None:
    """What is kept beside the key (older keys, the anchor) is put back for each run."""
    original = tmp_path / "original"
    original.mkdir()
    key = tmp_path / "key"
    key.mkdir()
    await fill(original / "home", f"file:{key}/master.key")
    shutil.copytree(key, tmp_path / "kept")
    kills = 0
    with Scenario(FILE, name) as scenario:
        # Just after a boundary is just before the next one.
        points = scenario.points(copied(original, tmp_path / "dry"), after=False)
        assert len(points) > 60
        points = points[FIRST::EVERY]
        for number, point in enumerate(points):
            shutil.rmtree(key)
            shutil.copytree(tmp_path / "kept", key)
            home = copied(original, tmp_path / str(number))
            run = scenario.run(home, at=point)
            kills += run.killed
            assert run.killed or run.acknowledged, point
            await finished(home, str(point))
            shutil.rmtree(home.parent)
    assert kills > len(points) * 0.8


def copied(original: Path, where: Path) -> Path:
    shutil.copytree(original, where)
    return where / "home"


async def finished(home: Path, point: str) -> None:
    """Another process opens everything, finishes, and nothing old is left."""
    async with await Vault.unseal(home) as vault:
        assert await values(vault) == STORED, point
        assert not (await engine(vault).run(lease=False)).failed, point
        assert await values(vault) == STORED, point
        keystore = await vault.store.keystore()
        orders = (await engine(vault).document.read()).renew
        for keyset in (keystore.root_header.keks, *keystore.body.deks):
            states = {version.state for version in keyset.versions}
            assert states <= {KeyState.PRIMARY, KeyState.DESTROYED}, (point, states)
        assert not orders, point
        vault_id = vault.vault_id
        # The next write in a folder sweeps what the killed process left there.
        await engine(vault).document.change(lambda s: replace(s, debounce=s.debounce + 1))
        await vault.put("further", ApiKey("further value"))
    async with await Vault.unseal(home) as vault:
        assert await values(vault) == {**STORED, "further": b"further value"}, point
    assert check(home / "security/audit", vault_id=vault_id).ok, point
    assert not list(home.rglob("*.tmp")), point


# -- with a real keyring ---------------------------------------------------------------


@pytest.mark.timeout(1800)
@pytest.mark.e2e
@pytest.mark.skipif(bool(gnome_keyring_missing()), reason=gnome_keyring_missing() or "-")
def test_master_killed_with_the_key_in_a_real_keyring(tmp_path: Path) -> None:
    """Each run, and each look at what it left, is a fork that connects to the keyring anew."""
    with (
        gnome_keyring() as env,
        Scenario(FILE, "master", env=env) as scenario,
        Scenario(FILE, "make", env=env) as make,
        Scenario(Path(__file__), "finish", env=env) as finish,
    ):
        homes = (tmp_path / str(number) for number in itertools.count())
        dry = made(next(homes), make)
        points = scenario.points(dry, after=False, torn=False)
        keys = [n for n, p in enumerate(points) if p.call.startswith("keyring")]
        assert {points[n].call for n in keys} == {"keyring.set", "keyring.delete"}
        around = {n + d for n in keys for d in (-1, 0, 1)}
        every = range(FIRST, len(points), 3 * EVERY)
        for point in (points[n] for n in sorted({*around, *every}) if n < len(points)):
            home = made(next(homes), make)
            run = scenario.run(home, at=point)
            assert run.killed or run.acknowledged, point
            finish.run(home, point)


def made(where: Path, make: Scenario) -> Path:
    where.mkdir()
    make.run(where / "home", "keyring:")
    return where / "home"


def finish(home: str, point: str) -> None:
    asyncio.run(finished(Path(home), point))
