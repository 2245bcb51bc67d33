"""One of many processes that use a vault in a database: a program, see ``many_processes``.

``python -m tests.e2e.many_worker HOME INDEX NUMBER``: opens the vault of HOME and does
random things, saying each before and after it on its standard output, one JSON array a
line, until its standard input says ``calm`` and then ``end``.

Every other process is deaf: it loses all notifications, and looks only where it has to.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from apex_creds.errors import AccessDeniedError, ApexCredsError, StorageError
from apex_creds.leases.broker import find_open
from apex_creds.leases.handle import CredentialHandle
from apex_creds.middleware import CredentialMiddleware
from apex_creds.model import ApiKey
from apex_creds.policy.manifest import Manifest, parse_manifest
from apex_creds.scheduler.compromise import declare
from apex_creds.scheduler.rotation_state import labels_of, newest, order, rotation_document
from apex_creds.scheduler.schedule import Level
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.storage.sql_storage import SqlStorage
from apex_creds.vault import Vault

PROCESSES: Final = 8
NAMES: Final = 3
PLUGIN: Final = "acme-plugin-canary"
GUEST: Final = "acme-guest-canary"
GATE: Final = "acme-gate-canary"
SECRET: Final = "acme-secret-canary"


def name_of(owner: int, number: int) -> str:
    return f"acme-credential-canary-{owner}-{number}"


def service_of(number: int) -> str:
    return f"acme-service-canary-{number}"


def is_deaf(index: int) -> bool:
    return index % 2 == 1


def say(*what: object) -> None:
    os.write(1, json.dumps([time.monotonic(), *what]).encode() + b"\n")


def manifest(plugin: str, credential: str) -> Manifest:
    need = {"name": credential, "access": "reveal"}
    return parse_manifest({"id": plugin, "version": "1.0.0", "credentials": [need]})


class Worker:
    """What the process does; ``number`` grows with each process that has the home."""

    def __init__(self, vault: Vault, middleware: CredentialMiddleware, index: int, number: int):
        self.vault, self.middleware, self.index = vault, middleware, index
        self.random = random.Random(f"{index} {number}")
        self.seq = 1000 * number
        self.calm = anyio.Event()
        self.end = anyio.Event()

    async def run(self) -> None:
        say("ready")
        async with anyio.create_task_group() as group:
            group.start_soon(self.listen)
            if not is_deaf(self.index):
                group.start_soon(self.hold)
            while not self.calm.is_set():
                await self.act()
            say("calm")

    async def listen(self) -> None:
        for said in (self.calm, self.end):
            await to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
            said.set()

    async def act(self) -> None:
        actions = [self.put] * 5 + [self.redeem] * 10 + [self.guest] * 6 + [self.delete]
        actions += [self.rotate, self.compromise]
        if self.index == 0:
            actions += [self.permit] * 3
        action = self.random.choice(actions)
        try:
            await action()
        except StorageError as error:  # the server is away, or others were quicker
            say("failed", action.__name__, type(error).__name__)
            await anyio.sleep(0.05)

    # -- the own credentials -------------------------------------------------------

    async def put(self) -> None:
        number = self.random.randrange(NAMES)
        name, self.seq = name_of(self.index, number), self.seq + 1
        secret = ApiKey(f"{SECRET}-{name}-{self.seq}")
        say("write", name, self.seq)
        await self.vault.put(name, secret, service=service_of(number))
        say("wrote", name, self.seq)

    async def delete(self) -> None:
        name, self.seq = name_of(self.index, self.random.randrange(NAMES)), self.seq + 1
        try:
            await self.vault.get(name)
        except ApexCredsError:
            return
        say("write", name, -self.seq)
        await self.vault.delete(name)
        say("wrote", name, -self.seq)

    # -- everybody's ------------------------------------------------------------------

    async def redeem(self) -> None:
        name = name_of(self.random.randrange(PROCESSES), self.random.randrange(NAMES))
        await self.use(PLUGIN, name)

    async def guest(self) -> None:
        await self.use(GUEST, GATE)

    async def use(self, plugin: str, name: str) -> None:
        began, shared = time.monotonic(), self.vault.store.shared
        assert shared is not None
        found = 0

        async def reads(credentials: dict[str, CredentialHandle]) -> None:
            nonlocal found
            async with credentials[name].reveal() as secret:
                found = int(bytes(secret.view()).rpartition(b"-")[2])

        stale = shared.stale_for()
        with contextlib.suppress(AccessDeniedError):
            await self.middleware.invoke(manifest(plugin, name), reads)
        say("read", plugin, name, found, began, max(stale, shared.stale_for()))

    async def hold(self) -> None:
        """Has a lease for as long as it is not revoked."""
        while not self.end.is_set():
            with contextlib.suppress(AccessDeniedError, StorageError):
                await self.middleware.invoke(manifest(GUEST, GATE), self.held)
            await anyio.sleep(0.02)

    async def held(self, credentials: dict[str, CredentialHandle]) -> None:
        lease = find_open(credentials[GATE]._id)[0]
        say("hold", lease.id)
        while lease.ended is None:
            await anyio.sleep(0.02)
        say("held", lease.id)

    async def permit(self) -> None:
        """Only one process decides on the guest: yes and no in turn."""
        if (await self.vault.grants()).find(GUEST, GATE) is None:
            say("grant")
            await self.vault.grant(GUEST, GATE, reveal=True)
            say("granted")
        else:
            say("revoke")
            await self.vault.revoke(plugin=GUEST)
            say("revoked")

    # -- keys -----------------------------------------------------------------------

    async def rotate(self) -> None:
        level = self.random.choice([Level.DEK, Level.DEK, Level.KEK])
        keystore = await self.vault.store.keystore()
        wanted = newest(keystore, level, labels_of(keystore))
        await order(rotation_document(self.vault.store), wanted)
        worker = RotationWorker(self.vault)
        say("rotate", level.value)
        try:
            outcome = await worker.run_once()
        finally:
            with contextlib.suppress(StorageError):
                await worker.engine.release()
        say("rotated", level.value, outcome.waiting, [str(e) for e in outcome.failed.values()])

    async def compromise(self) -> None:
        document = rotation_document(self.vault.store)
        await declare(self.vault.store, document, level=Level.DEK)


@contextlib.asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Vault]:
    """The vault, as soon as its server answers."""
    while True:
        try:
            vault = await Vault.unseal(home)
            break
        except StorageError as error:
            say("failed", "unseal", type(error).__name__)
            await anyio.sleep(0.1)
    try:
        yield vault
    finally:
        await vault.close()


async def main(home: str, index: str, number: str) -> None:
    if is_deaf(int(index)):
        SqlStorage._on_notify = lambda _: None  # type: ignore[method-assign]
    async with opened(Path(home)) as vault, CredentialMiddleware(vault) as middleware:
        await Worker(vault, middleware, int(index), int(number)).run()
    say("closed")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
