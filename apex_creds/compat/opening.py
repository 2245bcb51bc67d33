"""The vault behind a manager: found, or made, and filled from what older programs left.

Guarantee: a vault is made only where ``create_dirs`` says so, and an older program's files
are only moved out of its place if they open.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from apex_creds.compat.places import Places
from apex_creds.compat.rotation import take_intervals
from apex_creds.errors import VaultExistsError, VaultNotFoundError
from apex_creds.keys import MasterKeyProvider
from apex_creds.migration import Options, is_legacy, migrate, on_unseal_logged, set_aside
from apex_creds.migration.auto_migrate import log_problems
from apex_creds.migration.legacy_files import is_ours, read_file
from apex_creds.storage.storage_factory import has_vault
from apex_creds.vault import Vault, remains

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
            await _migrate(vault, found)
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
        raise remains.not_found(home, hint=hint)
    if not there:
        with suppress(VaultExistsError):  # another process was first
            return await Vault.create(home, master=master or "keyring:")
        if not await has_vault(home):
            return await Vault.create(home, master=master or "keyring:")
    return await Vault.unseal(home, master=master)


async def _migrate(vault: Vault, found: Places) -> None:
    await on_unseal_logged(vault)
    place = found.old_keystore
    if place is not None and _has_old_keystore(place):
        options = Options(credentials=found.old_credentials)
        log_problems(await migrate(vault, [place / "keystore.enc"], options=options))
    await take_intervals(vault)


def _has_old_keystore(place: Path) -> bool:
    path = place / "keystore.enc"
    return path.is_file() and not is_ours(read_file(path).data)
