"""A vault with two credentials, a middleware, and what must be back to nothing after."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from apex_creds import ApiKey, CredentialMiddleware, Vault
from apex_creds.crypto.memory import arena

SECRET = "sk-integration-0123456789"
OTHER = "ghp-other-9876543210"


@dataclass
class World:
    vault: Vault
    middleware: CredentialMiddleware

    def events(self, kind: str | None = None) -> list:
        from apex_creds.audit.verify import read

        self.vault.audit.sync()
        found = read(self.directory, vault_id=self.vault.vault_id)
        return [event for event in found if kind in (None, event.kind.value)]

    directory: Path = Path()

    @property
    def left(self) -> tuple[int, int, int, list[str]]:
        gc.collect()
        return (
            self.middleware.broker.open_leases,
            arena().open_slots,
            len(asyncio.all_tasks()),
            sorted(each.name for each in threading.enumerate() if not _pooled(each)),
        )


def _pooled(thread: threading.Thread) -> bool:
    """Whether it belongs to a pool, that of anyio or asyncio: those grow when they like."""
    return thread.name.startswith(("AnyIO worker", "asyncio_"))


@pytest.fixture
async def world(fresh_home: Path, anyio_backend: str) -> AsyncIterator[World]:
    home = fresh_home / "apex"
    async with await Vault.create(home, master=f"file:{fresh_home}/master") as vault:
        await vault.put("openai", ApiKey(SECRET), origins=["https://api.openai.com"])
        await vault.put("github", ApiKey(OTHER), origins=["https://api.github.com"])
        for plugin in ("demo", "outer"):
            await vault.grant(plugin, "openai", reveal=True)
        await vault.grant("inner", "github", reveal=True)
        async with CredentialMiddleware(vault) as middleware:
            yield World(vault, middleware, home / "security" / "audit")
