"""An older state put back into a database is noticed as an older file is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_creds import Vault
from apex_creds.errors import RollbackDetectedError
from apex_creds.model import ApiKey
from apex_creds.storage.storage_factory import StoragePlace, open_place
from tests.support.postgres import Postgres, postgres

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

KILLED = """
import asyncio, os, signal, sys
from apex_creds import Vault

async def main(home):
    vault = await Vault.unseal(home)
    await vault.edit("one", origins=["https://b.example"])
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


def dump(server: Postgres) -> bytes:
    return server._run("pg_dump", "--data-only", "--inserts", "-U", "apex", "postgres").stdout


def put_back(server: Postgres, state: bytes) -> None:
    tables = sorted(set(re.findall(r"INSERT INTO (\S+) ", state.decode())))
    for table in tables:
        server.sql(f"ALTER TABLE {table} DISABLE TRIGGER ALL")
    server.sql(f"TRUNCATE {', '.join(tables)} CASCADE")
    file = server.folder / "state.sql"
    file.write_bytes(state)
    file.chmod(0o644)
    server._run("psql", "-q", "-U", "apex", "-d", "postgres", "-f", str(file))
    for table in tables:
        server.sql(f"ALTER TABLE {table} ENABLE TRIGGER ALL")


async def test_an_older_dump_is_refused(server: Postgres, tmp_path: Path) -> None:
    home, master = tmp_path / "home", f"file:{tmp_path}/master.key"
    storage = open_place(StoragePlace(server.url()))
    async with await Vault.create(home, master=master, storage=storage) as vault:
        origins = ["https://a.example", "https://b.example"]
        await vault.put("one", ApiKey("old"), origins=origins)
        await vault.grant("p", "one")

    async def refused(state: bytes) -> None:
        newest = dump(server)
        put_back(server, state)
        with pytest.raises(RollbackDetectedError):
            async with await Vault.unseal(home) as opened, opened.open("one"):
                pass
        put_back(server, newest)

    before = dump(server)
    async with await Vault.unseal(home) as vault:
        await vault.put("one", ApiKey("new"), origins=origins)
    await refused(before)
    before = dump(server)
    async with await Vault.unseal(home) as vault:
        await vault.revoke(plugin="p")
    await refused(before)
    before = dump(server)
    killed = subprocess.run([sys.executable, "-c", KILLED, home], check=False)
    assert killed.returncode == -9
    await refused(before)
    async with await Vault.unseal(home) as vault, vault.open("one") as opened:
        assert bytes(opened.view()) == b"new"
        assert (await vault.edit("one")).origins[0].host == "b.example"
