"""Master key providers: what one is, how a URI names one, and one that holds a key for a while.

Guarantee: a master key is 32 bytes and leaves a provider only as ``SecretBytes``. The text
form that providers store keys in is standard base64 in its one canonical form (RFC 4648,
section 4); reading it makes no Python ``bytes`` of the key. Nothing of a URI that is not
understood is repeated in an error, as it may be a passphrase in the wrong place. A
``HeldProvider`` gives out copies of one key at hand and stores it nowhere; everything else is
the other provider's: it is for recovering a key that the provider has lost, or for asking
the provider once where the key is needed several times.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import ClassVar, Final, Protocol, runtime_checkable

from apex_creds import extensions
from apex_creds.crypto.memory import SecretBytes
from apex_creds.errors import InvalidInputError
from apex_creds.keys.head_anchor import AnchorStore, PinStore

MASTER_KEY_BYTES: Final = 32
ADOPTED: Final = "adopted"
"""In a key store's parameters: versions of the master key are never deleted."""

Prompt = Callable[[str], str]
"""Asks with the given text and returns what was typed, without echo; like ``getpass``."""

_TEXT_LENGTH: Final = 44
_VAULT_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}")
_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_DIGITS: Final = {byte: value for value, byte in enumerate(_ALPHABET)}


@runtime_checkable
class MasterKeyProvider(Protocol):
    """Where the versions of a vault's master key are kept.

    ``apex_creds.testing.providers.MasterKeyProviderContract`` tests an implementation.

    Attributes:
        scheme: The part of ``uri`` before the colon.
    """

    scheme: ClassVar[str]

    @property
    def uri(self) -> str:
        """What ``provider_from_uri`` makes this provider from; holds no secret."""

    async def create(
        self, *, vault_id: str, version: int
    ) -> tuple[SecretBytes, dict[str, str]]:
        """Makes a version, stores it durably and reads it back.

        A version that is there already is neither overwritten, as a key store may depend
        on it, nor used: who put it there may know it. Of processes that race, one makes it.

        Returns:
            The key (32 bytes), and parameters that go in clear into the key store.

        Raises:
            MasterKeyExistsError: The version is there already.
            MasterKeyReadOnlyError: The provider can't be written.
            MasterKeyUnavailableError: The provider does not answer.
            WrongMasterKeyError: Something else is stored in the key's place.
        """

    async def load(
        self, *, vault_id: str, version: int, params: Mapping[str, str]
    ) -> SecretBytes:
        """The 32 bytes of a version; ``params`` is what ``create`` returned.

        Raises:
            MasterKeyNotFoundError: The provider has no such version.
            MasterKeyUnavailableError: The provider does not answer.
            WrongMasterKeyError: Something else is stored in the key's place.
        """

    async def discard(self, *, vault_id: str, version: int) -> None:
        """Deletes a version that no key store refers to; nothing happens if it is gone.

        Never call it for a version that another process may have committed to: after a
        lost race, read the key store first.

        Raises:
            MasterKeyReadOnlyError: The provider can't be written.
            MasterKeyUnavailableError: The provider does not answer.
        """


@runtime_checkable
class MasterKeyAdopter(Protocol):
    """What a provider may offer besides: keys that were provisioned, not made by it."""

    async def adopt(self, *, vault_id: str, version: int) -> tuple[SecretBytes, dict[str, str]]:
        """The key that is there, for a new vault; as ``load``, with what ``create`` returns.

        The parameters have ``ADOPTED``: the place may be another vault's too, so that no
        version is ever discarded from it.
        """


@runtime_checkable
class MasterKeyPlacer(MasterKeyProvider, Protocol):
    """What a provider may offer besides: to make a version of a key that is given.

    Who gives the key can note which it is before it is anywhere, and so find out after a
    crash whether what is there was made by it.
    """

    async def place(self, *, vault_id: str, version: int, key: SecretBytes) -> dict[str, str]:
        """As ``create``, with this key; does nothing where this very key is there already.

        Returns:
            Parameters that go in clear into the key store.
        """


