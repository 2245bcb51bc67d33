"""The document ``limits``: the counts of limits that outlive the process.

Guarantee: as for every state document. It is one of its own, so that a use that is counted
rewrites nothing but the counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from apex_creds.documents.cached import Document
from apex_creds.vault.vault import Vault

if TYPE_CHECKING:
    from apex_creds.policy.rate_limits import LimitState

DOCUMENT: Final = "limits"


def limit_document(vault: Vault) -> Document[LimitState]:
    """The document; a new object each time, to be used in one event loop."""
    from apex_creds.policy.rate_limits import LimitState

    return Document(vault._store, name=DOCUMENT, empty=LimitState())
