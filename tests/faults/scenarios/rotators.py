"""A secret replaced at its provider, to be killed in the middle of (run by the killer)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import anyio.to_thread

from apex_creds import CredentialHandle
from apex_creds.middleware import CredentialMiddleware
from apex_creds.rotators import Rotations
from apex_creds.vault import Vault
from tests.support import killer
from tests.support.worlds import manifest_for


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


def lease(home: str) -> None:
    """An invocation with a login that is made on demand."""

    async def plugin(*, credentials: Mapping[str, CredentialHandle]) -> None:
        async with credentials["db"].reveal(part="user") as secret:
            killer.acknowledge(secret.expose_bytes().decode())

    async def run() -> None:
        vault = await Vault.unseal(home)
        middleware = CredentialMiddleware(vault, harden=False)
        await vault.list()
        await anyio.to_thread.run_sync(vault.audit.sign)
        await anyio.to_thread.run_sync(vault.audit.sync)
        killer.begin()
        await middleware.invoke(manifest_for("db"), plugin)
        await middleware.close()
        killer.acknowledge("ended")
        killer.end()
        await vault.close()

    asyncio.run(run())
