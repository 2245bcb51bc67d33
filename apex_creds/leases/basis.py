"""What a lease rests on besides what is stored: an answer for once or for a session, a factor.

Guarantee: a basis widens nothing: ``decide`` sees it as it sees a stored grant, one that
says no is stronger, and a revocation that came after it makes it void.
"""

from __future__ import annotations

from typing import NamedTuple

from apex_creds.policy.grants import Grant, GrantDecision, Grants


class Basis(NamedTuple):
    """For one plugin and one credential.

    Attributes:
        grant: What a person said, not stored; None: nothing.
        factor: When a second factor was shown, Unix seconds; None: none was.
        mark: The last revocation that was known then.
    """

    grant: Grant | None = None
    factor: float | None = None
    mark: int = 0


def resting(
    grants: Grants, plugin: str, credential: str, basis: Basis | None
) -> tuple[Grant | None, float | None]:
    """The grant that counts for the pair, and when a second factor was shown for it."""
    stored = grants.find(plugin, credential)
    if basis is None or grants.revoked_since(basis.mark, plugin, credential):
        return stored, None
    if basis.grant is None or (stored and stored.decision is GrantDecision.DENY):
        return stored, basis.factor
    return basis.grant, basis.factor
