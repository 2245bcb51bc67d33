"""From the settings of a command to an unsealed vault, and back to sealed.

Guarantee: a passphrase is asked for before the event loop runs, so that Ctrl-C at the
prompt ends the program with the terminal as it was; it is asked for only where there is a
vault to open (or to make).
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio

from apex_creds.cli import automatic
from apex_creds.cli.options import Settings
from apex_creds.documents.document import Header, parse
from apex_creds.documents.keystore import refuse_own, root_header
from apex_creds.errors import VaultNotFoundError
from apex_creds.fs.home import resolve_home
from apex_creds.keys import MasterKeyProvider, Prompt, provider_from_uri
from apex_creds.keys.hierarchy import KEYSTORE
from apex_creds.keys.passphrase import terminal_prompt
from apex_creds.migration.beside import is_legacy
from apex_creds.storage.file_storage import FileStorage
from apex_creds.storage.storage_factory import storage_for
from apex_creds.vault import Vault, remains

T = TypeVar("T")

PASSPHRASE = "passphrase:"  # noqa: S105 - a scheme


def with_vault(
    settings: Settings, work: Callable[[Vault], Awaitable[T]], *, look: bool = True
) -> T:
    """Unseals the vault, runs ``work`` on it, seals it again.

    Args:
        settings: Which vault.
        work: What to do.
        look: Migrate first what older programs left beside it.

    Raises:
        ApexCredsError: Anything that unsealing or ``work`` raises.
    """
    provider = find_provider(settings)

    async def body() -> T:
        async with await Vault.unseal(settings.home, master=provider) as vault:
            if look:
                await automatic.look(vault)
            return await work(vault)

    return anyio.run(body)


def find_provider(settings: Settings) -> MasterKeyProvider:
    """The provider for an existing vault: what ``--master`` says, else what the vault says.

    Raises:
        VaultNotFoundError: There is no vault.
        IntegrityError: Its key store is malformed.
    """
    return provider(master_uri(settings, read_header(settings)), new=False)


def master_uri(settings: Settings, header: Header) -> str:
    """What ``--master`` says, else what the vault says.

    Raises:
        MasterKeyUnavailableError: Only the vault says so, and it is in its own directory.
    """
    if settings.master:
        return settings.master
    recorded = root_header(header).master.uri
    refuse_own(recorded, home_of(settings))
    return recorded


def provider(uri: str, *, new: bool) -> MasterKeyProvider:
    """The provider for a URI; asks for its passphrase now, twice for a new one.

    Raises:
        InvalidInputError: The URI is not understood.
        MasterKeyUnavailableError: There is no terminal to ask on.
    """
    if uri != PASSPHRASE:
        return provider_from_uri(uri)
    return provider_from_uri(uri, prompt=_asked(times=2 if new else 1))


def _asked(*, times: int) -> Prompt:
    questions = ("Passphrase: ", "Passphrase again: ")[:times]
    answers = [terminal_prompt(question) for question in questions]
    return lambda _: answers.pop(0)


def read_header(settings: Settings) -> Header:
    """What the key store says in clear; needs no key. It is not yet authenticated.

    Raises:
        VaultNotFoundError: There is no vault.
        StorageError: It can't be read safely.
        IntegrityError: It is malformed.
    """
    return anyio.run(functools.partial(_header, home_of(settings)))


async def _header(home: Path) -> Header:
    if is_legacy(home):
        raise VaultNotFoundError(
            f"The key store in {home} is an older program's.",
            hint="Take its credentials over with: apex-creds migrate",
        )
    storage = storage_for(home)
    try:
        stored = await storage.read(KEYSTORE)
    finally:
        await storage.close()
    if stored is None and isinstance(storage, FileStorage):
        raise remains.not_found(home)
    if stored is None:
        raise VaultNotFoundError(
            f"There is no vault where {home} says that it is.",
            hint="Look at the database, and at security/config.json.",
        )
    return parse(stored.data, section=KEYSTORE, vault_id=None).header


def home_of(settings: Settings) -> Path:
    """The vault's directory."""
    return resolve_home(settings.home)
