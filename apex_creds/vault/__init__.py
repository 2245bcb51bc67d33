"""The vault: documents sealed under the key hierarchy, over any storage backend.

Guarantee: the only exit of plaintext is ``Vault.release`` (and ``Vault.open`` on top of
it), which writes the audit event first.
"""

from __future__ import annotations

from apex_creds.vault.lookup import Deletion, Facts, Opened, PutItem
from apex_creds.vault.vault import Vault

__all__ = ["Deletion", "Facts", "Opened", "PutItem", "Vault"]
