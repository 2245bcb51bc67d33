"""OpenBao's database engine over a PostgreSQL, both real."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx

from tests.support.postgres import postgres
from tests.support.realparts import OpenBao, openbao
from tests.support.rotators import Roles

MAKES = "CREATE ROLE \"{{name}}\" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"


class Bao:
    """A running server; called with a path and fields, it posts them."""

    def __init__(self, server: OpenBao, database: Roles) -> None:
        self.origin, self.database = server.address, database
        self.client = httpx.Client(
            base_url=f"{server.address}/v1/",
            headers={"x-vault-token": "root"},
            trust_env=False,
            timeout=60,
        )

    def __call__(self, path: str, **fields: object) -> httpx.Response:
        answer = self.client.post(path, json=fields)
        assert answer.is_success, answer.text
        return answer

    @property
    def logins(self) -> set[str]:
        """The roles that are there."""
        names = self.database.server.sql("SELECT rolname FROM pg_roles").split()
        return {name for name in names if name.startswith("v-")}

    def role(self, ttl: int) -> None:
        """How long a login is good."""
        self(
            "database/roles/app",
            db_name="pg",
            creation_statements=[MAKES],
            default_ttl=f"{ttl}s",
            max_ttl="60s",
        )


@contextlib.contextmanager
def database_engine() -> Iterator[Bao]:
    """OpenBao's database engine, which makes roles in a PostgreSQL."""
    with postgres(listen_addresses="127.0.0.1") as server, openbao() as bao:
        access = "local all apex trust\nlocal all all scram-sha-256\n"
        access += "host all all 127.0.0.1/32 scram-sha-256\n"
        (server.data / "pg_hba.conf").write_text(access)
        server.sql("ALTER ROLE apex PASSWORD 'of-the-root'; SELECT pg_reload_conf()")
        made = Bao(bao, Roles(server))
        made("sys/mounts/database", type="database")
        made(
            "database/config/pg",
            plugin_name="postgresql-database-plugin",
            allowed_roles="app",
            connection_url="postgresql://{{username}}:{{password}}@127.0.0.1:"
            f"{server.port}/postgres?sslmode=disable",
            username="apex",
            password="of-the-root",
        )
        yield made
        made.client.close()
