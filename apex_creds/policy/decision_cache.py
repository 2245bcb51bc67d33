"""What a grant is bound to, and what ``decide`` permitted while its inputs stand. Pure.

Guarantee: an answer from memory is the one that ``decide`` would give now; inputs are
immutable values, compared by identity, and time is checked on every look-up. A grant that is
bound to one manifest and code counts for another only if that asks for nothing that the
first did not ask for, its code is what its metadata says, and policy lets new versions keep
their grants.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from apex_creds.model import CredentialInfo
from apex_creds.policy.decide import UNVERIFIED, Identity, Permission, decide
from apex_creds.policy.grants import Grant, Grants
from apex_creds.policy.manifest import Access, Manifest, Need
from apex_creds.policy.rules import NO_POLICY, Policy

_MANY: Final = 10_000


class _Decided(NamedTuple):
    """A permission, with what it was made from (whose ids are not reused meanwhile)."""

    permission: Permission
    since: float
    ends: float
    need: Need
    grants: Grants
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
        key: tuple[object, ...] = (id(need), id(info), id(manifest))
        if policy.rules:
            key += (action,)
        known = memory[1].get(key)
        if known is not None and not known.since <= now < known.ends:
            known = None
        if known is not None and known.grants is grants:
            return known.permission
        grant = grants.find(manifest.plugin, need.name)
        if known is not None and known.grant is grant:
            memory[1][key] = known._replace(grants=grants)
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
                decision.permission, since, ends, need, grants, grant, info, manifest
            )
        return decision.permission


def _holds(permission: Permission, now: float) -> tuple[float, float]:
    """From when until when the same permission would be decided."""
    ends = (permission.recheck, permission.until)
    until = min(math.inf if end is None else end for end in ends)
    return -math.inf if permission.recheck is None else now, until


_MANY_PLUGINS: Final = 10_000
_ALL: Final = "all that the credential allows"


def identity_of(manifest: Manifest) -> Identity:
    """What a plugin is now."""
    return Identity(manifest.digest, manifest.checksum)


def identity_for(
    manifest: Manifest, grant: Grant | None, grants: Grants, *, keep: bool
) -> Identity:
    """What a plugin counts as before a grant: what the grant is bound to, or what it is.

    Args:
        manifest: The plugin's, as it is now.
        grant: The one that is looked at.
        grants: Where the manifest that it is bound to is found.
        keep: Whether policy lets a version that asks for nothing new keep its grants.
    """
    now = identity_of(manifest)
    if grant is None or not grant.manifest or not keep:
        return now
    seen = grants.seen(grant.manifest)
    if seen is None or added(seen, manifest.needs) or not _sound(grant, now):
        return now
    return Identity(grant.manifest, grant.checksum)


class Pins:
    """What the grants that are not bound yet have been used by first, in this process.

    ``Vault.pin`` binds them for good; until then, and where the vault can't be written,
    they are bound to that here.
    """

    __slots__ = ("_first",)

    def __init__(self) -> None:
        self._first: dict[str, Manifest] = {}

    def look(
        self, manifest: Manifest, grant: Grant | None, grants: Grants, *, keep: bool
    ) -> tuple[Grant | None, Identity]:
        """The grant as it is bound, and what the plugin counts as before it."""
        if grant is None or grant.manifest:
            return grant, identity_for(manifest, grant, grants, keep=keep)
        now = identity_of(manifest)
        if now.checksum.startswith(UNVERIFIED):
            return grant, now
        if len(self._first) >= _MANY_PLUGINS:
            self._first.clear()
        first = self._first.setdefault(grant.id, manifest)
        bound = msgspec.structs.replace(grant, manifest=first.digest, checksum=first.checksum)
        if keep and not added(first.needs, manifest.needs) and _sound(bound, now):
            return bound, Identity(bound.manifest, bound.checksum)
        return bound, now


def _sound(grant: Grant, now: Identity) -> bool:
    """Whether the code is known as well as it was when the grant was made."""
    if now.checksum.startswith(UNVERIFIED):
        return now.checksum == grant.checksum
    return bool(now.checksum) or not grant.checksum


def added(before: tuple[Need, ...], after: tuple[Need, ...]) -> tuple[str, ...]:
    """What is asked for in ``after`` and not in ``before``, in words; empty: nothing."""
    known = {need.name: need for need in before}
    return tuple(line for need in after for line in _more(known.get(need.name), need))


def removed(before: tuple[Need, ...], after: tuple[Need, ...]) -> tuple[str, ...]:
    """What is no longer asked for, in words."""
    return added(after, before)


def _more(before: Need | None, after: Need) -> Iterator[str]:
    name = after.name
    if before is None:
        yield f"credential {name}"
        return
    yield from (f"{name}: scope {item}" for item in after.scopes if item not in before.scopes)
    places = [str(origin) for origin in before.origins]
    for kind, old, new in (
        ("origin", places, [str(origin) for origin in after.origins]),
        ("method", list(before.methods), list(after.methods)),
    ):
        yield from (f"{name}: {kind} {item}" for item in _wider(old, new))
    yield from (f"{name}: path {item}" for item in _wider_paths(before.paths, after.paths))
    if after.access is Access.REVEAL and before.access is not Access.REVEAL:
        yield f"{name}: to read the secret itself"


def _wider(before: list[str], after: list[str]) -> list[str]:
    """Members of a list in which nothing stands for everything."""
    if not before:
        return []
    return [item for item in after if item not in before] if after else [_ALL]


def _wider_paths(before: tuple[str, ...], after: tuple[str, ...]) -> list[str]:
    if not before:
        return []
    if not after:
        return [_ALL]
    return [path for path in after if not any(_covers(old, path) for old in before)]


def _covers(pattern: str, path: str) -> bool:
    if pattern.endswith("*"):
        return path.removesuffix("*").startswith(pattern[:-1])
    return path == pattern
