"""Remembers what ``decide`` permitted while its inputs stand.

Guarantee: the answer is the one that ``decide`` would give now. Inputs are immutable
values and compared by identity; time is checked on every look-up.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from apex_creds.model import CredentialInfo
from apex_creds.policy.decide import Permission, decide
from apex_creds.policy.grants import Grant
from apex_creds.policy.manifest import Need

_MANY: Final = 10_000


class _Decided(NamedTuple):
    """A permission, with what it was made from (whose ids are not reused meanwhile)."""

    permission: Permission
    need: Need
    grant: Grant | None
    info: CredentialInfo


class DecisionCache:
    """Permissions by need, grant and credential; at most ten thousand."""

    __slots__ = ("_decided",)

    def __init__(self) -> None:
        self._decided: dict[tuple[int, int, int], _Decided] = {}

    def permission(
        self, need: Need, grant: Grant | None, info: CredentialInfo, now: float
    ) -> Permission | None:
        """What is permitted at ``now`` (Unix seconds); None: nothing."""
        key = (id(need), id(grant), id(info))
        known = self._decided.get(key)
        if known is not None:
            until = known.permission.until
            return known.permission if until is None or now < until else None
        permission = decide(need=need, grant=grant, info=info, now=now).permission
        if permission is not None:
            if len(self._decided) >= _MANY:
                self._decided.clear()
            self._decided[key] = _Decided(permission, need, grant, info)
        return permission
