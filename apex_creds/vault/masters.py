"""Where the vault gets its master key from, for the moment in which it is needed.

Guarantee: nothing here keeps a master key; one is asked for when KEKs must be derived, and
whoever asked closes it right after.
"""

from __future__ import annotations

from collections.abc import Callable

from apex_creds.crypto.memory import SecretBytes
from apex_creds.keys import MasterKeyProvider, provider_from_uri
from apex_creds.vault.document import MasterRecord

FindProvider = Callable[[str], MasterKeyProvider]


class Masters:
    """The master keys of one vault.

    Args:
        provider: Has them; by default the provider that the vault itself names.
        first: Version 1, while it is open: a vault was just made with it.
        find: Makes a provider from a URI.
    """

    def __init__(
        self,
        provider: MasterKeyProvider | None = None,
        *,
        first: SecretBytes | None = None,
        find: FindProvider = provider_from_uri,
    ) -> None:
        self._provider = provider
        self._find = find
        self._first = first

    def provider(self, uri: str) -> MasterKeyProvider:
        """The provider for a vault whose key store names ``uri``."""
        return self._provider or self._find(uri)

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
