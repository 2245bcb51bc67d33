"""A refresh, to be killed in the middle of (run by tests.support.killer)."""

from __future__ import annotations

import asyncio

import anyio.to_thread

from apex_creds.oauth import Refresher
from apex_creds.vault import Vault
from tests.support import killer


def refresh(home: str) -> None:
    async def run() -> None:
        vault = await Vault.unseal(home)
        await vault.list()
        await anyio.to_thread.run_sync(vault.audit.sign)
        await anyio.to_thread.run_sync(vault.audit.sync)
        killer.begin()
        await Refresher(vault).ensure("calendar")
        killer.acknowledge("refreshed")
        killer.end()
        await vault.close()

    asyncio.run(run())
