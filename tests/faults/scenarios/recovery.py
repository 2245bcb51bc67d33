"""A lost master key restored and reset, a backup made and restored; to be killed in them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from apex_creds.admin import master_recovery, restore
from apex_creds.admin.backup import backup
from apex_creds.crypto.memory import SecretBytes
from apex_creds.documents.keystore import root_header
from apex_creds.keys import provider_from_uri
from apex_creds.keys.provider import hold
from apex_creds.keys.shares import combine, parse_share
from apex_creds.model import SystemClock
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import Vault
from tests.faults.scenarios.rotation import counted_keyring
from tests.support import killer


def restore_key(home: str, master: str, shares: str) -> None:
    asyncio.run(_restore_key(Path(home), master, Path(shares)))


def reset_master(home: str, master: str, shares: str) -> None:
    asyncio.run(_reset(Path(home), master, Path(shares)))


def make_backup(home: str, master: str, destination: str) -> None:
    asyncio.run(_backup(Path(home), master, Path(destination)))


def restore_backup(home: str, master: str, source: str) -> None:
    killer.begin()
    restored(Path(home), master, Path(source))
    killer.acknowledge("restored")


def key_of(shares: Path) -> SecretBytes:
    return combine([parse_share(line) for line in shares.read_text().splitlines()])


async def _restore_key(home: Path, master: str, shares: Path) -> None:
    storage, provider = FileStorage(home), provider_from_uri(master)
    _, data = await master_recovery.read_root(storage)
    await storage.close()
    with key_of(shares) as key:
        killer.begin()
        with counted_keyring():
            await master_recovery.restore_key(key, data, provider)
        async with await Vault.unseal(home, master=provider) as vault:
            await master_recovery.note_provider(vault, provider)
    killer.acknowledge("restored")


async def _reset(home: Path, master: str, shares: Path) -> None:
    storage, provider = FileStorage(home), provider_from_uri(master)
    header, _ = await master_recovery.read_root(storage)
    await storage.close()
    lost = root_header(header).master
    if await master_recovery.has_key(provider, header):
        killer.acknowledge("nothing to reset")
        return
    with key_of(shares) as key:
        held = hold(provider, version=lost.version, key=key)
        killer.begin()
        with counted_keyring():
            async with await Vault.unseal(home, master=held) as vault:
                await master_recovery.reset_master(vault, lost=lost)
    killer.acknowledge("reset")


async def _backup(home: Path, master: str, destination: Path) -> None:
    async with await Vault.unseal(home) as vault:
        killer.begin()
        await backup(vault, destination, provider=provider_from_uri(master))
        killer.acknowledge("made")
        killer.end()


def restored(home: Path, master: str, source: Path) -> None:
    """What the command does."""
    provider, clock = provider_from_uri(master), SystemClock()
    with restore.staged(source, home) as stage:

        async def check() -> object:
            return await restore.check_copy(stage, provider=provider, clock=clock)

        manifest = asyncio.run(check())
        restore.install(stage, home)
        asyncio.run(
            restore.record(home, manifest, provider=provider, reason="test", clock=clock)
        )
