"""Keys: immutable keysets, and the providers that hold the master key.

Guarantee: a keyset always has exactly one primary, and a master key leaves a provider
only as ``SecretBytes``.
"""

from __future__ import annotations

from apex_creds.keys.keyset import Keyset, KeyState, KeyVersion

__all__ = ["KeyState", "KeyVersion", "Keyset"]
