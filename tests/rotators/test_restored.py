"""A vault of an earlier time makes no old secret valid again, and says what it can not know."""

from __future__ import annotations

import shutil

import pytest

from apex_creds.admin import restore
from apex_creds.admin.backup import backup
from apex_creds.errors import RotatorError
from apex_creds.keys import provider_from_uri
from apex_creds.model import ApiKey, RotationStage, SystemClock
from apex_creds.rotators import Mode, Rotations, configuration, configure
from apex_creds.vault import Vault
from tests.support.fake_rotator import ORIGIN, URI, FakeRotator, Provider, unreachable
from tests.support.rotators import parts_of
from tests.support.vaults import create, home_in, master_in, unseal

pytestmark = pytest.mark.anyio
FIRST = "first-value-of-the-key"


@pytest.fixture
def provider():
    return Provider(valid={FIRST.encode()})


@pytest.fixture
def find(provider, monkeypatch, mode):
    def find(uri):
        return FakeRotator(provider, mode)

    monkeypatch.setattr(configuration, "rotator_from_uri", find)
    return find


async def stopped(where, provider, find, step):
    """A rotation that is stopped before a step; and one more credential, without rotator."""
    async with await create(where) as vault:
        await vault.put("key", ApiKey(FIRST), origins=[ORIGIN])
        await vault.put("other", ApiKey("other"))
        await configure(vault, "key", uri=URI, grace=0.0)
        if step == "idle":
            return
        rotations, provider.around = Rotations(vault, find=find), unreachable(step)
        await rotations.ask("key")
        with pytest.raises(RotatorError):
            await rotations.advance("key")


async def replaced(vault, provider, find):
    """What was stopped goes on, and another value comes after it."""
    provider.around = Provider().around
    rotations = Rotations(vault, find=find)
    await rotations.run_due()
    await rotations.ask("key")
    await rotations.advance("key")


async def nothing_comes_back(where, provider, find):
    valid = set(provider.valid)
    async with await unseal(where) as vault:
        info = await vault.get("key")
        assert info.rotation.stage is RotationStage.NEEDS_PERSON
        assert info.rotation.outcome == "restored"
        provider.steps.clear()
        rotations = Rotations(vault, find=find)
        assert await rotations.run_due() == 1  # and says so
        assert provider.steps == []
        assert provider.valid == valid
        async with vault.open("other") as opened:
            assert bytes(opened.view()) == b"other"
        if find(URI).mode is Mode.DUAL:
            # The key that nobody has any more: a person deletes it at the provider.
            provider.valid.clear()
        await rotations.ask("key", by_hand=True)
        await rotations.advance("key")
        value = (await parts_of(vault, "key"))["value"].encode()
        assert provider.valid == {value}
        assert value not in valid


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("step", ["idle", "create", "set", "after set", "test", "finish"])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_backup_that_is_restored(tmp_path, provider, find, step, elsewhere):
    await stopped(tmp_path, provider, find, step)
    master, clock = provider_from_uri(master_in(tmp_path)), SystemClock()
    async with await unseal(tmp_path) as vault:
        await backup(vault, tmp_path / "copy", provider=master)
        await replaced(vault, provider, find)
    home = home_in(tmp_path)
    if elsewhere:  # where nothing says how far it had come
        shutil.rmtree(home)
        for path in tmp_path.glob("*.anchor"):
            path.unlink()
    with restore.staged(tmp_path / "copy", home) as stage:
        manifest = await restore.check_copy(stage, provider=master, clock=clock)
        await restore.mark_rotations_uncertain(stage, provider=master, clock=clock)
        restore.install(stage, home)
        await restore.record(home, manifest, provider=master, reason="test", clock=clock)
    await nothing_comes_back(tmp_path, provider, find)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("step", ["idle", "set", "test"])
async def test_a_directory_that_is_put_back(tmp_path, provider, find, step):
    await stopped(tmp_path, provider, find, step)
    home = home_in(tmp_path)
    shutil.copytree(home, tmp_path / "copy")
    async with await unseal(tmp_path) as vault:
        await replaced(vault, provider, find)
    shutil.rmtree(home)
    shutil.copytree(tmp_path / "copy", home)
    master = master_in(tmp_path)
    await (await Vault.unseal(home, master=master, accept_rollback="put back")).close()
    await nothing_comes_back(tmp_path, provider, find)
