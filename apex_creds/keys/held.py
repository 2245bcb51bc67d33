"""A provider with one master key at hand, in front of the one that keeps them.

Guarantee: the key at hand is given out as copies, and never stored by this; everything
else is the other provider's. It is for one operation: recovering a key that the provider
has lost, or asking the provider once where the key is needed several times.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

from apex_creds.crypto.memory import SecretBytes
from apex_creds.keys.anchor import AnchorStore, PinStore
from apex_creds.keys.base import MasterKeyProvider, SharedPlace

__all__ = ["HeldProvider", "MasterKeyReceiver", "hold"]


@runtime_checkable
class MasterKeyReceiver(Protocol):
    """What a provider may offer besides: to keep a key that was made elsewhere."""

    async def receive(self, *, vault_id: str, version: int, key: SecretBytes) -> None:
        """Stores a version durably and reads it back; nothing happens if it is there.

        Raises:
            MasterKeyReadOnlyError: The provider can't be written.
            MasterKeyUnavailableError: The provider does not answer, or did not keep it.
            WrongMasterKeyError: Another key is there under that version; it stays.
        """


class HeldProvider:
    """See ``hold``."""

    scheme: ClassVar[str] = "held"

    def __init__(self, behind: MasterKeyProvider, *, version: int, key: SecretBytes) -> None:
        self._behind = behind
        self._version = version
        self._key = key

    @property
    def uri(self) -> str:
        """See ``MasterKeyProvider``: that of the provider behind."""
        return self._behind.uri

    async def create(
        self, *, vault_id: str, version: int
    ) -> tuple[SecretBytes, dict[str, str]]:
        """See ``MasterKeyProvider``."""
        return await self._behind.create(vault_id=vault_id, version=version)

    async def load(
        self, *, vault_id: str, version: int, params: Mapping[str, str]
    ) -> SecretBytes:
        """See ``MasterKeyProvider``."""
        if version == self._version and not self._key.closed:
            return SecretBytes.copy_of(self._key)
        return await self._behind.load(vault_id=vault_id, version=version, params=params)

    async def discard(self, *, vault_id: str, version: int) -> None:
        """See ``MasterKeyProvider``."""
        await self._behind.discard(vault_id=vault_id, version=version)

    async def share(self, *, vault_id: str) -> bool:
        """See ``SharedPlace``."""
        behind = self._behind
        return isinstance(behind, SharedPlace) and await behind.share(vault_id=vault_id)


class _Anchoring(HeldProvider):
    """Of a provider that keeps anchors."""

    def read_anchor(self, *, vault_id: str) -> str | None:
        """See ``AnchorStore``."""
        assert isinstance(self._behind, AnchorStore)
        return self._behind.read_anchor(vault_id=vault_id)

    def write_anchor(self, *, vault_id: str, text: str) -> None:
        """See ``AnchorStore``."""
        assert isinstance(self._behind, AnchorStore)
        self._behind.write_anchor(vault_id=vault_id, text=text)


class _Pinning(_Anchoring):
    """Of one that keeps pins, too."""

    def read_pin(self, *, home: str) -> str | None:
        """See ``PinStore``."""
        assert isinstance(self._behind, PinStore)
        return self._behind.read_pin(home=home)

    def write_pin(self, *, home: str, text: str) -> None:
        """See ``PinStore``."""
        assert isinstance(self._behind, PinStore)
        self._behind.write_pin(home=home, text=text)

    def delete_pin(self, *, home: str) -> None:
        """See ``PinStore``."""
        assert isinstance(self._behind, PinStore)
        self._behind.delete_pin(home=home)


def hold(behind: MasterKeyProvider, *, version: int, key: SecretBytes) -> HeldProvider:
    """``behind``, but that version is ``key``, which stays the caller's to close."""
    kind = _Anchoring if isinstance(behind, AnchorStore) else HeldProvider
    if kind is _Anchoring and isinstance(behind, PinStore):
        kind = _Pinning
    return kind(behind, version=version, key=key)
