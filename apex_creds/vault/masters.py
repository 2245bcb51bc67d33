"""Where the vault gets its master key from, for the moment in which it is needed.

Guarantee: nothing here keeps a master key; one is asked for when KEKs must be derived, and
whoever asked closes it right after.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import MasterKeyUnavailableError
from apex_creds.fs.private_files import expanded
from apex_creds.keys import MasterKeyProvider, provider_from_uri
from apex_creds.vault.document import MasterRecord

FindProvider = Callable[[str], MasterKeyProvider]


class Masters:
    """The master keys of one vault.

    Args:
        provider: Has them; by default the provider that the vault itself names.
        first: Version 1, while it is open: a vault was just made with it.
        find: Makes a provider from a URI.
        home: The vault's directory; a key file in it is used only if ``provider`` says so.
    """

    def __init__(
        self,
        provider: MasterKeyProvider | None = None,
        *,
        first: SecretBytes | None = None,
        find: FindProvider = provider_from_uri,
        home: Path | None = None,
    ) -> None:
        self._provider = provider
        self._find = find
        self._home = home
        self._first = first

    def provider(self, uri: str) -> MasterKeyProvider:
        """The provider for a vault whose key store names ``uri``.

        Raises:
            MasterKeyUnavailableError: Only the key store names it, and it is in the home.
        """
        if self._provider is not None:
            return self._provider
        if self._home is not None:
            refuse_own(uri, self._home)
        return self._find(uri)

    async def load(self, record: MasterRecord, vault_id: str) -> SecretBytes:
        """The master key that a key store names; the caller closes it.

        Raises:
            MasterKeyError: It can't be had.
        """
        first = self._first
        if first is not None and not first.closed:
            return SecretBytes.copy_of(first)
        return await self.provider(record.uri).load(
            vault_id=vault_id, version=record.version, params=record.params
        )


def refuse_own(uri: str, home: Path) -> None:
    """Refuses a key file inside the vault's directory that only the key store names.

    Whoever can replace the directory could bring a vault and a key of their own.

    Raises:
        MasterKeyUnavailableError: It is one.
    """
    scheme, _, path = uri.partition(":")
    if scheme != "file":
        return
    named = str(expanded(path))
    if any(_is_in(look(named), look(home)) for look in (os.path.abspath, os.path.realpath)):
        raise MasterKeyUnavailableError(
            "The key store names a master key inside the vault's own directory, which may "
            "have been put there together with it.",
            hint="If it is yours, name it: --master file:PATH. Better keep it elsewhere.",
        )


def _is_in(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)
