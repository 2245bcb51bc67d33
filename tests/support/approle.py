"""An AppRole ``web`` of a real OpenBao, and a token that may replace its secret ids."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx

from tests.support.realparts import OpenBao, openbao

POLICY = """
path "auth/approle/role/web/custom-secret-id" { capabilities = ["update"] }
path "auth/approle/role/web/secret-id/lookup" { capabilities = ["update"] }
path "auth/approle/role/web/secret-id/destroy" { capabilities = ["update"] }
"""
SECRET_IDS = "auth/approle/role/web/secret-id"


class AppRole:
    """Called with a path and fields, it posts them as root."""

    def __init__(self, server: OpenBao) -> None:
        self.origin = server.address
        self.client = httpx.Client(
            base_url=f"{server.address}/v1/",
            headers={"x-vault-token": server.token},
            trust_env=False,
            timeout=60,
        )
        self("sys/auth/approle", type="approle")
        self("auth/approle/role/web", token_ttl="60s")
        self("sys/policies/acl/rotator", policy=POLICY)
        token = self("auth/token/create", policies=["rotator"], no_default_policy=True)
        self.token: str = token["auth"]["client_token"]
        found = self.client.get("auth/approle/role/web/role-id").json()
        self.role: str = found["data"]["role_id"]

    @property
    def uri(self) -> str:
        """Of the rotator; its token is the credential ``bao``."""
        return f"openbao-approle:{self.origin}/approle/web?admin=bao"

    def __call__(self, path: str, **fields: object) -> dict[str, Any]:
        answer = self.client.post(path, json=fields)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def listed(self, path: str) -> set[str]:
        answer = self.client.request("LIST", path)
        return set(answer.json()["data"]["keys"]) if answer.status_code == 200 else set()

    def lets_in(self, role: str, secret: str) -> bool:
        pair = {"role_id": role, "secret_id": secret}
        return self.client.post("auth/approle/login", json=pair).status_code == 200

    def reset(self, secret: str) -> None:
        """Leaves the role no secret id but that one."""
        for accessor in self.listed(SECRET_IDS):
            self(f"{SECRET_IDS}-accessor/destroy", secret_id_accessor=accessor)
        self("auth/approle/role/web/custom-secret-id", secret_id=secret)


@contextlib.contextmanager
def app_role() -> Iterator[AppRole]:
    """A running server."""
    with openbao() as server:
        made = AppRole(server)
        yield made
        made.client.close()
