"""Killed at any write boundary of a rotation at the provider: the credential works.

Another process goes on from what is stored, and afterwards the old value is never valid. Of
values that we make (PostgreSQL, Redis) and of one that the provider makes (AWS).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from apex_creds.model import AwsKey, BasicAuth, RotationStage
from apex_creds.rotators import Rotations, configure
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.faults.anchored import copies
from tests.support.killer import Scenario
from tests.support.redis import ONCE, RedisServer, redis_server
from tests.support.rotators import ADMIN, FIRST, Cloud, Roles, cloud, parts_of, roles
from tests.support.vaults import home_in, master_in

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.slow, pytest.mark.e2e]
FILE = Path(__file__).parent / "scenarios" / "rotators.py"
UNHURRIED = AuditConfig(durable_ms=60_000, checkpoint_seconds=60)
STAGES = {
    RotationStage.IDLE,
    RotationStage.CREATE,
    RotationStage.SET,
    RotationStage.TEST,
    RotationStage.FINISH,
}


class Place:
    """A provider with one value, ``FIRST``, which ``reset`` brings back."""

    gap = False

    def reset(self) -> None:
        raise NotImplementedError

    async def put(self, vault: Vault) -> None:
        raise NotImplementedError

    def takes(self, user: str, password: str) -> bool:
        raise NotImplementedError

    def alone(self, user: str) -> bool:
        """Whether nothing is left but the value of that user."""
        return True


class PostgresPlace(Place):
    def __init__(self, server: Roles, *, two: bool) -> None:
        self.server, self.uri, self.gap = server, server.two if two else server.one, not two
        self.reset = server.reset  # type: ignore[method-assign]
        self.takes = server.lets_in  # type: ignore[method-assign]

    async def put(self, vault: Vault) -> None:
        where = [self.server.origin]
        await vault.put("admin", BasicAuth("admin", ADMIN), origins=where)
        await vault.put("db", BasicAuth("app_a", FIRST), origins=where)
        await configure(
            vault, "db", uri=self.uri.replace("admin=db-admin", "admin=admin"), grace=0.0
        )


class RedisPlace(Place):
    def __init__(self, server: RedisServer) -> None:
        self.server = server

    def reset(self) -> None:
        self.server.admin.execute_command("ACL", "SETUSER", "app", "resetpass", f">{FIRST}")

    async def put(self, vault: Vault) -> None:
        where = f"redis://127.0.0.1:{self.server.port}"
        await vault.put("admin", BasicAuth("admin", "admin"), origins=[where])
        await vault.put("db", BasicAuth("app", FIRST), origins=[where])
        await configure(vault, "db", uri=f"redis-acl:{where}?admin=admin", grace=0.0)

    def takes(self, user: str, password: str) -> bool:
        with contextlib.closing(
            redis.Redis(port=self.server.port, username=user, password=password, retry=ONCE)
        ) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return False

    def alone(self, user: str) -> bool:
        found = self.server.admin.acl_getuser(user)
        return len(found["passwords"]) == 1


class AwsPlace(Place):
    """The key of before is another one each time; it is a new user's."""

    def __init__(self, server: Cloud) -> None:
        self.server = server

    def reset(self) -> None:
        for key in self.server.keys("robot") - {self.first}:
            self.server.iam.delete_access_key(UserName="robot", AccessKeyId=key)
        if not self.server.keys("robot"):
            raise AssertionError("each run has a vault of its own")

    async def put(self, vault: Vault) -> None:
        self.server.iam.create_user(UserName="robot")
        await self.renew(vault)

    async def renew(self, vault: Vault) -> None:
        for key in self.server.keys("robot"):
            self.server.iam.delete_access_key(UserName="robot", AccessKeyId=key)
        made = self.server.iam.create_access_key(UserName="robot")["AccessKey"]
        self.first = made["AccessKeyId"]
        value = AwsKey(made["AccessKeyId"], made["SecretAccessKey"])
        await vault.put("db", value, origins=[self.server.origin])
        await configure(
            vault, "db", uri=f"aws-access-key:{self.server.origin}/robot", grace=0.0
        )

    def takes(self, user: str, password: str) -> bool:
        return user in self.server.keys("robot")

    def alone(self, user: str) -> bool:
        return self.server.keys("robot") == {user}


@contextlib.contextmanager
def place(kind: str) -> Iterator[Place]:
    if kind == "redis":
        lines = ("user default off", "user admin on >admin ~* &* +@all", "user app on ~* +@all")
        with redis_server(*lines) as server:
            made = RedisPlace(server)
            made.reset()
            yield made
    elif kind == "aws":
        with cloud() as running:
            yield AwsPlace(running)
    else:
        with roles() as database:
            yield PostgresPlace(database, two=kind == "two roles")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["two roles", "one role", "redis", "aws"])
async def test_a_rotation(tmp_path: Path, kind: str) -> None:
    if kind == "aws" and importlib.util.find_spec("moto") is None:
        pytest.skip("moto is in the group sdk-all")
    with place(kind) as where:
        async with await Vault.create(home_in(tmp_path), master=master_in(tmp_path)) as vault:
            await write_config(vault.store.storage, Config(audit=UNHURRIED))
            await where.put(vault)
        homes = copies(home_in(tmp_path), tmp_path)
        await every_point(where, lambda: next(homes))


async def every_point(where: Place, fresh: Callable[[], Path]) -> None:
    stages = set()
    with Scenario(FILE, "rotate") as scenario:
        for point in await asyncio.to_thread(scenario.points, fresh()):
            home = fresh()
            if isinstance(where, AwsPlace):
                async with await Vault.unseal(home) as vault:
                    await where.renew(vault)
            else:
                where.reset()
            run = await asyncio.to_thread(scenario.run, home, at=point)
            async with await Vault.unseal(home) as vault:
                stages.add(await found(vault, where))
                await after(vault, where, asked="asked" in run.acknowledged)
            shutil.rmtree(home)
    assert stages == STAGES


async def found(vault: Vault, where: Place) -> RotationStage:
    """What plugins get at once, before anybody goes on; the stage that is on record."""
    info, parts = await vault.get("db"), await parts_of(vault, "db")
    assert info.rotation is not None
    works = where.takes(parts["user"], parts["password"])
    # Of one value at a time there is a gap: between the server's change and its commit.
    gap = where.gap and info.rotation.stage is RotationStage.SET
    assert works or (gap and where.takes(parts["user"], parts["pending_password"]))
    return info.rotation.stage


async def after(vault: Vault, where: Place, *, asked: bool) -> None:
    rotations = Rotations(vault)
    before = await vault.get("db")
    first = await parts_of(vault, "db")
    assert await rotations.run_due() == 0
    info, parts = await vault.get("db"), await parts_of(vault, "db")
    assert info.rotation is not None
    assert before.rotation is not None
    assert info.rotation.stage is RotationStage.IDLE
    assert set(parts) == {"user", "password"}
    assert where.takes(parts["user"], parts["password"])
    assert where.alone(parts["user"])
    if asked:
        assert info.rotation.asked < info.rotation.since
    if before.rotation.stage is not RotationStage.IDLE and "previous_password" in first:
        assert not where.takes(first["previous_user"], first["previous_password"])
    if not isinstance(where, AwsPlace) and parts["password"] != FIRST:
        assert not where.takes("app" if isinstance(where, RedisPlace) else "app_a", FIRST)
    version = info.version
    assert await rotations.run_due() == 0  # and nothing is done twice
    assert (await vault.get("db")).version == version
