"""What takes something away, to be killed in the middle of."""

from __future__ import annotations

import asyncio

from apex_creds.model import ApiKey
from apex_creds.vault import Vault
from tests.support import killer


def revoke(home: str) -> None:
    """A write that waits for its checkpoint, then a revocation that does not."""

    async def run() -> None:
        vault = await Vault.unseal(home)
        killer.begin()
        await vault.put("c", ApiKey("new"))
        killer.acknowledge("put")
        await vault.revoke(plugin="p")
        killer.acknowledge("revoked")
        killer.end()
        await vault.close()

    asyncio.run(run())
