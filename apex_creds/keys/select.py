"""From a URI-like string to a master key provider.

Guarantee: nothing of a string that is not understood is repeated in the error, as it may
be a passphrase in the wrong place.
"""

from __future__ import annotations

import re
from typing import Final

from apex_creds import extensions
from apex_creds.errors import InvalidInputError
from apex_creds.keys.base import MasterKeyProvider, Prompt

__all__ = ["provider_from_uri"]

_OWN: Final = ("keyring", "file", "passphrase")
_FD: Final = re.compile(r"fd=(0|[1-9][0-9]{0,5})", re.ASCII)


def provider_from_uri(uri: str, *, prompt: Prompt | None = None) -> MasterKeyProvider:
    """The provider for ``keyring:``, ``file:PATH``, ``passphrase:`` or ``passphrase:fd=N``.

    Args:
        uri: One of these forms, or of a package that is installed (``apex_creds.providers``).
        prompt: Asks for a passphrase without echo (``passphrase:`` alone needs it).

    Raises:
        InvalidInputError: Anything else.
    """
    scheme, colon, rest = uri.partition(":")
    # Late imports: only the provider that is used is loaded (keyring looks for plugins).
    if scheme == "keyring" and colon and not rest:
        from apex_creds.keys.os_keyring import KeyringProvider

        return KeyringProvider()
    if scheme == "file" and rest:
        from apex_creds.keys.file import FileProvider

        return FileProvider(rest)
    if scheme == "passphrase" and colon:
        return _passphrase(rest, prompt)
    provider = None if scheme in _OWN else extensions.make(extensions.PROVIDERS, uri)
    if isinstance(provider, MasterKeyProvider):
        return provider
    raise _unknown()


def _passphrase(rest: str, prompt: Prompt | None) -> MasterKeyProvider:
    from apex_creds.keys.passphrase import PassphraseProvider

    if not rest:
        return PassphraseProvider(prompt=prompt)
    match = _FD.fullmatch(rest)
    if match is None:
        raise _unknown()
    return PassphraseProvider(fd=int(match[1]))


def _unknown() -> InvalidInputError:
    return InvalidInputError(
        "The master key provider is not one that is known.",
        hint="Use keyring:, file:PATH, passphrase: or passphrase:fd=N, or install the package "
        "that has it (docs/EXTENDING.md).",
    )
