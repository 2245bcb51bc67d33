"""Opens the vault behind an old manager, creates and fills it, rotates keys; the old errors.

Guarantee: a vault is made only where ``create_dirs`` says so, and an older program's files
are only moved out of its place if they open. An interval is set as policy, durably; a
rotation that returned is done. Nothing leaves a manager but the errors here, and ``ValueError``
and ``TypeError`` for arguments that are none; texts are those of this project's errors, which
hold no secret.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from apex_creds import errors
from apex_creds.errors import ConflictError, VaultExistsError, VaultNotFoundError
from apex_creds.fs.home import CREDENTIALS, SECURITY, resolve_home
from apex_creds.keys import MasterKeyProvider
from apex_creds.migration import Options, is_legacy, migrate, on_unseal_logged, set_aside
from apex_creds.migration.auto_migrate import log_problems
from apex_creds.migration.legacy_files import is_ours, read_file
from apex_creds.migration.progress import migration_document
from apex_creds.scheduler.rotation_state import (
    RotationState,
    labels_of,
    newest,
    order,
    rotation_document,
    undone,
)
from apex_creds.scheduler.schedule import DAY, Level
from apex_creds.scheduler.status import rotation_status as status_of
from apex_creds.scheduler.worker import RotationWorker
from apex_creds.storage.storage_factory import has_vault
from apex_creds.vault import Vault, unfinished

# -- the old errors -------------------------------------------------------------------------


class ApiKeyManagerError(errors.ApexCredsError):
    """Base of the old managers' errors."""


class MasterKeyError(ApiKeyManagerError):
    """The master key could not be had or used."""

    exit_code = errors.MasterKeyError.exit_code


class EncryptionError(ApiKeyManagerError):
    """What is stored does not open, or was changed."""

    exit_code = errors.IntegrityError.exit_code


class StorageError(ApiKeyManagerError):
    """What is stored could not be read or written."""

    exit_code = errors.StorageError.exit_code


_KINDS: tuple[tuple[type[errors.ApexCredsError], type[ApiKeyManagerError]], ...] = (
    (errors.MasterKeyError, MasterKeyError),
    (errors.IntegrityError, EncryptionError),
    (errors.StorageError, StorageError),
    (errors.VaultNotFoundError, StorageError),
    (errors.VaultExistsError, StorageError),
    (errors.AuditUnavailableError, StorageError),
)


@contextmanager
def translated() -> Iterator[None]:
    """Raises the old error for a new one."""
    try:
        yield
    except ApiKeyManagerError:
        raise
    except errors.ApexCredsError as error:
        found = next((old for new, old in _KINDS if isinstance(error, new)), ApiKeyManagerError)
        raise found(error.message, hint=error.hint) from None


# -- directories ----------------------------------------------------------------------------


AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the vault is, and where an older program's files may be besides.

    Attributes:
        old_keystore: The directory of an old key store, if it is not in the vault's place.
        old_credentials: The directory of its credentials, if it is not beside it.
    """

    home: Path
    old_keystore: Path | None = None
    old_credentials: Path | None = None


def places(config_dir: AnyPath | None, credentials_dir: AnyPath | None) -> Places:
    """Where everything is for a manager that was given these directories.

    ``…/security`` and ``…/credentials`` are the vault's own folders: the vault is what they
    are in. Any other directory is the vault's itself.
    """
    if config_dir is None and credentials_dir is None:
        return Places(resolve_home())
    config = None if config_dir is None else resolve_home(config_dir)
    credentials = None if credentials_dir is None else resolve_home(credentials_dir)
    home = _home_of(config, SECURITY) or _home_of(credentials, CREDENTIALS) or resolve_home()
    elsewhere = credentials if credentials not in (None, home / CREDENTIALS) else None
    in_place = config in (None, home / SECURITY)
    return Places(home, None if in_place else config, elsewhere)


def _home_of(directory: Path | None, folder: str) -> Path | None:
    if directory is None:
        return None
    return directory.parent if directory.name == folder else directory


# -- opening --------------------------------------------------------------------------------


MASTER_VARIABLE: Final = "APEX_CREDS_MASTER"
"""A URI that says where the master key is; never the key."""


async def open_vault(
    found: Places,
    *,
    create: bool,
    migrating: bool,
    master: str | MasterKeyProvider | None,
) -> Vault:
    """The unsealed vault.

    Raises:
        VaultNotFoundError: There is none, and none is to be made.
        ApexCredsError: It can't be opened or made.
    """
    chosen = master or os.environ.get(MASTER_VARIABLE) or None
    if migrating and create:
        await set_aside(found.home)
    vault = await _open_or_make(found.home, chosen, create=create)
    try:
        if migrating:
            await on_unseal_logged(vault)
            old = found.old_keystore and found.old_keystore / "keystore.enc"
            if old is not None and old.is_file() and not is_ours(read_file(old).data):
                options = Options(credentials=found.old_credentials)
                log_problems(await migrate(vault, [old], options=options))
            await take_intervals(vault)
    except BaseException:
        await vault.close()
        raise
    return vault


async def _open_or_make(
    home: Path, master: str | MasterKeyProvider | None, *, create: bool
) -> Vault:
    there = await has_vault(home)
    if not create and (not there or is_legacy(home)):
        hint = "Let it be made: create_dirs=True."
        if there:
            raise VaultNotFoundError(f"There is no vault in {home}.", hint=hint)
        raise unfinished.not_found(home, hint=hint)
    if not there:
        with suppress(VaultExistsError):  # another process was first
            return await Vault.create(home, master=master or "keyring:")
        if not await has_vault(home):
            return await Vault.create(home, master=master or "keyring:")
    return await Vault.unseal(home, master=master)


# -- rotation -------------------------------------------------------------------------------


LEVELS: Final[Mapping[str, Level]] = {
    "master_key": Level.MASTER,
    "key_encryption_keys": Level.KEK,
    "data_encryption_keys": Level.DEK,
}
"""The old names of the levels."""


async def set_intervals(vault: Vault, days: Mapping[str, float]) -> None:
    """Makes intervals, by the old names of their levels, the policy."""
    wanted = {LEVELS[name].value: count * DAY for name, count in days.items()}

    def change(state: RotationState) -> RotationState:
        changed = {
            level: replace(getattr(state.policies, level), interval=seconds)
            for level, seconds in wanted.items()
        }
        policies = replace(state.policies, **changed)
        return state if policies == state.policies else replace(state, policies=policies)

    await rotation_document(vault.store).change(change)


async def take_intervals(vault: Vault) -> None:
    """Makes the intervals of a migrated configuration the policy, once."""
    document = migration_document(vault.store)
    if vault.store.storage.change_token("migration") is None:
        return
    state = await document.read()
    if not state.intervals or state.applied:
        return
    await set_intervals(vault, state.intervals)
    await document.change(lambda found: replace(found, applied=True))


async def rotate_levels(vault: Vault, levels: Iterable[Level]) -> None:
    """Renews the keys of levels, now.

    Raises:
        ConflictError: Another worker rotates, and does what was asked for when it can.
        ApexCredsError: A step failed; what was asked for stays asked for.
    """
    engine, keystore = RotationWorker(vault).engine, await vault.store.keystore()
    wanted: dict[str, int] = {}
    for level in levels:
        wanted |= newest(keystore, level, labels_of(keystore))
    await order(engine.document, wanted)
    outcome = await engine.run()
    for failure in outcome.failed.values():
        raise failure
    if undone(await vault.store.keystore(), wanted):
        raise ConflictError(
            "Another worker rotates keys at this moment.", hint="It does this, too; wait."
        )


async def rotation_status(vault: Vault) -> dict[str, dict[str, object]]:
    """How the keys of each level are, in the old manager's form."""
    found = await status_of(RotationWorker(vault).engine)
    now = vault.clock.time()
    result: dict[str, dict[str, object]] = {}
    for name, level in LEVELS.items():
        interval = found.state.policies.of(level).interval
        days = None if interval is None else interval / DAY
        made = [x.created for x in found.lines if x.level is level and x.state == "primary"]
        last, due = max(made, default=None), found.due.get(level)
        result[name] = {
            # An int where it is one, as the old manager had it.
            "rotation_interval_days": int(days) if days is not None and days % 1 == 0 else days,
            "last_rotation": last,
            "next_rotation": due,
            "rotation_needed": due is not None and due <= now,
            "due_for_rotation": due is not None and due <= now,
            "days_since_last_rotation": None if last is None else max(0.0, (now - last) / DAY),
            "days_until_rotation": None if due is None else max(0.0, (due - now) / DAY),
        }
    return result
