"""What a migration does, to be killed in the middle of (run by tests.support.killer)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import keyring
import keyring.backends.fail

from apex_creds.migration import finish, on_unseal, set_aside
from apex_creds.vault import Vault
from tests.support import killer, old

keyring.set_keyring(keyring.backends.fail.Keyring())
FEW = {
    "api_keys": {"one": "v1", "two": "v2"},
    "oauth_tokens": {"one": {"access_token": "t1", "refresh_token": "r1"}},
}
NAMES = {"one": "v1", "two": "v2", "one/oauth_token": "t1"}


def migrate(home: str) -> None:
    async def run() -> None:
        vault = await Vault.unseal(home)
        await vault.list()
        killer.begin()
        report = await on_unseal(vault, environ=old.ENV)
        assert report.complete, report
        killer.acknowledge("migrated")
        killer.end()
        await vault.close()

    asyncio.run(run())


def erase(home: str) -> None:
    async def run() -> None:
        vault = await Vault.unseal(home)
        await vault.list()
        killer.begin()
        await finish(vault)
        killer.acknowledge("erased")
        killer.end()
        await vault.close()

    asyncio.run(run())


def aside(home: str) -> None:
    """An old installation at our own paths: moved, a vault made."""

    async def run() -> None:
        await set_aside(Path(home), environ=old.ENV)
        killer.acknowledge("aside")
        vault = await Vault.create(home, master=f"file:{Path(home).parent}/master.key")
        killer.acknowledge("created")
        killer.end()
        await vault.close()

    killer.begin()
    asyncio.run(run())
