"""Providers whose secrets rotate, and a vault that knows them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import psycopg

from apex_creds.model import BasicAuth
from apex_creds.rotators import Rotations, configure
from apex_creds.vault import Vault
from tests.support.postgres import Postgres, postgres
from tests.support.realparts import _answers, _free_port, _wait

FIRST = "first-password-of-the-role"
ADMIN = "password-of-the-admin"


@dataclass
class Roles:
    """A server on which ``admin`` may alter ``app_a`` and ``app_b``, by SCRAM alone."""

    server: Postgres

    @property
    def origin(self) -> str:
        return f"postgresql://{quote(str(self.server.folder), safe='')}:{self.server.port}"

    @property
    def one(self) -> str:
        return f"postgres-role:{self.origin}/postgres?admin=db-admin"

    @property
    def two(self) -> str:
        return f"{self.one}&roles=app_a,app_b"

    def reset(self) -> None:
        """As it was: ``app_a`` has its first password, ``app_b`` none."""
        self.server.sql(
            f"ALTER ROLE app_a PASSWORD '{FIRST}'; ALTER ROLE app_b PASSWORD NULL; "
            f"ALTER ROLE admin PASSWORD '{ADMIN}'"
        )

    def lets_in(self, user: str, password: str) -> bool:
        """Whether one can log in."""
        where = f"host={self.server.folder} port={self.server.port} dbname=postgres"
        try:
            with psycopg.connect(
                where, user=user, password=password, require_auth="scram-sha-256"
            ):
                return True
        except psycopg.OperationalError:
            return False


@contextlib.contextmanager
def roles() -> Iterator[Roles]:
    """A running server with these roles."""
    with postgres() as server:
        server.sql("CREATE ROLE admin LOGIN CREATEROLE; GRANT pg_signal_backend TO admin")
        server.sql("CREATE ROLE app_a LOGIN; CREATE ROLE app_b LOGIN")
        access = "local all apex trust\nlocal all all scram-sha-256\n"
        (server.data / "pg_hba.conf").write_text(access)
        server.sql("SELECT pg_reload_conf()")
        made = Roles(server)
        made.reset()
        yield made


async def put_role(
    vault: Vault, server: Roles, uri: str, *, grace: float = 0.0, name: str = "db"
) -> None:
    """Stores the role's password, and how it rotates."""
    await vault.put("db-admin", BasicAuth("admin", ADMIN), origins=[server.origin])
    await vault.put(name, BasicAuth("app_a", FIRST), origins=[server.origin])
    await configure(vault, name, uri=uri, grace=grace)


async def parts_of(vault: Vault, name: str) -> dict[str, str]:
    """All that is stored of a credential's values."""
    async with vault.open(name) as opened:
        return {part: bytes(opened.view(part)).decode() for part in opened.names}


async def rotate(vault: Vault, name: str, *, lost: bool = False) -> dict[str, str]:
    """Has a credential replaced by hand; what is stored of it then."""
    rotations = Rotations(vault)
    await rotations.ask(name, lost=lost, by_hand=True)
    await rotations.advance(name)
    return await parts_of(vault, name)


@dataclass
class Cloud:
    """moto's server."""

    origin: str
    iam: Any

    def keys(self, user: str) -> set[str]:
        """The ids of a user's access keys."""
        found = self.iam.list_access_keys(UserName=user)["AccessKeyMetadata"]
        return {each["AccessKeyId"] for each in found}


@contextlib.contextmanager
def cloud() -> Iterator[Cloud]:
    """A running server of AWS's API, in memory."""
    import boto3

    port = _free_port()
    where = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
            env={**os.environ, "AWS_DEFAULT_REGION": "us-east-1"},
        )
        try:
            _wait(lambda: _answers(f"{where}/moto-api/"), "moto")
            iam = boto3.client(
                "iam",
                endpoint_url=where,
                region_name="us-east-1",
                aws_access_key_id="root",
                aws_secret_access_key="root",
            )
            yield Cloud(where, iam)
            iam.close()
        finally:
            process.terminate()
            process.wait(30)
