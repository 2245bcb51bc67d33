"""A backup put in the place of the vault.

Guarantee: nothing is replaced before the copy was opened whole, with its signature, every
MAC, generation and record, and its log. What was there is kept aside. A crash leaves the
old vault, or the new one, or none at all (with both aside, and the backup untouched), never
a mixture; the same command then finishes. That an older state was put back on purpose is
recorded in the log before anything else is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from apex_creds.admin import archive
from apex_creds.admin.backup import (
    MANIFEST,
    Manifest,
    check_signature,
    examine,
    files_of,
    read_manifest,
    unsealed,
)
from apex_creds.audit.events import EventKind
from apex_creds.audit.verify import in_use
from apex_creds.errors import CorruptDocumentError, StorageError
from apex_creds.fs.home import CREDENTIALS, SECURITY, audit_directory
from apex_creds.fs.private_files import Folder, make_directory, remove_tree, translated
from apex_creds.keys import MasterKeyProvider
from apex_creds.model import Clock
from apex_creds.policy.display import show_time
from apex_creds.storage.change_counter import ChangeCounter
from apex_creds.storage.file_storage import FileStorage
from apex_creds.vault import create, credential_writes, unfinished
from apex_creds.vault.unfinished import ASIDE, STAGE
from apex_creds.vault.vault import Vault

__all__ = ["Restored", "check_copy", "install", "mark_rotations_uncertain", "record", "staged"]


@dataclass(frozen=True, slots=True)
class Restored:
    """What was put in place, and where what was there is now, if anything was."""

    manifest: Manifest
    aside: Path | None


@contextmanager
def staged(source: Path, home: Path) -> Iterator[Path]:
    """A private copy of a backup, on the vault's disk; removed afterwards.

    Args:
        source: A directory or a tar file that ``backup`` made.
        home: The vault's directory; made 0700 when absent.

    Raises:
        StorageLockedError: Another restore is going on.
        IntegrityError: It is no backup.
        StorageError: It can't be read safely, or there is no room for it.
    """
    with unfinished.alone(home):
        unfinished.sweep(home)
        stage = home / f"{STAGE}-{os.urandom(6).hex()}"
        with translated(home, writing=True):
            make_directory(stage)
        try:
            archive.unpack(source, stage)
            yield stage
        finally:
            remove_tree(stage)


async def check_copy(stage: Path, *, provider: MasterKeyProvider, clock: Clock) -> Manifest:
    """Opens a staged copy, and compares it with its signed manifest.

    Raises:
        MasterKeyError: Its master key can't be had.
        IntegrityError: It is not what the vault put into it.
        AuditTamperedError: Its log does not verify.
    """
    await check_signature(stage, provider=provider, clock=clock)
    manifest, _, _ = read_manifest(stage)
    files = await anyio.to_thread.run_sync(files_of, stage)
    wrong = sorted(files.keys() ^ {*manifest.files, MANIFEST}) or [
        name for name, expected in manifest.files.items() if files[name] != expected
    ]
    if wrong:
        raise CorruptDocumentError(
            f"The backup is not whole: {wrong[0]} is missing, altered, or does not belong.",
            hint="Nothing was replaced. Use another backup.",
        )
    found = await examine(FileStorage(stage), provider=provider, clock=clock)
    if found != manifest.contents:
        raise CorruptDocumentError(
            "The backup holds something else than its manifest says.", hint="Use another one."
        )
    return manifest


async def mark_rotations_uncertain(
    stage: Path, *, provider: MasterKeyProvider, clock: Clock
) -> None:
    """Leaves to a person how rotations at providers go on, before a copy is the vault.

    Raises:
        ApexCredsError: What opening it raises.
    """
    storage = FileStorage(stage)
    async with unsealed(storage, provider, clock) as (store, keystore):
        create.map_names(storage, keystore)
        await credential_writes.mark_rotations_uncertain(store)


def install(stage: Path, home: Path, *, force: bool = False) -> Path | None:
    """Puts a copy that was checked in the place of the vault.

    The directory with the key store goes first and comes last: in between there is no
    vault, rather than one of two halves. Where that fails, what was there is put back.

    Args:
        stage: Inside ``home``.
        home: The vault's directory; what else is in it stays.
        force: Even if a process has the vault open.

    Returns:
        Where what was there is now; None if there was nothing.

    Raises:
        StorageError: A process has the vault open, or it can't be moved.
    """
    audit = audit_directory(home)
    with translated(audit):
        has_log = audit.is_dir()
    if not force and has_log and in_use(audit):
        raise StorageError(
            "A process has the vault open.", hint="End it first, or use --force."
        )
    with translated(home, writing=True):
        for name in (CREDENTIALS, SECURITY):
            for own in (".lock", ".epoch"):
                (stage / name / own).unlink(missing_ok=True)
        aside = None
        if any(os.path.lexists(home / name) for name in (SECURITY, CREDENTIALS)):
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            aside = home / f"{ASIDE}-{stamp}-{os.urandom(2).hex()}"
            make_directory(aside)
        try:
            for name in (SECURITY, CREDENTIALS):
                _move(name, home, aside)
            for name in (CREDENTIALS, SECURITY):
                _move(name, stage, home)
        except (OSError, StorageError):
            _put_back(stage, home, aside)
            raise
        if aside is not None and (aside / SECURITY).is_dir():
            # Who has the vault open watches the counter of what was there.
            with contextlib.suppress(OSError, StorageError), Folder(aside / SECURITY) as old:
                counter = ChangeCounter()
                with contextlib.ExitStack() as ended:
                    ended.callback(counter.detach)
                    counter.attach(old, write=True)
                    with counter.moving():
                        pass
    return aside


def _move(name: str, source: Path, target: Path | None) -> None:
    if target is None or not os.path.lexists(source / name):
        return
    os.rename(source / name, target / name)
    _sync(target)
    _sync(source)


def _put_back(stage: Path, home: Path, aside: Path | None) -> None:
    """As it was before, as far as that can be done; else as after a crash."""
    with contextlib.suppress(OSError, StorageError):
        for name in (SECURITY, CREDENTIALS):
            if not os.path.lexists(stage / name):
                os.rename(home / name, stage / name)
        if aside is not None:
            for name in (CREDENTIALS, SECURITY):
                if os.path.lexists(aside / name):
                    os.rename(aside / name, home / name)
            aside.rmdir()
        _sync(home)


def _sync(folder: Path) -> None:
    with Folder(folder) as opened:
        opened.sync()


async def record(
    home: Path, manifest: Manifest, *, provider: MasterKeyProvider, reason: str, clock: Clock
) -> None:
    """Unseals the restored vault, and records in its log that it is one.

    Raises:
        ApexCredsError: What unsealing raises.
    """
    made = show_time(manifest.made)
    why = f"restored from a backup of {made}: {reason}"
    async with await Vault.unseal(
        home, master=provider, accept_rollback=why, clock=clock
    ) as vault:
        vault.record(
            EventKind.BACKUP,
            action="restore",
            reason=reason,
            detail=f"a backup of {made}, {manifest.contents.events} events",
        )
