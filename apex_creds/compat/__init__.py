"""The old managers' names, on a real vault: change the import, and go on.

Guarantee: the old synchronous methods give the old results; every secret that they hand
out is in the audit log first. docs/MIGRATING.md shows what replaces them.
"""

from __future__ import annotations

from apex_creds.compat.enhanced import EnhancedApiKeyManager
from apex_creds.compat.manager import ApiKeyManager
from apex_creds.compat.modes import ApiKeyMode, ModelCategory, ProviderType
from apex_creds.compat.vault_session import (
    ApiKeyManagerError,
    EncryptionError,
    MasterKeyError,
    StorageError,
)

__all__ = [
    "ApiKeyManager",
    "ApiKeyManagerError",
    "ApiKeyMode",
    "EncryptionError",
    "EnhancedApiKeyManager",
    "MasterKeyError",
    "ModelCategory",
    "ProviderType",
    "StorageError",
]
