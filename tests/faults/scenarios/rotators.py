"""A secret replaced at its provider, to be killed in the middle of (run by the killer)."""

from __future__ import annotations

import asyncio

import anyio.to_thread

from apex_creds.rotators import Rotations
from apex_creds.vault import Vault
from tests.support import killer


def rotate(home: str) -> None:
    async def run() -> None:
        vault = await Vault.unseal(home)
        await vault.list()
        await anyio.to_thread.run_sync(vault.audit.sign)
        await anyio.to_thread.run_sync(vault.audit.sync)
        killer.begin()
        rotations = Rotations(vault)
        await rotations.ask("db", by_hand=True)
        killer.acknowledge("asked")
        await rotations.advance("db")
        killer.acknowledge("rotated")
        killer.end()
        await vault.close()

    asyncio.run(run())
