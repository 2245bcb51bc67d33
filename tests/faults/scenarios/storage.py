"""What the storage does, to be killed in the middle of (run by tests.support.killer)."""

from __future__ import annotations

import asyncio
from pathlib import Path

from apex_creds.storage import FileStorage
from apex_creds.storage.base import Write
from tests.support import killer

OLD = bytes(range(256)) * 512
NEW = b"the new version " * 10_000
NAME = "api_keys"
OTHER = "keystore"


def replace(root: str) -> None:
    asyncio.run(_replace(root, shred=False))


def replace_and_shred(root: str) -> None:
    asyncio.run(_replace(root, shred=True))


def create(root: str) -> None:
    asyncio.run(_create(root))


def remove(root: str) -> None:
    asyncio.run(_remove(root))


def prepare(root: str) -> None:
    asyncio.run(_prepare(root))


async def _replace(root: str, *, shred: bool) -> None:
    storage = FileStorage(Path(root))
    old = await storage.read(NAME)
    assert old is not None
    killer.begin()
    await storage.write(NAME, NEW, expected=old.token, shred=shred)
    killer.acknowledge("written")


async def _create(root: str) -> None:
    storage = FileStorage(Path(root))
    killer.begin()
    await storage.write(NAME, NEW, expected=None)
    killer.acknowledge("written")


async def _remove(root: str) -> None:
    storage = FileStorage(Path(root))
    old = await storage.read(NAME)
    assert old is not None
    killer.begin()
    await storage.delete(NAME, expected=old.token, shred=True)
    killer.acknowledge("removed")


TOGETHER = {"api_keys": OLD, "keystore": b"old key store", "generic": b"goes with the others"}
"""What is there before ``together``."""
AFTER = {"api_keys_00": NEW, "api_keys_01": b"new", "keystore": b"new key store"}
"""What is there after it: replaced, made and removed in one commit."""


def together(root: str) -> None:
    asyncio.run(_together(root))


async def _together(root: str) -> None:
    storage = FileStorage(Path(root))
    old = await storage.read_many(TOGETHER)
    tokens = {name: stored.token for name, stored in old.items()}
    killer.begin()
    await storage.write_many(
        [
            Write("keystore", AFTER["keystore"], tokens["keystore"]),
            *(Write(name, None, tokens[name], remove=True) for name in ("api_keys", "generic")),
            *(Write(name, AFTER[name], None) for name in ("api_keys_00", "api_keys_01")),
        ],
        shred=True,
    )
    killer.acknowledge("written")


async def _prepare(root: str) -> None:
    storage = FileStorage(Path(root))
    killer.begin()
    await storage.prepare()
    killer.acknowledge("prepared")


def increment(root: str, times: str) -> None:
    """Not killed: counts up by compare-and-set, racing with others."""
    asyncio.run(_increment(root, int(times)))


async def _increment(root: str, times: int) -> None:
    from apex_creds.errors import ConflictError

    storage = FileStorage(Path(root))
    while times:
        stored = await storage.read(NAME)
        assert stored is not None
        number = int(stored.data) + 1
        try:
            await storage.write(NAME, b"%d" % number, expected=stored.token)
        except ConflictError:
            continue
        times -= 1


def churn(root: str, times: str) -> None:
    """Not killed: replaces and shreds, each version all of one letter."""
    asyncio.run(_churn(root, int(times)))


async def _churn(root: str, times: int) -> None:
    storage = FileStorage(Path(root))
    stored = await storage.read(NAME)
    assert stored is not None
    token = stored.token
    for number in range(times):
        data = bytes([65 + number % 26]) * 300_000
        token = (await storage.write(NAME, data, expected=token, shred=True)).token
