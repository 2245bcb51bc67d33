"""What a grant is bound to, and what a new version of a plugin asks for beyond it. Pure.

Guarantee: a grant that is bound to one manifest and code counts for another only if that
asks for nothing that the first did not ask for, its code is what its metadata says, and
policy lets new versions keep their grants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from apex_creds.policy.decide import UNVERIFIED, Identity
from apex_creds.policy.grants import Grant, Grants
from apex_creds.policy.manifest import Access, Manifest, Need

_MANY: Final = 10_000
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
        if len(self._first) >= _MANY:
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
