"""A value that has expired is replaced for the invocation that needs it: once, for all."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from apex_creds.clocks import SystemClock
from apex_creds.errors import AccessDeniedError, HandleExpiredError, TokenError
from apex_creds.model import ApiKey, GenericSecret, RotationStage
from apex_creds.rotators import Rotations, configure
from apex_creds.rotators import rotation as rotation_module
from apex_creds.rotators.rotation import rotations_of
from apex_creds.scheduler.credential_rotation import CredentialRotation
from apex_creds.scheduler.worker import next_fire
from apex_creds.vault import Vault
from tests.support.github import PEM, github_app
from tests.support.rotators import parts_of, rotate
from tests.support.vaults import create, home_in, start, together
from tests.support.worlds import world_in

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]
NEED = {"name": "gh", "access": "reveal"}


async def put(vault, github, *, principal="", **options):
    await vault.put("gh-app", GenericSecret(PEM), origins=[github.origin])
    await vault.put(
        "gh", ApiKey("first"), origins=[github.origin], principal=principal, **options
    )
    uri = f"github-app:{github.origin}/app/installations/7?app=42&admin=gh-app"
    await configure(vault, "gh", uri=uri, principal=principal)


@pytest.fixture
async def world(tmp_path, clock, github):
    async with world_in(tmp_path, clock=clock) as made:
        await put(made.vault, github)
        await made.vault.grant("demo", "gh", reveal=True)
        await rotate(made.vault, "gh")
        yield made


async def used(world, times=1):
    seen = []

    async def plugin(credentials):
        async with credentials["gh"].reveal() as secret:
            seen.append(secret.expose_str())

    await asyncio.gather(*(world.call(plugin, needs=(NEED,)) for _ in range(times)))
    return seen


async def test_all_who_need_it_wait_for_one_rotation(world, github, clock):
    assert github.made == 1
    clock.now += 3600
    seen = await used(world, 20)
    assert set(seen) == {(await parts_of(world.vault, "gh"))["value"]}
    assert github.lets_in(seen[0])
    assert github.made == 2
    assert await used(world) == seen[:1]
    assert github.made == 2


async def test_one_that_is_declared_and_not_used_is_not_replaced(world, github, clock):
    clock.now += 3600

    async def plugin(credentials):
        return "nothing"

    await world.call(plugin, needs=(NEED,))
    assert github.made == 1


async def test_code_that_can_not_wait_has_one_too(world, github, clock):
    clock.now += 3600
    seen = []

    def plugin(credentials):
        with credentials["gh"].reveal() as secret:
            seen.append(secret.expose_str())

    await world.call(plugin, needs=(NEED,))
    assert github.lets_in(seen[0])


async def test_code_that_can_not_wait_waits_no_longer_than_its_lease(
    world, github, clock, monkeypatch
):
    async def hangs(name, *, principal):
        clock.now += 60  # what it takes longer than the lease lives
        await asyncio.Event().wait()

    clock.now += 3600
    monkeypatch.setattr(rotations_of(world.vault), "ensure", hangs)

    def plugin(credentials):
        with credentials["gh"].attenuate(ttl=0.05).reveal():
            pass

    with pytest.raises(HandleExpiredError):
        await world.call(plugin, needs=(NEED,))


async def test_tasks_of_other_threads_wait_for_the_same(world, github, clock):
    clock.now += 3600
    seen = []

    def elsewhere():
        seen.append(asyncio.run(rotations_of(world.vault).ensure("gh")).version)

    threads = [threading.Thread(target=elsewhere) for _ in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert len(set(seen)) == 1
    assert github.made == 2


async def test_the_grace_of_the_value_before_holds_up_nothing(world, github, clock):
    info = await world.vault.get("gh")
    assert info.rotation.stage is RotationStage.FINISH
    await world.vault.edit("gh", expires=clock.now + 5)  # of a provider whose values live less
    clock.now += 10
    assert github.lets_in((await used(world))[0])
    assert github.made == 2


async def test_a_value_is_replaced_before_it_ends_though_the_one_before_has_grace(
    world, github, clock
):
    rotation = CredentialRotation(world.vault, next_fire=next_fire)
    for _ in range(36):
        clock.now += 300
        assert await rotation.run() == 0
        info = await world.vault.get("gh")
        assert not info.has_expired(clock.now + 240)
    assert github.made < 7


async def test_a_value_that_somebody_stored_with_an_end_is_replaced_too(
    tmp_path, github, clock
):
    async with world_in(tmp_path, clock=clock) as world:
        await put(world.vault, github, expires=clock.now + 60)
        await world.vault.grant("demo", "gh", reveal=True)
        assert await used(world) == ["first"]
        clock.now += 61
        assert github.lets_in((await used(world))[0])


async def test_what_can_not_be_replaced_is_refused_and_not_asked_for_again_at_once(
    world, github, clock
):
    clock.now += 3600
    github.answer = 500, b"{}"
    for _ in range(3):
        with pytest.raises(TokenError, match="expired and could not be replaced"):
            await used(world)
    asked = [path for method, path in github.seen if method == "POST"]
    assert len(asked) == 2  # the first token, and one try
    assert world.reasons() == [("gh", "not_refreshed")] * 3
    github.answer = None
    clock.now += 10
    assert github.lets_in((await used(world))[0])


async def test_what_the_provider_refuses_needs_a_person(world, github, clock):
    clock.now += 3600
    github.answer = 403, b"{}"
    for _ in range(5):
        with pytest.raises(TokenError, match="rotate credential gh"):
            await used(world)
        clock.now += 4000
    assert len([path for method, path in github.seen if method == "POST"]) == 4
    github.answer = None
    await rotate(world.vault, "gh")
    assert github.lets_in((await used(world))[0])


async def test_a_principal_s_is_replaced_and_nobody_else_s(tmp_path, github, clock):
    async with world_in(tmp_path, clock=clock) as world:
        for principal in ("", "alice", "bob"):
            await put(world.vault, github, principal=principal, expires=clock.now + 60)
        await world.vault.grant("demo", "gh", reveal=True, principal="alice")
        clock.now += 61
        seen = []

        async def plugin(credentials):
            async with credentials["gh"].reveal() as secret:
                seen.append(secret.expose_str())

        await world.call(plugin, needs=(NEED,), principal="alice")
        assert github.lets_in(seen[0])
        found = {info.principal: info for info in await world.vault.list()}
        assert (await world.vault.get("gh", principal="alice")).version > 1
        assert (await world.vault.get("gh", principal="bob")).version == 1
        assert (await world.vault.get("gh")).version == 1
        assert set(found) == {"", "alice", "bob"}
        with pytest.raises(AccessDeniedError):
            await world.call(plugin, needs=(NEED,), principal="bob")


async def test_a_value_that_has_ended_before_it_came_is_none(world, github, clock, monkeypatch):
    real = rotation_module.rotator_from_uri

    def find(uri):
        made, create = real(uri), type(real(uri)).create

        async def late(task):
            created = await create(made, task)
            clock.now += 3601
            return created

        made.create = late
        return made

    rotations = Rotations(world.vault, find=find)
    version = (await world.vault.get("gh")).version
    clock.now += 3600
    with pytest.raises(TokenError, match="ended already"):
        await rotations.ensure("gh")
    info = await world.vault.get("gh")
    assert info.rotation.pending == 0
    assert info.version <= version + 1  # the old one was ended meanwhile


@pytest.mark.slow
@pytest.mark.faults
async def test_processes_that_need_it_at_once(tmp_path):
    """Six processes, four tasks in each: one rotation, and nobody is refused."""

    with github_app(SystemClock()) as server:
        async with await create(tmp_path) as vault:
            await put(vault, server, expires=time.time() - 1)
            await vault.grant("demo", "gh", reveal=True)
        home = str(home_in(tmp_path))
        ends = await together(*(start("use_token", home, 4, "gh") for _ in range(6)))
        flat = [end for process in ends for end in process]
        assert len(flat) == 24
        assert len(set(flat)) == 1
        assert server.made == 1
        async with await Vault.unseal(home) as vault:
            assert server.lets_in((await parts_of(vault, "gh"))["value"])