@runtime_checkable
class SharedPlace(Protocol):
    """What a provider may offer besides, whose keys do not say which vault they are of."""

    async def share(self, *, vault_id: str) -> bool:
        """Whether there are keys already; if so, none is ever discarded from now on."""


def check_reference(vault_id: str, version: int) -> None:
    """Checks what names a master key; both may come from a document in clear.

    Raises:
        InvalidInputError: Not 1 to 64 letters, digits and hyphens, or not a version.
    """
    if _VAULT_ID.fullmatch(vault_id) is None:
        raise InvalidInputError("The vault id is malformed.", hint="Check the key store.")
    if not 1 <= version < 2**32:
        raise InvalidInputError(
            "The master key version is out of range.", hint="Check the key store."
        )


def encode_key(key: SecretBytes) -> bytearray:
    """The 44 characters of base64; the caller wipes them."""
    return bytearray(binascii.b2a_base64(key.view(), newline=False))


def decode_key(text: str | bytes | bytearray | memoryview) -> SecretBytes | None:
    """Reads what ``encode_key`` wrote; None for anything else, white space included."""
    if len(text) != _TEXT_LENGTH:
        return None
    symbols = [ord(c) for c in text] if isinstance(text, str) else list(text)
    values = [_DIGITS.get(symbol, -1) for symbol in symbols[:-1]]
    # 43 digits are 258 bits: the last two must be zero, or the form is not canonical.
    if symbols[-1] != ord("=") or min(values) < 0 or values[-1] & 0b11:
        return None
    data = bytearray(MASTER_KEY_BYTES + 1)
    for i in range(0, _TEXT_LENGTH, 4):
        a, b, c, d = (*values, 0)[i : i + 4]
        data[i // 4 * 3 : i // 4 * 3 + 3] = (
            a << 2 | b >> 4,
            (b & 15) << 4 | c >> 2,
            (c & 3) << 6 | d,
        )
    key = SecretBytes.from_bytes(memoryview(data)[:MASTER_KEY_BYTES])
    wipe(data)
    return key


def wipe(buffer: bytearray) -> None:
    """Overwrites a buffer with zeros in place."""
    buffer[:] = bytes(len(buffer))


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


_BUILT_IN: Final = {
    "keyring": "apex_creds.keys.os_keyring",
    "file": "apex_creds.keys.key_file",
    "passphrase": "apex_creds.keys.passphrase",
}
"""The module of each scheme; its ``from_uri`` is a ``FromUri``."""

FromUri = Callable[[str, Prompt | None], MasterKeyProvider | None]
"""Makes a provider of what follows the scheme and its colon; None for what it can't read."""


def provider_from_uri(uri: str, *, prompt: Prompt | None = None) -> MasterKeyProvider:
    """The provider for ``keyring:``, ``file:PATH``, ``passphrase:`` or ``passphrase:fd=N``.

    Args:
        uri: One of these forms, or of a package that is installed (``apex_creds.providers``).
        prompt: Asks for a passphrase without echo (``passphrase:`` alone needs it).

    Raises:
        InvalidInputError: Anything else.
    """
    scheme, colon, rest = uri.partition(":")
    if scheme in _BUILT_IN:
        # Only the provider that is used is loaded (keyring looks for plugins).
        make: FromUri = import_module(_BUILT_IN[scheme]).from_uri
        provider = make(rest, prompt) if colon else None
    else:
        made = extensions.make(extensions.PROVIDERS, uri)
        provider = made if isinstance(made, MasterKeyProvider) else None
    if provider is None:
        raise InvalidInputError(
            "The master key provider is not one that is known.",
            hint="Use keyring:, file:PATH, passphrase: or passphrase:fd=N, or install the "
            "package that has it (docs/EXTENDING.md).",
        )
    return provider
