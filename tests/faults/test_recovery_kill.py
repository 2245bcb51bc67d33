"""Recovery, backup and restore killed at their write boundaries; done again, all opens."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from apex_creds.audit.verify import check
from apex_creds.errors import ApexCredsError
from apex_creds.keys.shares import split
from apex_creds.model import ApiKey
from apex_creds.vault import Vault, recovery
from tests.e2e.realparts import gnome_keyring, gnome_keyring_missing
from tests.faults.killer import Point, Scenario
from tests.faults.scenarios import recovery as scenarios
from tests.vault.helpers import values

FILE = Path(__file__).parent / "scenarios" / "recovery.py"
ROOT = Path(__file__).parents[2]
OLD = {"a": b"old value", "b": b"second"}
NEW = {"a": b"new value", "b": b"second"}

# Each point costs four unsealings; all of them take three minutes. A rename is always one.
EVERY = bool(os.environ.get("APEX_EVERY_BOUNDARY"))

pytestmark = [pytest.mark.faults, pytest.mark.slow]


class World:
    """A vault, its shares, a backup of its older state; a fresh copy for each run."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.kept = where / "kept"
        self.live = where / "live"
        self.kept.mkdir()
        # The vault names its key's path, so it is made where it will be used.
        self.live.mkdir()
        asyncio.run(self._make())
        shutil.copytree(self.live, self.kept / "live")

    async def _make(self) -> None:
        async with await Vault.create(self.home, master=self.master) as vault:
            await vault.put("a", ApiKey("old value"))
            await vault.put("b", ApiKey("second"))
            with await recovery.take_key(vault) as key:
                lines = split(key, threshold=2, shares=3)[:2]
            self.shares.write_text("\n".join(lines))
            await scenarios.backup(
                vault, self.copy, provider=scenarios.provider_from_uri(self.master)
            )
            await vault.put("a", ApiKey("new value"))

    def fresh(self, *, key: bool = True) -> Path:
        shutil.rmtree(self.live)
        shutil.copytree(self.kept / "live", self.live)
        if not key:
            (self.live / "master.key").unlink()
        return self.home

    @property
    def home(self) -> Path:
        return self.live / "home"

    @property
    def master(self) -> str:
        return f"file:{self.live}/master.key"

    @property
    def shares(self) -> Path:
        return self.live / "shares"

    @property
    def copy(self) -> Path:
        return self.live / "copy.tar"

    async def opened(self) -> dict[str, bytes]:
        async with await Vault.unseal(self.home) as vault:
            found = await values(vault)
            vault_id = vault.vault_id
        assert check(self.home / "security/audit", vault_id=vault_id).ok
        return found


def sampled(points: list[Point]) -> list[Point]:
    return [p for n, p in enumerate(points) if n % 5 == 0 or p.call == "rename"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize("function", ["restore_key", "reset_master"])
def test_a_lost_key_recovered_and_killed(world: World, function: str) -> None:
    with Scenario(FILE, function) as scenario:
        # Before a boundary is after the one before it.
        start = world.fresh(key=False)
        points = scenario.points(start, world.master, world.shares, after=False)
        assert len(points) > 20
        for point in points if EVERY else points[::4]:
            home = world.fresh(key=False)
            run = scenario.run(home, world.master, world.shares, at=point)
            assert run.killed or run.acknowledged, point
            again = scenario.run(home, world.master, world.shares)
            assert again.acknowledged, point
            assert asyncio.run(world.opened()) == NEW, point


def test_a_backup_killed_is_whole_or_not_there(world: World) -> None:
    with Scenario(FILE, "make_backup") as scenario:
        target = world.live / "made"
        points = scenario.points(world.fresh(), world.master, target)
        for point in points[:: 1 if EVERY else 12]:
            home = world.fresh()
            run = scenario.run(home, world.master, target, at=point)
            assert asyncio.run(world.opened()) == NEW, point
            if run.acknowledged or target.exists():
                scenarios.restored(world.home, world.master, target)
                assert asyncio.run(world.opened()) == NEW, point


def test_a_restore_killed_is_the_old_vault_or_the_new_or_none(world: World) -> None:
    seen = set()
    with Scenario(FILE, "restore_backup") as scenario:
        points = scenario.points(
            world.fresh(), world.master, world.copy, after=False, torn=False
        )
        for point in points if EVERY else sampled(points):
            home = world.fresh()
            run = scenario.run(home, world.master, world.copy, at=point)
            try:
                found = asyncio.run(world.opened())
            except ApexCredsError as error:
                seen.add(type(error).__name__)
            else:
                assert found in (OLD, NEW), point
                assert found == OLD or not run.acknowledged, point
            scenarios.restored(world.home, world.master, world.copy)
            assert asyncio.run(world.opened()) == OLD, point
            assert not list(home.glob(".restoring-*")), point
            aside = list(home.glob(".before-restore-*/security/keystore.enc"))
            assert aside, f"{point}: what was there is gone"
    assert seen <= {"VaultNotFoundError", "RollbackDetectedError"}


# -- with a real keyring ---------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.skipif(bool(gnome_keyring_missing()), reason=gnome_keyring_missing() or "-")
def test_a_reset_killed_with_a_real_keyring(tmp_path: Path) -> None:
    with (
        gnome_keyring() as env,
        Scenario(FILE, "reset_master", isolated=True, env=env) as scenario,
    ):
        places = (tmp_path / str(number) for number in itertools.count())
        dry = lost(next(places), env)
        points = scenario.points(
            dry / "home", "keyring:", dry / "shares", after=True, torn=False
        )
        sets = [p for p in points if p.call.startswith("keyring")]
        assert len(sets) >= 2, "the key, and the anchor"
        for point in sets if EVERY else sets[:2]:
            where = lost(next(places), env)
            arguments = (where / "home", "keyring:", where / "shares")
            assert scenario.run(*arguments, at=point).killed, point
            assert scenario.run(*arguments).acknowledged, point
            version = int(in_process(env, "see", where))
            assert version in (2, 3), point
            if point.number == sets[0].number:
                left = point.when == "after"  # a key that nobody vouches for is passed over
                assert version == (3 if left else 2), point


def lost(where: Path, env: Mapping[str, str]) -> Path:
    """A vault whose keyring entry was deleted."""
    where.mkdir()
    in_process(env, "lose", where)
    return where


def in_process(env: Mapping[str, str], function: str, where: Path) -> str:
    code = "import sys; from tests.faults import test_recovery_kill as t; t.main(*sys.argv[1:])"
    command = [sys.executable, "-B", "-c", code, function, str(where)]
    done = subprocess.run(
        command, cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, (function, done.stderr[-3000:])
    return done.stdout


def main(function: str, where: str) -> None:
    asyncio.run({"lose": _lose, "see": _see}[function](Path(where)))


async def _lose(where: Path) -> None:
    import keyring

    async with await Vault.create(where / "home", master="keyring:") as vault:
        await vault.put("a", ApiKey("new value"))
        await vault.put("b", ApiKey("second"))
        with await recovery.take_key(vault) as key:
            (where / "shares").write_text("\n".join(split(key, threshold=2, shares=2)))
        vault_id = vault.vault_id
    keyring.delete_password("apex-creds", f"{vault_id}:v1")


async def _see(where: Path) -> None:
    async with await Vault.unseal(where / "home") as vault:
        assert await values(vault) == NEW
        print((await vault.store.keystore()).root_header.master.version)
