"""What the wall clock can't do: bring back what has ended, or keep open what is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from apex_creds.errors import AccessDeniedError, HandleExpiredError, LeaseEndedError
from apex_creds.leases import lease as lease_module
from tests.support.clocks import TwoClocks
from tests.support.worlds import KEY, World, world_in

pytestmark = pytest.mark.anyio
JUMPS = [-1e9, -3600.0, 3600.0, 3.2e8]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path, clock=TwoClocks()) as world:
        yield world


async def read(credentials) -> str:
    async with credentials["key"].reveal() as secret:
        return secret.expose_str()


@pytest.mark.parametrize("back", [-60.0, -3600.0, -1e9])
async def test_a_grant_that_has_ended_stays_ended(world: World, back: float) -> None:
    await world.vault.grant("demo", "key", reveal=True, until=world.clock.wall + 30)
    assert "redacted" in await world.call(read)
    world.clock.go_on(30)
    world.clock.set_by(back)
    with pytest.raises(AccessDeniedError):
        await world.call(read)


async def test_a_lease_ends_with_its_grant_also_if_the_clock_was_set_back(world: World) -> None:
    await world.vault.grant("demo", "key", reveal=True, until=world.clock.wall + 30)

    async def plugin(credentials):
        assert await read(credentials) == KEY
        world.clock.set_by(-1e9)
        world.clock.go_on(30)
        with pytest.raises(LeaseEndedError):
            await read(credentials)

    await world.call(plugin)


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_lease_lives_as_long_as_it_was_made_for(world: World, jump: float) -> None:
    async def plugin(credentials):
        world.clock.set_by(jump)
        world.clock.go_on(299.0)
        assert await read(credentials) == KEY
        world.clock.go_on(1.1)
        with pytest.raises(HandleExpiredError):
            await read(credentials)

    await world.call(plugin)


async def test_what_is_revealed_is_wiped_soon_after_a_sleep_that_was_too_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's timer for the deadline has slept with the machine."""
    monkeypatch.setattr(lease_module, "LONGEST_SLEEP", 0.01)

    async def plugin(credentials):
        async with credentials["key"].reveal() as secret:
            world.clock.go_on(301.0)
            while not secret.closed:
                await asyncio.sleep(0.001)

    with anyio.fail_after(60):
        await world.call(plugin)
