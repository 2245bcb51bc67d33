"""Killed at any write boundary, a migration loses nothing and goes on without duplicates.

After each kill: every credential is in the source or in the vault, whole; the next run ends
the migration with each of them once, in its first version.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import keyring
import keyring.backends.fail
import pytest

from apex_creds.errors import VaultNotFoundError
from apex_creds.migration import Fallback, finish, is_legacy, migrate, on_unseal, set_aside
from apex_creds.vault import Vault
from tests.faults.scenarios.migration import FEW, NAMES
from tests.support import old
from tests.support.killer import Run, Scenario

FILE = Path(__file__).parent / "scenarios" / "migration.py"

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(autouse=True)
def no_keyring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = keyring.get_keyring()
    keyring.set_keyring(keyring.backends.fail.Keyring())
    yield
    keyring.set_keyring(before)


def copies(original: Path, where: Path) -> Iterator[Path]:
    """Copies of a user's home, without end; yields the vault's directory in each."""
    for number in itertools.count():
        forget_anchors(where)
        place = where / f"user{number}"
        shutil.copytree(original, place)
        yield place / ".apex_agent"


def forget_anchors(where: Path) -> None:
    """Copies of one vault share its master key's folder; each is older than the one before."""
    for path in where.glob("*.anchor"):
        path.unlink()


def killed(function: str, homes: Iterator[Path]) -> Iterator[tuple[Path, Run, str]]:
    with Scenario(FILE, function) as scenario:
        # Just before each boundary, and after the last; `put` is killed in between, too.
        points = scenario.points(next(homes), torn=False)
        points = [point for point in points if point.when == "before"] + points[-1:]
        assert len(points) > 10
        for point in points:
            home = next(homes)
            run = scenario.run(home, at=point)
            assert run.killed or run.acknowledged, point
            yield home, run, str(point)
            shutil.rmtree(home.parent)


async def prepared(tmp_path: Path) -> Iterator[Path]:
    original = tmp_path / "original"
    original.mkdir(mode=0o700)
    home = original / ".apex_agent"
    await (await Vault.create(home, master=f"file:{tmp_path}/master.key")).close()
    old.fernet_file(original, FEW)
    return copies(original, tmp_path)


async def whole(vault: Vault) -> dict[str, str]:
    """What a look-up finds, wherever it is."""
    fallback = Fallback(vault, environ=old.ENV)
    found = {}
    for name in NAMES:
        async with fallback.open(name) as opened:
            found[name] = bytes(opened.view()).decode()
    return found


async def test_a_fernet_file(tmp_path: Path) -> None:
    seen = set()
    for home, _, point in killed("migrate", await prepared(tmp_path)):
        path = home.parent / ".apex_agent_api_keys.enc"
        async with await Vault.unseal(home) as vault:
            seen.add((len(await vault.list()), path.exists()))
            assert path.exists() or await old.secrets(vault) == NAMES, point
            assert await whole(vault) == NAMES, point
            report = await on_unseal(vault, environ=old.ENV)
            assert report.complete, (point, report)
            assert await old.secrets(vault) == NAMES, point
            assert {info.version for info in await vault.list()} == {1}, point
            assert await old.value(vault, "one/oauth_token", "refresh") == "r1", point
            assert not (await migrate(vault, environ=old.ENV)).sources, point
            assert not path.exists(), point
            assert len(list(home.parent.glob(".apex_agent_api_keys.enc.bak*"))) == 1, point
    assert {(0, True), (2, True), (3, True), (3, False)} <= seen


async def test_setting_aside_and_making_a_vault(tmp_path: Path) -> None:
    original = tmp_path / "original"
    files = old.box_files(
        FEW["api_keys"], FEW["oauth_tokens"], config={"plugin_permissions": {"p": ["two"]}}
    )
    original.mkdir(mode=0o700)
    old.install(original / ".apex_agent", files)
    seen = set()
    for home, _, point in killed("aside", copies(original, tmp_path)):
        kept = {p.name: p.read_bytes() for p in home.rglob("*") if p.is_file()}
        for name, data in files.items():
            parts = home / "legacy" / Path(name).name, home / name
            assert any(p.exists() and p.read_bytes() == data for p in parts), (
                point,
                kept.keys(),
            )
        seen.add(is_legacy(home))
        await set_aside(home, environ=old.ENV)
        try:
            vault = await Vault.unseal(home)
        except VaultNotFoundError:
            key = home.parent / "master.key"  # left by the killed one, or not
            there = key.exists()
            vault = await Vault.create(home, master=f"file:{key}", use_existing_key=there)
            seen.add("none")
        async with vault:
            assert (await on_unseal(vault, environ=old.ENV)).complete, point
            assert await old.secrets(vault) == NAMES, point
            assert [(g.plugin, g.credential) for g in await vault.grants()] == [("p", "two")]
    assert seen == {True, False, "none"}


async def test_erasing(tmp_path: Path) -> None:
    original = tmp_path / "user"
    original.mkdir(mode=0o700)
    home = original / ".apex_agent"
    async with await Vault.create(home, master=f"file:{tmp_path}/master.key") as vault:
        old.fernet_file(original, FEW)
        await on_unseal(vault, environ=old.ENV)
    shutil.copytree(original, tmp_path / "kept")
    backup = original / ".apex_agent_api_keys.enc.bak"

    def again() -> Iterator[Path]:
        """The same paths each time: the state document names them."""
        while True:
            shutil.rmtree(original, ignore_errors=True)
            forget_anchors(tmp_path)
            shutil.copytree(tmp_path / "kept", original)
            yield home

    for _, run, point in killed("erase", again()):
        assert not (run.acknowledged and backup.exists()), point
        async with await Vault.unseal(home) as vault:
            await on_unseal(vault, environ=old.ENV)
            await finish(vault)
            assert await old.secrets(vault) == NAMES, point
        assert not backup.exists(), point
