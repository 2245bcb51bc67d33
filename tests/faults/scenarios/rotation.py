"""Rotations of each level, to be killed in the middle of (run by tests.support.killer)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apex_creds.model import ApiKey, GenericSecret
from apex_creds.scheduler.compromise import declare
from apex_creds.scheduler.engine import Engine
from apex_creds.scheduler.rotation_state import (
    RotationState,
    labels_of,
    newest,
    rotation_document,
)
from apex_creds.scheduler.schedule import Level, LevelPolicy, Policies
from apex_creds.vault import Vault
from tests.support import killer

SCENARIOS = (*(level.value for level in Level), "compromise")


def kek(home: str) -> None:
    asyncio.run(rotate(home, Level.KEK))


def dek(home: str) -> None:
    asyncio.run(rotate(home, Level.DEK))


def master(home: str) -> None:
    asyncio.run(rotate(home, Level.MASTER))


def compromise(home: str) -> None:
    """Of the KEK, so that it, the documents' key and every DEK are renewed."""
    asyncio.run(rotate(home, Level.KEK, compromised=True))


def make(home: str, master: str) -> None:
    asyncio.run(fill(Path(home), master))


async def fill(home: Path, master: str) -> None:
    """A vault with one service that has two credentials, and one that has one."""
    async with await Vault.create(home, master=master) as vault:
        await vault.put("first", ApiKey("first value"), service="shared")
        await vault.put("second", ApiKey("second value"), service="shared")
        await vault.put("third", GenericSecret(b"third value"))


async def rotate(home: str, level: Level, *, compromised: bool = False) -> None:
    vault = await Vault.unseal(home)
    await vault.list()
    killer.begin()
    with counted_keyring():
        await finish(vault, level, compromised=compromised)
    killer.acknowledge("rotated")
    killer.end()
    await vault.close()


async def finish(vault: Vault, level: Level, *, compromised: bool) -> None:
    """Requests the rotation, and does all of it, the destruction of the old keys too."""
    document = rotation_document(vault.store)
    never = LevelPolicy(interval=None, grace=0.0)
    quiet = Policies(master=never, kek=never, dek=never)
    keystore = await vault.store.keystore()
    wanted = {} if compromised else newest(keystore, level, labels_of(keystore))
    await document.change(lambda _: RotationState(policies=quiet, renew=wanted))
    if compromised:
        await declare(vault.store, document, level=level)
    await engine(vault).run(lease=False)


def engine(vault: Vault) -> Engine:
    document = rotation_document(vault.store)
    return Engine(vault.store, document, next_fire=lambda *_: None)


@contextmanager
def counted_keyring() -> Iterator[None]:
    """Sets and deletions of the OS keyring are boundaries like writes."""
    from apex_creds.keys import os_keyring

    real_set, real_delete = os_keyring._set, os_keyring._delete

    def set_(backend: object, entry: str, text: bytearray) -> None:
        killer._pass("keyring.set", entry, lambda: real_set(backend, entry, text))

    def delete(backend: object, entry: str) -> None:
        killer._pass("keyring.delete", entry, lambda: real_delete(backend, entry))

    os_keyring._set, os_keyring._delete = set_, delete
    try:
        yield
    finally:
        os_keyring._set, os_keyring._delete = real_set, real_delete
