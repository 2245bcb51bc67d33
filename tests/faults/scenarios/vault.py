"""What the vault does, to be killed in the middle of (run by tests.support.killer)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio.to_thread

from apex_creds.documents import grant_set, sections
from apex_creds.model import ApiKey, BasicAuth
from apex_creds.storage import file_storage
from apex_creds.vault import Vault
from apex_creds.vault.lookup import PutItem
from tests.support import killer

STORED = {"first": b"first value", "second": b"second value"}
"""What every prepared home has, in one service."""

Step = Callable[[Vault], Awaitable[object]]


def put_new(home: str) -> None:
    """The first of its section and of its service."""
    _run(home, "put", lambda vault: vault.put("new", BasicAuth("user", "new value")))


def put_again(home: str) -> None:
    _run(home, "put", lambda vault: vault.put("first", ApiKey("changed value")))


def put_in_older(home: str, master: str) -> None:
    """Into a vault that an older program made."""
    _run(home, "put", lambda v: v.put("new", ApiKey("new value")), master=master)


def put_in_service(home: str) -> None:
    _run(home, "put", lambda vault: vault.put("new", ApiKey("new value"), service="shared"))


def divide(home: str) -> None:
    """The put that makes a section large."""
    sections.LARGE, file_storage.DIVISION = len(STORED), 3  # type: ignore[misc]
    put_in_service(home)


def put_divided(home: str) -> None:
    """Several shards at once."""
    items = [PutItem(name=f"new{n}", secret=ApiKey("new value")) for n in range(4)]
    _run(home, "put", lambda vault: vault.put_many(items))


def delete(home: str) -> None:
    _run(home, "deleted", lambda vault: vault.delete("first"))


def grant(home: str) -> None:
    _run(home, "granted", lambda vault: vault.grant("plugin", "first", reveal=True))


def grant_among_many(home: str) -> None:
    """The grant that has the others divided."""
    grant_set.MANY = 2  # type: ignore[misc]
    grant(home)


def revoke(home: str) -> None:
    """Of what is in shards, with the key store's mark of it."""
    _run(home, "revoked", lambda vault: vault.revoke(plugin="plugin0"))


def create(home: str) -> None:
    async def run() -> None:
        await Vault.create(home, master=f"file:{Path(home).parent}/master.key")
        killer.acknowledge("created")

    killer.begin()
    asyncio.run(run())
    killer.end()


def _run(home: str, word: str, step: Step, *, master: str | None = None) -> None:
    async def run() -> None:
        vault = await Vault.unseal(home, master=master)
        await vault.list()
        # What the log's own thread does after unsealing is done before boundaries count.
        await anyio.to_thread.run_sync(vault.audit.sign)
        await anyio.to_thread.run_sync(vault.audit.sync)
        killer.begin()
        await step(vault)
        killer.acknowledge(word)
        killer.end()
        await vault.close()

    asyncio.run(run())
