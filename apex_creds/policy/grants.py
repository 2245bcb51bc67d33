"""Standing permissions.

Guarantee: at most one grant for a plugin and a credential; collections are immutable and
their mutators return copies. What a lease rests on besides (a decision for a session) is
void from the next revocation that concerns it on, whatever the clocks say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final, Self

import msgspec

from apex_creds.model import key_of
from apex_creds.policy.manifest import Need

MAX_REVOCATIONS: Final = 64
"""Further back they are merged into one that concerns everything."""


class GrantDecision(StrEnum):
    """What the person said: yes, or no and don't ask again."""

    ALLOW = "allow"
    DENY = "deny"


class Grant(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """This plugin may (or may not) use that credential, in these scopes, until then.

    Attributes:
        id: 32 hexadecimal digits.
        reveal: Whether the secret may be read, if the manifest asks for it too.
        echoes: Whether services may send it back to the plugin, likewise.
        sign: Whether it may make signatures, likewise; ``reveal`` includes that.
        created: Unix seconds; so is ``until`` (None: without end).
        decision: ``deny`` refuses whatever policy says, and is not asked about again.
        manifest: Digest of the manifest that the person saw; empty: not bound to one.
        checksum: Of the plugin's code, likewise.
        created_by: Who decided, in words.
        principal: Whose credential it is; empty: the shared one.
    """

    id: str
    plugin: str
    credential: str
    scopes: tuple[str, ...] = ()
    reveal: bool = False
    echoes: bool = False
    created: float
    until: float | None = None
    decision: GrantDecision = GrantDecision.ALLOW
    manifest: str = ""
    checksum: str = ""
    created_by: str = ""
    sign: bool = False
    principal: str = ""

    @property
    def key(self) -> str:
        """What identifies the credential."""
        return key_of(self.credential, self.principal)


class SeenManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plugin declared when grants were bound to it; found by its digest."""

    digest: str
    needs: tuple[Need, ...]


class Revocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that was allowed to a plugin, on a credential, up to then is taken back.

    Attributes:
        seq: Grows with every revocation.
        plugin: Empty: of all plugins. So is ``credential``, the key of one.
    """

    seq: int
    plugin: str = ""
    credential: str = ""

    def concerns(self, plugin: str, credential: str) -> bool:
        """Whether the pair is meant."""
        return self.plugin in ("", plugin) and self.credential in ("", credential)


class Lockdown(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nothing is released, since then (Unix seconds), for that reason."""

    since: float
    reason: str = ""


class Grants:
    """All grants, found by plugin and credential in O(1), and what goes with them.

    Attributes:
        lockdown: None: grants are in force.
    """

    __slots__ = ("_by_pair", "_manifests", "_revocations", "lockdown")

    def __init__(
        self,
        grants: Iterable[Grant] = (),
        *,
        lockdown: Lockdown | None = None,
        revocations: tuple[Revocation, ...] = (),
        manifests: Iterable[SeenManifest] = (),
    ) -> None:
        self._by_pair = {_pair(grant): grant for grant in grants}
        self._revocations = revocations
        self._manifests = {seen.digest: seen.needs for seen in manifests}
        self.lockdown = lockdown

    def __iter__(self) -> Iterator[Grant]:
        return iter(self._by_pair.values())

    def __len__(self) -> int:
        return len(self._by_pair)

    @property
    def mark(self) -> int:
        """The number of the last revocation; what is decided now rests on it."""
        return self._revocations[-1].seq if self._revocations else 0

    def revoked_since(self, mark: int, plugin: str, credential: str) -> bool:
        """Whether a revocation after ``mark`` concerns the pair."""
        if self.mark <= mark:
            return False
        later = (item for item in self._revocations if item.seq > mark)
        return any(item.concerns(plugin, credential) for item in later)

    def locked_since(self, mark: int) -> bool:
        """Whether everything was taken back after ``mark``, as a lockdown does."""
        later = (item for item in self._revocations if item.seq > mark)
        return any(not item.plugin and not item.credential for item in later)

    def seen(self, digest: str) -> tuple[Need, ...] | None:
        """What the manifest of that digest declares, if a grant is bound to it."""
        return self._manifests.get(digest)

    def find(self, plugin: str, credential: str) -> Grant | None:
        """The grant for the pair, or None."""
        return self._by_pair.get((plugin, credential))

    def updated(
        self,
        old: Iterable[Grant],
        new: Iterable[Grant],
        *,
        forgotten: Iterable[SeenManifest] = (),
        seen: Iterable[SeenManifest] = (),
    ) -> Self:
        """A copy without some grants and manifests, and with others."""
        made = type(self)(lockdown=self.lockdown, revocations=self._revocations)
        gone, unseen = set(map(_pair, old)), {each.digest for each in forgotten}
        made._by_pair = dict(self._by_pair)
        made._manifests = dict(self._manifests)
        for pair in gone:
            made._by_pair.pop(pair, None)
        for digest in unseen:
            made._manifests.pop(digest, None)
        made._by_pair.update((_pair(grant), grant) for grant in new)
        made._manifests.update((each.digest, each.needs) for each in seen)
        return made


def with_revocation(
    before: tuple[Revocation, ...], *, plugin: str = "", credential: str = ""
) -> tuple[Revocation, ...]:
    """The revocations after one more; the oldest are merged, never forgotten."""
    seq = before[-1].seq + 1 if before else 1
    after = (*before, Revocation(seq=seq, plugin=plugin, credential=credential))
    if len(after) <= MAX_REVOCATIONS:
        return after
    merged = after[: MAX_REVOCATIONS // 2]
    return (Revocation(seq=merged[-1].seq), *after[len(merged) :])


def _pair(grant: Grant) -> tuple[str, str]:
    return (grant.plugin, grant.key if grant.principal else grant.credential)
