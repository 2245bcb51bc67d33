"""The vault behind a manager: found, or made, and filled from what older programs left.

Guarantee: a vault is made only where ``create_dirs`` says so, and an older program's files
are only moved out of its place if they open.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from apex_creds.compat.places import Places
from apex_creds.compat.rotation import take_intervals
from apex_creds.errors import VaultNotFoundError
from apex_creds.keys import MasterKeyProvider
from apex_creds.keys.hierarchy import KEYSTORE
from apex_creds.migration import Options, look, migrate, set_aside
from apex_creds.migration.detect import is_ours
from apex_creds.migration.files import read_file
from apex_creds.migration.hook import tell
from apex_creds.storage.file import FileStorage
from apex_creds.vault import Vault

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
    if FileStorage(found.home).change_token(KEYSTORE) is not None:
        vault = await Vault.unseal(found.home, master=chosen)
    elif create:
        vault = await Vault.create(found.home, master=chosen or "keyring:")
    else:
        raise VaultNotFoundError(
            f"There is no vault in {found.home}.", hint="Let it be made: create_dirs=True."
        )
    try:
        if migrating:
            await _migrate(vault, found)
    except BaseException:
        await vault.close()
        raise
    return vault


async def _migrate(vault: Vault, found: Places) -> None:
    await look(vault)
    place = found.old_keystore
    if place is not None and _has_old_keystore(place):
        options = Options(credentials=found.old_credentials)
        tell(await migrate(vault, [place / "keystore.enc"], options=options))
    await take_intervals(vault)


def _has_old_keystore(place: Path) -> bool:
    path = place / "keystore.enc"
    return path.is_file() and not is_ours(read_file(path).data)
