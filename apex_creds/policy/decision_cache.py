"""What a grant is bound to, and what ``decide`` permitted while its inputs stand. Pure.

Guarantee: an answer from memory is the one that ``decide`` would give now; inputs are
immutable values, compared by identity, and time is checked on every look-up. A grant that is
bound to one manifest and code counts for another only if that asks for nothing that the
first did not ask for, its code is what its metadata says, and policy lets new versions keep
their grants.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from apex_creds.concurrency import BoundedCache
from apex_creds.model import CredentialInfo
from apex_creds.policy.decide import UNVERIFIED, Identity, Permission, decide
from apex_creds.policy.grants import Grant, Grants
from apex_creds.policy.manifest import Access, Echoes, Manifest, Need
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


_Memory = BoundedCache[tuple[object, ...], _Decided]


class DecisionCache:
    """Permissions by need, grant and credential; at most ten thousand."""

    __slots__ = ("_memory", "_pins")

    def __init__(self, pins: Pins | None = None) -> None:
        self._pins = pins or Pins()
        # In one piece, so that a thread never puts an old policy's answer among the new.
        self._memory: tuple[Policy, _Memory] = (NO_POLICY, BoundedCache(_MANY))

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
        principal: str = "",
    ) -> Permission | None:
        """What is permitted at ``now`` (Unix seconds); None: nothing (or to be asked)."""
        memory = self._memory
        if policy is not memory[0]:
            memory = self._memory = (policy, BoundedCache(_MANY))
        key: tuple[object, ...] = (id(need), id(info), id(manifest))
        if policy.rules:
            key += (action, principal)
        elif principal:
            key += (principal,)
        known = memory[1].get(key)
        if known is not None and not known.since <= now < known.ends:
            known = None
        if known is not None and known.grants is grants:
            return known.permission
        grant = grants.find(manifest.plugin, info.key if info.principal else info.name)
        if known is not None and known.grant is grant:
            memory[1][key] = known._replace(grants=grants)
            return known.permission
        bound, identity = self._pins.bind(manifest, grant, grants, keep=policy.keep_grants)
        decision = decide(
            need=need,
            grant=bound,
            info=info,
            now=now,
            policy=policy,
            plugin=manifest.plugin,
            action=action,
            identity=identity,
            principal=principal,
        )
        permission = decision.permission
        if permission is not None:
            # From when until when the same permission would be decided.
            since = -math.inf if permission.recheck is None else now
            ends = (permission.recheck, permission.until)
            until = min(math.inf if end is None else end for end in ends)
            decided = _Decided(permission, since, until, need, grants, grant, info, manifest)
            memory[1].remember(key, decided)
        return permission


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
        grant: The one in question.
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

    def bind(
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
    found: list[str] = []
    for need in after:
        old, name = known.get(need.name), need.name
        if old is None:
            found.append(f"credential {name}")
            continue
        found += [f"{name}: scope {item}" for item in need.scopes if item not in old.scopes]
        for kind, was, now in (
            ("origin", list(map(str, old.origins)), list(map(str, need.origins))),
            ("method", list(old.methods), list(need.methods)),
            ("path", list(old.paths), list(need.paths)),
        ):
            found += [f"{name}: {kind} {item}" for item in _wider(was, now)]
        found += [f"{name}: a body with {m}" for m in need.bodies if m not in old.bodies]
        if need.access is Access.REVEAL and old.access is not Access.REVEAL:
            found.append(f"{name}: to read the secret itself")
        elif need.access is not old.access and old.access is not Access.REVEAL:
            signs = need.access is Access.SIGN
            found.append(f"{name}: to {'sign with it' if signs else 'send the secret itself'}")
        if need.echoes is Echoes.ALLOWED and old.echoes is not Echoes.ALLOWED:
            found.append(f"{name}: to get the secret back from services")
    return tuple(found)


def removed(before: tuple[Need, ...], after: tuple[Need, ...]) -> tuple[str, ...]:
    """What is no longer asked for, in words."""
    return added(after, before)


def _wider(before: list[str], after: list[str]) -> list[str]:
    """What is new in a list in which nothing stands for everything.

    Only a path ends in ``*``, and then stands for all that begin like it.
    """
    if not before:
        return []
    if not after:
        return [_ALL]
    open_ended = tuple(old[:-1] for old in before if old.endswith("*"))
    return [
        item
        for item in after
        if item not in before and not item.removesuffix("*").startswith(open_ended)
    ]
