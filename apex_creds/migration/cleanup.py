"""What becomes of old files: moved aside, renamed to ``.bak``, later erased.

Guarantee: a file is renamed only after every entry is safe and only while it still is what
was read; it is erased only on request, or at the time that was set for it.
Each step is recorded before it is taken, and taken again after a crash. What lies at the paths
of this project's own is moved only if its key store opens under an old master key, which a
document of this project, however damaged, can't; the key store goes last, so that after a
crash the next call sees what it has to go on with.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import anyio.to_thread
from msgspec.structs import replace

from apex_creds.errors import ConflictError, UnsafePathError, VaultExistsError
from apex_creds.fs.home import AUDIT, CREDENTIALS, SECURITY
from apex_creds.fs.lock import WriteLock
from apex_creds.fs.private_files import Folder, make_directory, sync_directory, translated
from apex_creds.migration.legacy_files import (
    KEYSTORE_FILE,
    LEGACY,
    erase,
    exclusive,
    free_name,
    is_legacy,
    is_ours,
    move,
    present,
    read_file,
)
from apex_creds.migration.legacy_readers import find_masters, open_keystore
from apex_creds.migration.progress import (
    Backup,
    MigrationState,
    Phase,
    SourceState,
    migration_document,
)
from apex_creds.migration.sources import CONFIG_FILE, Source, section_paths
from apex_creds.storage.base import Shredded
from apex_creds.vault import Vault

# -- backups --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Erased:
    """A file that is gone, and what could be verified of its bytes; ``no``: it was gone."""

    path: str
    shredded: Shredded


async def record(vault: Vault, source: SourceState) -> SourceState:
    """Commits the state of a source."""
    stamped = replace(source, changed=vault.clock.time())
    document = migration_document(vault.store)
    await document.change(lambda state: state.with_source(stamped))
    return stamped


async def retire(vault: Vault, source: Source, state: SourceState) -> SourceState:
    """Gives a source's files their ``.bak`` names.

    Raises:
        ConflictError: A file was changed since it was read; nothing is renamed then.
        StorageError: A file can't be renamed.
    """

    def named() -> tuple[Backup, ...]:
        for file in source.files:
            if read_file(file.path).digest != file.digest:
                raise _changed(file.path)
        return tuple(
            Backup(str(file.path), str(free_name(file.path)), file.digest)
            for file in source.files
        )

    backups = await anyio.to_thread.run_sync(named)
    state = await record(vault, replace(state, phase=Phase.COPIED, backups=backups))
    return await rename(vault, state)


async def rename(vault: Vault, state: SourceState) -> SourceState:
    """The renaming of a source that is ``COPIED``; also after a crash.

    Raises:
        ConflictError: A file was changed since it was read.
        StorageError: A file can't be renamed.
    """

    def move_all() -> None:
        """All of them or none: a file of credentials is nothing without its key store."""
        moved: list[Backup] = []
        for item in state.backups:
            path, backup = Path(item.path), Path(item.backup)
            if not (present(backup) and read_file(backup).digest == item.digest):
                move(path, backup)
            moved.append(item)
            if present(backup) and read_file(backup).digest != item.digest:
                for other in reversed(moved):  # written to since it was read
                    move(Path(other.backup), Path(other.path))
                raise _changed(path)

    try:
        await anyio.to_thread.run_sync(move_all)
    except ConflictError:
        await record(vault, replace(state, phase=Phase.COPYING, backups=()))
        raise
    return await record(vault, replace(state, phase=Phase.BACKED_UP))


async def finish(vault: Vault, *, wait: float = 10.0) -> list[Erased]:
    """Erases the ``.bak`` files, but for those in which something could not be read.

    Args:
        vault: The vault that has what was in them.
        wait: Seconds to wait for another process that migrates.

    Raises:
        StorageLockedError: Another process is migrating.
        ConflictError: One is not what was backed up; it is left.
        IntegrityError: The vault itself is damaged; nothing is erased.
    """
    async with exclusive(vault.home, wait=wait):
        return await erase_backups(vault)


async def erase_backups(vault: Vault, *, due_only: bool = False) -> list[Erased]:
    """As ``finish``, for a caller that holds the migration lock.

    Args:
        vault: The vault that has what was in them.
        due_only: Only those whose time has come.

    Raises:
        ConflictError: One is not what was backed up; it is left.
        IntegrityError: The vault itself is damaged; nothing is erased.
    """
    await vault.refresh()  # every section is there and whole, or nothing is erased
    state = await migration_document(vault.store).read()
    erased: list[Erased] = []
    for source in state.sources:
        if source.phase is Phase.ERASING or (
            source.erasable and (not due_only or is_due(source, vault))
        ):
            await anyio.to_thread.run_sync(_check_backups, source)
            erasing = await record(vault, replace(source, phase=Phase.ERASING))
            for item in source.backups:
                how = await anyio.to_thread.run_sync(erase, Path(item.backup))
                erased.append(Erased(item.backup, how))
            await record(vault, replace(erasing, phase=Phase.DONE, written=(), backups=()))
    return erased


def is_due(source: SourceState, vault: Vault) -> bool:
    """Whether the time has come at which a source is erased."""
    return source.erase_at is not None and source.erase_at <= vault.clock.time()


def withheld(state: MigrationState) -> Sequence[SourceState]:
    """The sources whose backups are not erased, since they hold what could not be read."""
    return [s for s in state.sources if s.phase is Phase.BACKED_UP and not s.erasable]


def imported(state: MigrationState) -> Sequence[SourceState]:
    """The sources of which everything is in the vault, though they still lie there."""
    return [s for s in state.sources if s.phase in (Phase.COPIED, Phase.LEFT)]


def _check_backups(source: SourceState) -> None:
    for item in source.backups:
        path = Path(item.backup)
        if not present(path):
            continue
        file = read_file(path)
        begun = source.phase is Phase.ERASING and file.data[:1] in (b"", b"\0")
        if file.digest != item.digest and not begun:
            raise ConflictError(
                f"{path} is not the file that was backed up.",
                hint="It was left as it is. Check it, and remove it yourself.",
            )


def _changed(path: Path) -> ConflictError:
    return ConflictError(
        f"{path} was changed while it was migrated.",
        hint="Stop the program that writes it, and run: apex-creds migrate",
    )


# -- moved aside ----------------------------------------------------------------------------


_SECONDS: Final = 10.0


async def set_aside(home: Path, *, environ: Mapping[str, str] | None = None) -> bool:
    """Moves the files of the SecretBox format into ``legacy/``; to be called before ``init``.

    Args:
        home: The vault's directory.
        environ: Instead of the process's environment, for the old master key.

    Returns:
        Whether there were any.

    Raises:
        DecryptionError: The key store does not open; nothing was moved.
        VaultExistsError: Files of a vault of this project lie among them.
        StorageError: They can't be read or moved.
    """
    if not await anyio.to_thread.run_sync(is_legacy, home):
        return False
    keys = (await find_masters(environ)).keys
    return await anyio.to_thread.run_sync(partial(_set_aside, home, keys))


def _set_aside(home: Path, keys: tuple[bytes, ...]) -> bool:
    with (
        translated(home, writing=True),
        Folder(home, outer=True) as root,
        Folder(home / SECURITY, within=root) as security,
        WriteLock(timeout=_SECONDS).held(security),
    ):
        if not is_legacy(home):
            return False  # another process was first
        keystore = home / SECURITY / KEYSTORE_FILE
        open_keystore(read_file(keystore).data, keys)
        # A vault whose key store was replaced by an old one is not to be taken apart.
        remains = list((home / SECURITY / AUDIT).glob("*.jsonl"))
        sections = section_paths(home / CREDENTIALS)
        remains += [path for path in sections if (d := read_file(path).data) and is_ours(d)]
        if remains:
            raise VaultExistsError(
                f"The key store is an old program's, but {remains[0]} is of a vault.",
                hint="Restore security/keystore.enc from a backup, or choose another "
                "directory.",
            )
        folder = home / LEGACY
        if not os.path.lexists(folder):
            make_directory(folder)
            sync_directory(home)
        if folder.is_symlink() or not folder.is_dir():
            raise UnsafePathError(f"{folder} is not a directory.", hint="Move it away.")
        for path in (*sections, *section_paths(home / SECURITY)):
            move(path, folder / path.name)
        move(home / SECURITY / CONFIG_FILE, folder / CONFIG_FILE)
        move(keystore, folder / KEYSTORE_FILE)
    return True
