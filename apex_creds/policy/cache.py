"""Remembers what ``decide`` permitted while its inputs stand.

Guarantee: the answer is the one that ``decide`` would give now. Inputs are immutable
values and compared by identity; time is checked on every look-up.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from apex_creds.model import CredentialInfo
from apex_creds.policy.decide import Permission, decide
from apex_creds.policy.grants import Grant, Grants
from apex_creds.policy.manifest import Manifest, Need
from apex_creds.policy.pinning import Pins
from apex_creds.policy.rules import NO_POLICY, Policy

_MANY: Final = 10_000


class _Decided(NamedTuple):
    """A permission, with what it was made from (whose ids are not reused meanwhile)."""

    permission: Permission
    since: float
    ends: float
    need: Need
    grant: Grant | None
    info: CredentialInfo
    manifest: Manifest


_Memory = dict[tuple[object, ...], _Decided]


class DecisionCache:
    """Permissions by need, grant and credential; at most ten thousand."""

    __slots__ = ("_memory", "_pins")

    def __init__(self, pins: Pins | None = None) -> None:
        self._pins = pins or Pins()
        # In one piece, so that a thread never puts an old policy's answer among the new.
        self._memory: tuple[Policy, _Memory] = (NO_POLICY, {})

    def permission(
        self,
        need: Need,
        grant: Grant | None,
        info: CredentialInfo,
        now: float,
        *,
        manifest: Manifest,
        grants: Grants,
        policy: Policy = NO_POLICY,
        action: str = "",
    ) -> Permission | None:
        """What is permitted at ``now`` (Unix seconds); None: nothing (or to be asked)."""
        memory = self._memory
        if policy is not memory[0]:
            memory = self._memory = (policy, {})
        key: tuple[object, ...] = (id(need), id(grant), id(info), id(manifest))
        if policy.rules:
            key += (action,)
        known = memory[1].get(key)
        if known is not None and known.since <= now < known.ends:
            return known.permission
        bound, identity = self._pins.look(manifest, grant, grants, keep=policy.keep_grants)
        decision = decide(
            need=need,
            grant=bound,
            info=info,
            now=now,
            policy=policy,
            plugin=manifest.plugin,
            action=action,
            identity=identity,
        )
        if decision.permission is not None:
            if len(memory[1]) >= _MANY:
                memory[1].clear()
            since, ends = _holds(decision.permission, now)
            memory[1][key] = _Decided(
                decision.permission, since, ends, need, grant, info, manifest
            )
        return decision.permission


def _holds(permission: Permission, now: float) -> tuple[float, float]:
    """From when until when the same permission would be decided."""
    ends = (permission.recheck, permission.until)
    until = min(math.inf if end is None else end for end in ends)
    return -math.inf if permission.recheck is None else now, until
