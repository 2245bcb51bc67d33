"""Standing permissions, as stored in the key store.

Guarantee: at most one grant for a plugin and a credential; collections are immutable and
their mutators return copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Self

import msgspec


class GrantDecision(StrEnum):
    """What the person said: yes, or no and don't ask again."""

    ALLOW = "allow"
    DENY = "deny"


class Grant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """This plugin may (or may not) use that credential, in these scopes, until then.

    Attributes:
        id: 32 hexadecimal digits.
        reveal: Whether the secret may be read, if the manifest asks for it too.
        created: Unix seconds; so is ``until`` (None: without end).
        decision: ``deny`` refuses whatever policy says, and is not asked about again.
        manifest: Digest of the manifest that the person saw; empty: not bound to one.
        checksum: Of the plugin's code, likewise.
        created_by: Who decided, in words.
    """

    id: str
    plugin: str
    credential: str
    scopes: tuple[str, ...] = ()
    reveal: bool = False
    created: float
    until: float | None = None
    decision: GrantDecision = GrantDecision.ALLOW
    manifest: str = ""
    checksum: str = ""
    created_by: str = ""


class Grants:
    """All grants, found by plugin and credential in O(1)."""

    __slots__ = ("_by_pair",)

    def __init__(self, grants: Iterable[Grant] = ()) -> None:
        self._by_pair = {(grant.plugin, grant.credential): grant for grant in grants}

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._by_pair.values())

    def __len__(self) -> int:
        return len(self._by_pair)

    def find(self, plugin: str, credential: str) -> Grant | None:
        """The grant for the pair, or None."""
        return self._by_pair.get((plugin, credential))

    def with_grant(self, grant: Grant) -> Self:
        """A copy in which ``grant`` replaces any other of its pair."""
        rest = (old for pair, old in self._by_pair.items() if pair != _pair(grant))
        return type(self)([*rest, grant])

    def without(self, *, plugin: str | None = None, credential: str | None = None) -> Self:
        """A copy without the grants that match every criterion given."""
        return type(self)(
            grant
            for grant in self
            if not (plugin in (None, grant.plugin) and credential in (None, grant.credential))
        )


def _pair(grant: Grant) -> tuple[str, str]:
    return (grant.plugin, grant.credential)
