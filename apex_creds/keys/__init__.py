"""Keys: immutable keysets, and the providers that hold the master key.

Guarantee: a keyset always has exactly one primary, and a master key leaves a provider
only as ``SecretBytes``.
"""

from __future__ import annotations

from apex_creds.keys.keyset import Keyset, KeyState, KeyVersion
from apex_creds.keys.provider import (
    ADOPTED,
    MASTER_KEY_BYTES,
    MasterKeyAdopter,
    MasterKeyPlacer,
    MasterKeyProvider,
    Prompt,
    SharedPlace,
    provider_from_uri,
)

__all__ = [
    "ADOPTED",
    "MASTER_KEY_BYTES",
    "KeyState",
    "KeyVersion",
    "Keyset",
    "MasterKeyAdopter",
    "MasterKeyPlacer",
    "MasterKeyProvider",
    "Prompt",
    "SharedPlace",
    "provider_from_uri",
]
